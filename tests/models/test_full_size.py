"""The released sizes: every official key with its shape, on the meta device, and what loading one costs in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.checkpoint import official_key
from models.config import parse_config
from models.flexislm import FlexiSLM
from streaming.omni_encoder import OmniEncoder, OmniEncoderConfig

ROWS = 151_944
CODES = 3 + 32_768
TALKER = 1280

RECIPE = {
    "vocab_size": ROWS,
    "rope_theta": 1e6,
    "use_sinusoidal": True,
    "per_sample_frame_rate_embed": True,
    "talker_concat_lm_text_output": True,
    "use_input_merging_transformer": True,
    "use_input_merging_transformer_v2": True,
    "input_merging_transformer_d_model": 768,
    "use_mlp_for_audio_embed": True,
    "talker_hidden_size": TALKER,
    "talker_intermediate_size": 5120,
    "no_pad": True,
    "use_combined_embedding": False,
    "use_qwen25o_feature": True,
}
SIZES = {
    "7B": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
    },
    "0.5B": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "tie_word_embeddings": True,
    },
}


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


def released_shapes(size: str) -> dict[str, list[int]]:
    """Every tensor that inference reads, from the tables of sections 2.1 to 2.5."""
    hidden, layers = (int(SIZES[size][key]) for key in ("hidden_size", "num_hidden_layers"))
    kv = hidden // int(SIZES[size]["num_attention_heads"]) * int(SIZES[size]["num_key_value_heads"])
    shapes = decoder_shapes("model.", ROWS, hidden, layers, int(SIZES[size]["intermediate_size"]), kv)
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


@pytest.mark.parametrize("size", list(SIZES))
def test_every_official_key_has_its_shape(size: str) -> None:
    config = parse_config(json.dumps(RECIPE | SIZES[size]).encode(), "config.json")
    with torch.device("meta"):
        model = FlexiSLM(config, encoder_dim=3584)
    ours = {official_key(name): list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == released_shapes(size)


def test_the_talker_and_the_encoder_have_the_published_sizes() -> None:
    config = parse_config(json.dumps(RECIPE | SIZES["7B"]).encode(), "config.json")
    with torch.device("meta"):
        talker = FlexiSLM(config, encoder_dim=3584).talker_model
        encoder = OmniEncoder(OmniEncoderConfig(1280, 32, 20, 5120, 3584))
    assert round(sum(parameter.numel() for parameter in talker.model.parameters()) / 1e6) == 608
    marks = 2 * 3584  # `audio_bos_eos_token`, which is never read
    assert sum(parameter.numel() for parameter in encoder.parameters()) + marks == 639_647_232


LOAD = """
import re, sys, torch
from pathlib import Path
from models.checkpoint import load_flexislm
torch.set_num_threads(1)
peak_kib = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak_kib()
model = load_flexislm(Path(sys.argv[1]), dtype=torch.bfloat16)
touched = sum(float(parameter.flatten()[::512].float().sum()) for parameter in model.parameters())
print(peak_kib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_loading_holds_no_second_copy(tmp_path: Path) -> None:
    """Peak memory below 1.3 times the checkpoint's bytes, at a quarter of the 0.5B's layers."""
    small = SIZES["0.5B"] | {"num_hidden_layers": 6, "tie_word_embeddings": False}
    recipe = RECIPE | small | {"talker_num_layers": 5, "vocab_size": 40_000}
    (tmp_path / "config.json").write_text(json.dumps(recipe))
    config = parse_config(json.dumps(recipe).encode(), "config.json")
    with torch.device("meta"):
        model = FlexiSLM(config, encoder_dim=3584)
    names = [official_key(name) for name, _ in model.named_parameters()]
    tensors = {
        name: torch.full(parameter.shape, 0.5, dtype=torch.bfloat16)
        for name, parameter in zip(names, model.parameters(), strict=True)
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    size_kib = (tmp_path / "model.safetensors").stat().st_size / 1024
    assert size_kib > 300_000
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert 0.5 * size_kib < int(done.stdout) < 1.3 * size_kib
