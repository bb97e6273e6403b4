"""Reads a FlexiSLM checkpoint directory.

Strict about keys and shapes, LoRA merged in, no second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoints.tensor_files import TensorFiles
from models.errors import CheckpointError
from models.networks.config import FlexiSLMConfig, read_config
from models.networks.flexislm import FlexiSLM
from models.networks.tokenizer import TextTokenizer

LORA_PREFIX = "model.base_model.model."
UNUSED_PREFIXES = ("length_decoder.", "speech_delay_embeddings", "_qwen25o_encoder.")
"""Tensors that checkpoints hold and inference never reads (section 2.2)."""

Source = Callable[[], Tensor]


def official_key(name: str) -> str:
    """Key in an official file of our parameter `name`: the Thinker lies at the top there."""
    return name.removeprefix("thinker.")


@dataclass(frozen=True)
class CheckedFlexiSLM:
    """A checkpoint whose files fit its config. model: on the meta device; sources: where each parameter comes from."""

    config: FlexiSLMConfig
    model: FlexiSLM
    sources: dict[str, Source]
    own_head: bool


def load_flexislm(directory: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> FlexiSLM:
    """The networks of an official (or our own) checkpoint directory, in evaluation mode, without gradients.

    Raises `CheckpointError` with one sentence for everything that can be wrong with the files.
    """
    checked = check_flexislm(directory)
    model = checked.model
    state: dict[str, Tensor] = {}
    for name, source in checked.sources.items():
        state[name] = source().to(device=device, dtype=dtype)
    for name, tensor in state.items():
        _assign(model, name, tensor)
    if checked.config.tie_word_embeddings and not checked.own_head:
        model.thinker.tie()
    return model.requires_grad_(False).eval()


def check_flexislm(directory: Path) -> CheckedFlexiSLM:
    """Config, keys and shapes of a checkpoint, without reading a weight. Raises `CheckpointError`."""
    config = read_config(directory / "config.json")
    files = TensorFiles(directory)
    own_head = "lm_head.weight" in files.keys  # some bring a text head even where the config ties it
    with torch.device("meta"):
        model = FlexiSLM(config, _encoder_dim(files, config))
        if config.tie_word_embeddings and own_head:
            model.thinker.lm_head.weight = nn.Parameter(torch.empty_like(model.thinker.lm_head.weight))
    expected = dict(model.named_parameters())
    sources, used = _find_sources(files, config, expected)
    _account_for(files, used, expected, sources)
    return CheckedFlexiSLM(config, model, sources, own_head)


def load_tokenizer(directory: Path, config: FlexiSLMConfig) -> TextTokenizer:
    """The directory's tokenizer; refuses one with more tokens than the model has rows."""
    tokenizer = TextTokenizer.load(directory)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{directory} has a tokenizer of {len(tokenizer)} tokens for a vocab_size of {config.vocab_size} in "
            "config.json; take both from one checkpoint"
        )
    return tokenizer


def _find_sources(
    files: TensorFiles, config: FlexiSLMConfig, expected: dict[str, nn.Parameter]
) -> tuple[dict[str, Source], set[str]]:
    """Where each parameter comes from, checked for shape, and the file keys that are used."""
    sources: dict[str, Source] = {}
    used: set[str] = set()
    for name, parameter in expected.items():
        key = official_key(name)
        shape = tuple(parameter.shape)
        if key in files.keys:
            used.add(key)
            _check_shape(files, key, shape)
            sources[name] = _reader(files, key)
        elif (wrapped := _lora_key(files, key)) is not None:
            keys, source = _lora_source(files, config, wrapped, shape)
            used |= keys
            sources[name] = source
        elif name == "thinker.combined_embed_proj.weight" and not config.thinker_hears_speech:
            sources[name] = _text_alone(shape)
    return sources, used


def _reader(files: TensorFiles, key: str) -> Source:
    return lambda: files.read(key)


def _text_alone(shape: tuple[int, ...]) -> Source:
    """What the original fills an absent, unused Talker-to-Thinker projection with."""
    return lambda: torch.eye(*shape)


def _lora_key(files: TensorFiles, key: str) -> str | None:
    """The key under which an adapter-wrapped Thinker stores `key`, if it does."""
    if not key.startswith("model."):
        return None
    inner = LORA_PREFIX + key.removeprefix("model.")
    stem, _, leaf = inner.rpartition(".")
    return next((wrapped for wrapped in (inner, f"{stem}.base_layer.{leaf}") if wrapped in files.keys), None)


def _lora_source(
    files: TensorFiles, config: FlexiSLMConfig, key: str, shape: tuple[int, ...]
) -> tuple[set[str], Source]:
    """Keys used and W0 + alpha / r * B A, summed in float32, for a wrapped weight; the plain tensor for the rest."""
    _check_shape(files, key, shape)
    if not key.endswith(".base_layer.weight"):
        return {key}, _reader(files, key)
    stem = key.removesuffix(".base_layer.weight")
    down, up = f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"
    for adapter in (down, up):
        if adapter not in files.keys:
            raise CheckpointError(f"{files.path(key)} holds {key} but not {adapter}; download the checkpoint again")
    rank = files.shape(down)[0]
    _check_shape(files, down, (rank, shape[1]))
    _check_shape(files, up, (shape[0], rank))
    if config.lora_alpha is None:
        raise CheckpointError(f"{files.directory}/config.json lacks lora_alpha for the adapters; officially it is 64")
    scale = config.lora_alpha / rank

    def merged() -> Tensor:
        return files.read(key).float() + scale * (files.read(up).float() @ files.read(down).float())

    return {key, down, up}, merged


def _account_for(
    files: TensorFiles, used: set[str], expected: dict[str, nn.Parameter], sources: dict[str, Source]
) -> None:
    """Every parameter has a source, every tensor a use or a known reason to be left."""
    missing = sorted(set(expected) - set(sources))
    if missing:
        raise CheckpointError(
            f"{files.directory} lacks {len(missing)} tensors that its config.json asks for, first "
            f"{official_key(missing[0])}; download the checkpoint again"
        )
    unknown = sorted(key for key in files.keys - used if not key.startswith(UNUSED_PREFIXES))
    if unknown:
        raise CheckpointError(
            f"{files.path(unknown[0])} holds {len(unknown)} unknown tensors, first {unknown[0]}; "
            "it is a variant that agogic does not have, take a released checkpoint"
        )


def _check_shape(files: TensorFiles, key: str, shape: tuple[int, ...]) -> None:
    found = files.shape(key)
    if found != shape:
        raise CheckpointError(
            f"{files.path(key)} holds {key} of shape {list(found)} where config.json asks for {list(shape)}; "
            "take both from one checkpoint"
        )


def _encoder_dim(files: TensorFiles, config: FlexiSLMConfig) -> int:
    """Width of the encoder frames, which the config of a released checkpoint need not state rightly."""
    for key in ("audio_embed_transform.fc1.weight", "audio_embed_transform.weight"):
        if key in files.keys:
            return files.shape(key)[1]
    return config.hidden_size


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
