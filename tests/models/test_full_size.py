"""The released sizes: every official key with its shape, on the meta device, and what loading one costs in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.official.load import load_apart, write_checkpoint
from benchmarks.official.released_sizes import ENCODER_DIM, Size, released_config
from models.checkpoints.flexislm_checkpoint import official_key
from models.networks.flexislm import FlexiSLM
from streaming.hearing.omni_encoder import OmniEncoder, OmniEncoderConfig

ROWS = 151_944
CODES = 3 + 32_768
TALKER = 1280
SIZES: tuple[Size, ...] = ("7B", "0.5B")


def decoder_shapes(prefix: str, rows: int, hidden: int, layers: int, ffn: int, kv: int) -> dict[str, list[int]]:
    """Keys of one Qwen2 decoder (FlexiSLM section 2.1)."""
    shapes = {f"{prefix}embed_tokens.weight": [rows, hidden], f"{prefix}norm.weight": [hidden]}
    for index in range(layers):
        layer = f"{prefix}layers.{index}."
        for name, width in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = [width, hidden]
            shapes[f"{layer}self_attn.{name}_proj.bias"] = [width]
        shapes[f"{layer}self_attn.o_proj.weight"] = [hidden, hidden]
        shapes[f"{layer}mlp.gate_proj.weight"] = shapes[f"{layer}mlp.up_proj.weight"] = [ffn, hidden]
        shapes[f"{layer}mlp.down_proj.weight"] = [hidden, ffn]
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = [hidden]
    return shapes


def released_shapes(size: Size) -> dict[str, list[int]]:
    """Every tensor that inference reads, from the tables of sections 2.1 to 2.5."""
    hidden, layers, ffn, kv = {"7B": (3584, 28, 18_944, 512), "0.5B": (896, 24, 4864, 128)}[size]
    shapes = decoder_shapes("model.", ROWS, hidden, layers, ffn, kv)
    shapes |= decoder_shapes("talker_model.model.model.", CODES, TALKER, 20, 5120, TALKER)
    shapes |= {
        "lm_head.weight": [ROWS, hidden],
        "combined_embed_proj.weight": [hidden, 4 * hidden],
        "audio_start_embedding": [hidden],
        "audio_end_embedding": [hidden],
        "talker_model.model.lm_head.weight": [CODES, TALKER],
        "talker_model.talker_embed_to_hidden.weight": [hidden, TALKER],
        "talker_model.talker_embed_to_hidden.bias": [hidden],
        "talker_model.lm_to_talker_proj.weight": [TALKER, hidden],
        "talker_model.lm_to_talker_proj.bias": [TALKER],
        "talker_model.talker_cond_proj.weight": [TALKER, 6400],
        "talker_model.talker_cond_proj.bias": [TALKER],
        "talker_model.talker_length_decoder.fc1.weight": [5120, TALKER],
        "talker_model.talker_length_decoder.fc1.bias": [5120],
        "talker_model.talker_length_decoder.fc2.weight": [32, 5120],
        "talker_model.talker_length_decoder.fc2.bias": [32],
        "talker_model.length_embedding.weight": [32, hidden],
    }
    merger = "input_merging_transformer.transformer."
    shapes |= {f"{merger}input_proj.weight": [768, hidden], f"{merger}output_projs.0.weight": [hidden, 768]}
    for index in range(4):
        layer = f"{merger}transformer.layers.{index}."
        shapes[f"{layer}self_attn.in_proj_weight"] = [2304, 768]
        shapes[f"{layer}self_attn.out_proj.weight"] = [768, 768]
        shapes[f"{layer}linear1.weight"], shapes[f"{layer}linear2.weight"] = [2048, 768], [768, 2048]
        for leaf in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[layer + leaf] = [768]
        shapes[f"{layer}layer_scale_1.scale"] = shapes[f"{layer}layer_scale_2.scale"] = [768]
    if hidden != 3584:
        shapes |= {
            "audio_embed_transform.fc1.weight": [3584, 3584],
            "audio_embed_transform.fc1.bias": [3584],
            "audio_embed_transform.fc2.weight": [hidden, 3584],
            "audio_embed_transform.fc2.bias": [hidden],
        }
    return shapes


@pytest.mark.parametrize("size", SIZES)
def test_every_official_key_has_its_shape(size: Size) -> None:
    with torch.device("meta"):
        model = FlexiSLM(released_config(size), ENCODER_DIM)
    ours = {official_key(name): list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == released_shapes(size)


def test_the_talker_and_the_encoder_have_the_published_sizes() -> None:
    with torch.device("meta"):
        talker = FlexiSLM(released_config("7B"), ENCODER_DIM).talker_model
        encoder = OmniEncoder(OmniEncoderConfig(1280, 32, 20, 5120, 3584))
    assert round(sum(parameter.numel() for parameter in talker.model.parameters()) / 1e6) == 608
    marks = 2 * 3584  # `audio_bos_eos_token`, which is never read
    assert sum(parameter.numel() for parameter in encoder.parameters()) + marks == 639_647_232


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("adapters", [False, True])
def test_loading_holds_no_second_copy(tmp_path: Path, adapters: bool) -> None:
    """At a quarter of the 0.5B's layers; `agogic bench load` measures all of them."""
    changes = {"num_hidden_layers": 3, "talker_num_layers": 3, "vocab_size": 10_000}
    written = write_checkpoint(tmp_path, "0.5B", adapters=adapters, changes=changes)
    assert written > 300e6 and len(list(tmp_path.glob("model-*.safetensors"))) > 1
    measured = load_apart(tmp_path)
    assert 0.9 < measured["resident_bytes"] / written < 1.3
    assert measured["peak_bytes"] / written < 1.3
