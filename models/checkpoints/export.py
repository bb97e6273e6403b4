"""Writes any of our models in the layout of the official checkpoints, so that the original code reads it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.flexislm_checkpoint import official_key
from models.checkpoints.packing import save_packed
from models.checkpoints.tensor_files import SINGLE
from models.networks.config import AgogicConfig, FlexiSLMConfig
from models.networks.flexislm import FlexiSLM
from models.networks.tokenizer import TextTokenizer

OFFICIAL_SWITCHES: dict[str, object] = {
    "architectures": ["ParallelS2SForCausalLM"],
    "model_type": "parallel_s2s",
    "hidden_act": "silu",
    "use_qwen25o_feature": True,
    "use_omni_token": True,
    "enable_flexible_framerate": True,
    "use_sinusoidal": True,
    "per_sample_frame_rate_embed": True,
    "talker_concat_lm_text_output": True,
    "use_learnable_audio_boundary": True,
    "use_input_merging_transformer": True,
    "use_lora": False,
    "talker_embed_v2": False,
    "use_joint_text_audio_vocab": False,
}
"""What the original reads from the config and our networks always are."""

COMPANIONS = {f"{part}.safetensors" for part in ("encoder", "codec", "flow", "vocoder")} | {"MODEL_CARD.md"}
"""Files of an embedded model that stay as they are; the original code has no use for them."""


def official_tensors(model: FlexiSLM) -> dict[str, Tensor]:
    """The state dict under official keys. A tied head is left out, as in the released small checkpoints."""
    tensors = {official_key(name): parameter.detach() for name, parameter in model.named_parameters()}
    if model.thinker.lm_head.weight is model.thinker.model.embed_tokens.weight:
        tensors.pop("lm_head.weight", None)
    return tensors


def official_config(config: FlexiSLMConfig, encoder_dim: int, tokenizer: TextTokenizer) -> dict[str, object]:
    """The content of config.json: official keys, and ours under `agogic` where they are not the defaults."""
    content: dict[str, object] = dict(OFFICIAL_SWITCHES)
    content |= msgspec.json.decode(msgspec.json.encode(config), type=dict[str, object])
    content |= {
        "rope_theta": config.rope_base,
        "codec_hidden_size": encoder_dim,
        "padded_audio_vocab_size": config.audio_vocab_size,
        "text_vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.special.im_end,
        "alignment_text_pad_token_id": tokenizer.special.end_of_text,
        "max_tokens_per_group": config.agogic.max_group_frames,
        "talker_hidden_size": config.talker.hidden_size,
        "talker_intermediate_size": config.talker.intermediate_size,
        "use_lora": False,
        # Adapters used to keep the Thinker from hearing speech; merged, the switch has to say so.
        "use_combined_embedding": config.thinker_hears_speech,
    }
    for absent in ("rope_parameters", "lora_alpha"):
        content.pop(absent)
    if msgspec.json.encode(config.agogic) == msgspec.json.encode(AgogicConfig()):
        content.pop("agogic")
    return content


def export_flexislm(
    model: FlexiSLM, tokenizer_json: Path, directory: Path, *, dtype: torch.dtype = torch.bfloat16, packed: bool = False
) -> None:
    """Write config.json, model.safetensors and tokenizer.json into `directory`, which is made where it is missing.

    `packed` stores matrices as int8 rows (streaming/layers/compact.py), which only agogic reads; else tensors are
    `dtype`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = official_config(model.config, model.encoder_dim, TextTokenizer.load(tokenizer_json.parent))
    content["torch_dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    tensors = official_tensors(model)
    if packed:
        save_packed(tensors, directory / SINGLE)
    else:
        save_tensors(tensors, directory / SINGLE, dtype)
    if tokenizer_json.resolve() != (directory / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_json, directory / "tokenizer.json")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """One safetensors file in `dtype`; transformers wants the format to be named."""
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}, path, metadata={"format": "pt"})


def copy_companions(source: Path, directory: Path) -> list[str]:
    """Copy what else belongs to an embedded model (encoder, codec, flow, vocoder, card); returns the names."""
    names = [path.name for path in sorted(source.iterdir()) if path.name in COMPANIONS]
    for name in names:
        shutil.copyfile(source / name, directory / name)
    return names
