"""Reads the official FlexiCodec family from its files: codec with SenseVoice, Voicebox, Vocos, FlexiCodec-TTS.

Sizes are read off the tensors' shapes where they show; what does not show (heads, thresholds) comes from the
configuration or is the released models'.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from models.checkpoints.strict_loading import PickledTensors, TensorSource, check, fill, layer_count
from models.checkpoints.tensor_files import TensorFiles
from models.errors import CheckpointError
from streaming.flexicodec.artts import ArTts, ArTtsConfig
from streaming.flexicodec.fbank import CmvnError, SenseVoiceFrontEnd, read_cmvn
from streaming.flexicodec.flexicodec import FlexiCodec, FlexiCodecConfig, SemanticQuantizer, UnsupportedCodecError
from streaming.flexicodec.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.vocos import Vocos, VocosConfig

CODEC_PREFIXES = ("", "flexicodec_model.", "dualcodec_model.")
"""Where a file keeps its codec: alone, or inside a speech synthesiser (the last is an older name)."""

CODEC_UNUSED = ("semantic_mean", "semantic_std", "repa_", "semantic_model.")
SENSEVOICE_UNUSED = ("encoder.tp_encoders.", "encoder.tp_norm.", "ctc.", "semantic_mean", "semantic_std")
VOICEBOX_PREFIX = "voicebox_model."
ARTTS_PREFIX = "transformer_lm."


@dataclass(frozen=True)
class CodecFiles:
    """Where the parts of a codec lie. `semantic` (SenseVoice) may be None where the codec's file holds it too."""

    codec: Path
    cmvn: Path
    semantic: Path | None = None
    config: Path | None = None


def open_tensors(path: Path) -> TensorSource:
    """The tensors of a `.safetensors` or `.pt` file."""
    if path.suffix == ".safetensors":
        return TensorFiles(path.parent, path.name)
    return PickledTensors(path)


def read_codec_config(path: Path) -> FlexiCodecConfig:
    """From the official YAML (or JSON) file: the section that holds `encoder_rates`."""
    try:
        section = _section_with(msgspec.yaml.decode(path.read_bytes()), "encoder_rates")
        if section is None:
            raise CheckpointError(f"{path} has no section with encoder_rates; give the codec's own configuration")
        return FlexiCodecConfig.from_official(section)
    except (OSError, msgspec.MsgspecError, UnsupportedCodecError) as error:
        raise CheckpointError(f"{path}: {error}; give the configuration that came with the codec") from None


@dataclass(frozen=True)
class _CodecParts:
    """The codec with its encoder on the meta device, and where the tensors of each come from."""

    codec: FlexiCodec
    semantic: SenseVoiceEncoder
    source: TensorSource
    prefix: str
    semantic_source: TensorSource
    semantic_path: Path
    semantic_prefix: str


def load_flexicodec(files: CodecFiles, config: FlexiCodecConfig | None = None) -> FlexiCodec:
    """The codec in float32, as the original always computes; `config` overrides the file's."""
    parts = _codec_parts(files, config)
    codec, semantic = parts.codec, parts.semantic
    # The quantiser's tables are no weights and must be real.
    codec.semantic_vq = SemanticQuantizer(codec.config)
    fill(semantic, parts.semantic_source, parts.semantic_path, prefix=parts.semantic_prefix, unused=SENSEVOICE_UNUSED)
    del codec.semantic_model
    fill(codec, parts.source, files.codec, prefix=parts.prefix, unused=CODEC_UNUSED)
    codec.semantic_model = semantic
    return codec


def check_flexicodec(files: CodecFiles) -> None:
    """Configuration, keys and shapes of the codec's files, without reading a weight. Raises `CheckpointError`."""
    parts = _codec_parts(files, None)
    check(
        parts.semantic,
        parts.semantic_source,
        parts.semantic_path,
        prefix=parts.semantic_prefix,
        unused=SENSEVOICE_UNUSED,
    )
    del parts.codec.semantic_model
    check(parts.codec, parts.source, files.codec, prefix=parts.prefix, unused=CODEC_UNUSED)


def _codec_parts(files: CodecFiles, config: FlexiCodecConfig | None) -> _CodecParts:
    source = open_tensors(files.codec)
    prefix = _codec_prefix(source, files.codec)
    if config is None:
        config = read_codec_config(files.config) if files.config else FlexiCodecConfig()
        layers = layer_count(source, f"{prefix}bottleneck_transformer.transformer.layers.")
        config = msgspec.structs.replace(config, transformer_num_layers=layers)
    semantic_path, semantic_prefix = files.semantic or files.codec, ""
    if any(key.startswith(f"{prefix}semantic_model.") for key in source.keys):
        semantic_path, semantic_prefix = files.codec, f"{prefix}semantic_model."
    elif files.semantic is None:
        raise CheckpointError(f"{files.codec} holds no SenseVoice; give SenseVoiceSmall's model.pt as well")
    semantic_source = open_tensors(semantic_path)
    try:
        front_end = SenseVoiceFrontEnd(*read_cmvn(files.cmvn))
    except (OSError, CmvnError) as error:
        raise CheckpointError(f"SenseVoice's normalisation cannot be read: {error}") from None
    semantic_config = _sensevoice_config(semantic_source, semantic_path, semantic_prefix)
    with torch.device("meta"):
        codec = FlexiCodec(config, semantic_config, front_end)
        semantic = SenseVoiceEncoder(semantic_config)
    return _CodecParts(codec, semantic, source, prefix, semantic_source, semantic_path, semantic_prefix)


def load_voicebox(path: Path, head_dim: int = 64, dtype: torch.dtype = torch.float32) -> Voicebox:
    """The official flow decoder; `head_dim` is the one size that shapes do not show."""
    module, source, prefix = _voicebox(path, head_dim)
    fill(module, source, path, prefix=prefix, unused=() if prefix else CODEC_PREFIXES[1:], dtype=dtype)
    return module


def check_voicebox(path: Path, head_dim: int = 64) -> Voicebox:
    """The flow decoder on the meta device, once keys and shapes fit; no weight is read."""
    module, source, prefix = _voicebox(path, head_dim)
    check(module, source, path, prefix=prefix, unused=() if prefix else CODEC_PREFIXES[1:])
    return module


def _voicebox(path: Path, head_dim: int) -> tuple[Voicebox, TensorSource, str]:
    source = open_tensors(path)
    prefix = VOICEBOX_PREFIX if any(key.startswith(VOICEBOX_PREFIX) for key in source.keys) else ""
    net = f"{prefix}diff_estimator."
    codes, hidden = _shape(source, path, f"{prefix}cond_emb.weight")
    config = FlowConfig(
        hidden=hidden,
        num_layers=layer_count(source, f"{net}layers."),
        num_heads=hidden // head_dim,
        ffn_dim=_shape(source, path, f"{net}layers.0.mlp.gate_proj.weight")[0],
        mlp_dim=_shape(source, path, f"{net}mel_mlp.0.weight")[0],
        codebook_size=codes,
    )
    with torch.device("meta"):
        return Voicebox(config), source, prefix


def load_vocos(path: Path, dtype: torch.dtype = torch.float32) -> Vocos:
    """The official vocoder; refuses one for another mel size."""
    module, source = _vocos(path)
    fill(module, source, path, dtype=dtype)
    return module


def check_vocos(path: Path) -> Vocos:
    """The vocoder on the meta device, once keys and shapes fit; no weight is read."""
    module, source = _vocos(path)
    check(module, source, path)
    return module


def _vocos(path: Path) -> tuple[Vocos, TensorSource]:
    source = open_tensors(path)
    dim, mel_bins, _ = _shape(source, path, "backbone.embed.weight")
    if mel_bins != MEL_BINS:
        raise CheckpointError(f"{path} is a vocoder for {mel_bins} mel bins; the flow decoder makes {MEL_BINS}")
    config = VocosConfig(
        dim=dim,
        hidden=_shape(source, path, "backbone.convnext.0.pwconv1.weight")[0],
        num_layers=layer_count(source, "backbone.convnext."),
    )
    with torch.device("meta"):
        return Vocos(config), source


def load_artts(path: Path, config: ArTtsConfig | None = None) -> ArTts:
    """FlexiCodec-TTS, of the released sizes unless `config` says otherwise."""
    source = open_tensors(path)
    prefix = ARTTS_PREFIX if any(key.startswith(ARTTS_PREFIX) for key in source.keys) else ""
    with torch.device("meta"):
        module = ArTts(config or ArTtsConfig())
    fill(module, source, path, prefix=prefix)
    return module


def _codec_prefix(source: TensorSource, path: Path) -> str:
    for prefix in CODEC_PREFIXES:
        if f"{prefix}semantic_aggregator.query_embedding" in source.keys:
            return prefix
    raise CheckpointError(
        f"{path} holds no FlexiCodec; give 12hz_v1_half.safetensors or nartts_flexicodec_only.safetensors"
    )


def _sensevoice_config(source: TensorSource, path: Path, prefix: str) -> SenseVoiceConfig:
    feed = _shape(source, path, f"{prefix}encoder.encoders0.0.feed_forward.w_1.weight")
    memory = _shape(source, path, f"{prefix}encoder.encoders0.0.self_attn.fsmn_block.weight")
    blocks = 1 + layer_count(source, f"{prefix}encoder.encoders.")
    return SenseVoiceConfig(d_model=feed[1], ffn_dim=feed[0], num_blocks=blocks, kernel_size=memory[2])


def _shape(source: TensorSource, path: Path, key: str) -> tuple[int, ...]:
    if key not in source.keys:
        raise CheckpointError(f"{path} lacks {key}; it is another model's file, or incomplete")
    return source.shape(key)


def _section_with(node: object, key: str) -> dict[str, object] | None:
    if not isinstance(node, dict):
        return None
    if key in node:
        return node
    found = (_section_with(child, key) for child in node.values())
    return next((section for section in found if section is not None), None)
