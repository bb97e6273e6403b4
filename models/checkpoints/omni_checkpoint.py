"""Reads the audio encoder's directory: `thinker_config.audio_config` or a flat config, keys under any one prefix."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from models.checkpoints.tensor_files import TensorFiles
from models.errors import CheckpointError
from streaming.hearing.omni_encoder import OmniEncoder, OmniEncoderConfig

UNUSED = "audio_bos_eos_token.weight"


class _ThinkerConfig(msgspec.Struct, frozen=True):
    audio_config: OmniEncoderConfig


class _OmniConfig(msgspec.Struct, frozen=True):
    thinker_config: _ThinkerConfig


def read_omni_config(path: Path) -> OmniEncoderConfig:
    """The encoder's config from `path`, nested as in Qwen2.5-Omni or flat."""
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = error.strerror
        raise CheckpointError(f"{path} cannot be read ({reason}); give the audio encoder's directory") from None
    try:
        if b'"thinker_config"' in text:
            return msgspec.json.decode(text, type=_OmniConfig).thinker_config.audio_config
        return msgspec.json.decode(text, type=OmniEncoderConfig)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{path} is not the config of a Qwen2.5-Omni audio encoder: {error}") from None


def load_omni_encoder(directory: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> OmniEncoder:
    """The encoder in evaluation mode. Its keys may stand under a prefix, beside tensors that are not its own."""
    encoder, files, prefix = _checked(directory)
    names = [name for name, _ in encoder.named_parameters()]
    state = {name: files.read(prefix + name).to(device=device, dtype=dtype) for name in names}
    encoder.load_state_dict(state, assign=True)
    return encoder.requires_grad_(False).eval()


def check_omni_encoder(directory: Path) -> OmniEncoder:
    """The encoder on the meta device, once config, keys and shapes fit together; no weight is read."""
    return _checked(directory)[0]


def _checked(directory: Path) -> tuple[OmniEncoder, TensorFiles, str]:
    config = read_omni_config(directory / "config.json")
    files = TensorFiles(directory)
    with torch.device("meta"):
        encoder = OmniEncoder(config)
    expected = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    prefix = _prefix(files, set(expected))
    for name, shape in expected.items():
        found = files.shape(prefix + name)
        if found != shape:
            raise CheckpointError(
                f"{files.path(prefix + name)} holds {prefix + name} of shape {list(found)} where its config.json asks "
                f"for {list(shape)}; take both from one checkpoint"
            )
    return encoder, files, prefix


def _prefix(files: TensorFiles, expected: set[str]) -> str:
    """The one prefix under which the encoder's keys, all of them and no others, are found."""
    last = "conv1.weight"
    fitting = []
    for prefix in sorted(key.removesuffix(last) for key in files.keys if key.endswith(last)):
        stripped = {key.removeprefix(prefix) for key in files.keys if key.startswith(prefix)}
        if stripped - {UNUSED} == expected:
            fitting.append(prefix)
    if len(fitting) != 1:
        raise CheckpointError(
            f"{files.directory} holds no complete Qwen2.5-Omni audio encoder that fits its config.json; "
            "download FlexiSLM/Qwen2_5-Omni-Audio_Encoder again"
        )
    return fitting[0]
