"""Checkpoints: what loads, what it gives, and one sentence for everything that can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints.export import export_flexislm
from models.checkpoints.flexislm_checkpoint import LORA_PREFIX, load_flexislm, load_tokenizer
from models.errors import CheckpointError
from models.networks.config import read_config
from models.networks.flexislm import FlexiSLM
from tests.support.golden import golden_dirs

FOLDER = golden_dirs("flexislm")[0]
TOKENIZER = FOLDER / "tokenizer" / "tokenizer.json"


@pytest.fixture
def stage2(tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be spoilt."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(FOLDER / "stage2" / name, tmp_path / name)
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> None:
    """Split the weights into two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in files.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    weight_map = {key: file for file, keys in files.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def same_weights(first: FlexiSLM, second: FlexiSLM) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_shards_load_like_one_file(stage2: Path) -> None:
    whole = load_flexislm(stage2, dtype=torch.float32)
    shard(stage2)
    assert same_weights(load_flexislm(stage2, dtype=torch.float32), whole)


def test_weights_take_the_requested_dtype_and_no_gradients(stage2: Path) -> None:
    model = load_flexislm(stage2, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_adapters_are_merged_with_alpha_over_rank(stage2: Path) -> None:
    plain = load_flexislm(stage2, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(64, 4, generator=generator)

    def wrap(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("model.")]:
            tensors[LORA_PREFIX + key.removeprefix("model.")] = tensors.pop(key)
        stem = LORA_PREFIX + "layers.0.self_attn.q_proj"
        for leaf in ("weight", "bias"):
            tensors[f"{stem}.base_layer.{leaf}"] = tensors.pop(f"{stem}.{leaf}")
        tensors[f"{stem}.lora_A.default.weight"], tensors[f"{stem}.lora_B.default.weight"] = down, up

    edit_weights(stage2, wrap)
    edit_config(stage2, use_lora=True, lora_rank=4, lora_alpha=12)
    merged = load_flexislm(stage2, dtype=torch.float32)
    name = "thinker.model.layers.0.self_attn.q_proj.weight"
    expected = plain.get_parameter(name) + 3.0 * (up @ down)
    torch.testing.assert_close(merged.get_parameter(name), expected)
    others = [key for key in plain.state_dict() if key != name]
    assert all(torch.equal(plain.state_dict()[key], merged.state_dict()[key]) for key in others)
    edit_weights(stage2, lambda tensors: tensors.pop(LORA_PREFIX + "layers.0.self_attn.q_proj.lora_B.default.weight"))
    with pytest.raises(CheckpointError, match=r"but not .*lora_B"):
        load_flexislm(stage2, dtype=torch.float32)


def test_a_tied_head_is_the_embedding_table_unless_the_file_has_its_own(stage2: Path) -> None:
    edit_config(stage2, tie_word_embeddings=True)
    own = load_flexislm(stage2, dtype=torch.float32).thinker
    assert not torch.equal(own.lm_head.weight, own.model.embed_tokens.weight)
    edit_weights(stage2, lambda tensors: tensors.pop("lm_head.weight"))
    tied = load_flexislm(stage2, dtype=torch.float32).thinker
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_an_unused_talker_to_thinker_projection_may_be_missing(stage2: Path) -> None:
    edit_weights(stage2, lambda tensors: tensors.pop("combined_embed_proj.weight"))
    weight = load_flexislm(stage2, dtype=torch.float32).thinker.combined_embed_proj.weight
    assert torch.equal(weight, torch.eye(64, 256))
    edit_config(stage2, use_combined_embedding=True)
    with pytest.raises(CheckpointError, match="first combined_embed_proj"):
        load_flexislm(stage2, dtype=torch.float32)


def test_what_training_leaves_behind_is_allowed(stage2: Path) -> None:
    edit_weights(stage2, lambda tensors: tensors.update({"_qwen25o_encoder.conv1.weight": torch.zeros(2)}))
    load_flexislm(stage2, dtype=torch.float32)


def spoil_missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def spoil_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


def spoil_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("{")


def spoil_lost_tensor(folder: Path) -> None:
    shard(folder)
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


BAD_DIRECTORIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "give a directory with a config"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "not a FlexiSLM config"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "download the weights into it"),
    "missing shard": (spoil_missing_shard, "model-00002-of-00002.safetensors is missing"),
    "shard without its tensor": (spoil_lost_tensor, "download shard and index again"),
    "broken index": (spoil_index, "not an index of shards"),
    "truncated file": (spoil_truncated, "model.safetensors is damaged or incomplete"),
    "missing tensor": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight")),
        "lacks 1 tensors .* first model.norm.weight",
    ),
    "unknown tensor": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.update({"depth_head.weight": torch.zeros(2)})),
        "unknown tensors, first depth_head.weight",
    ),
    "wrong shape": (
        lambda folder: edit_config(folder, talker_intermediate_size=161),
        r"of shape \[160, 48\] where config.json asks for \[161, 48\]",
    ),
    "unknown variant": (lambda folder: edit_config(folder, talker_embed_v2=True), "sets talker_embed_v2"),
    "unknown switch": (lambda folder: edit_config(folder, use_time_travel=True), "turns on use_time_travel"),
    "needed switch off": (lambda folder: edit_config(folder, use_sinusoidal=False), "has use_sinusoidal off"),
    "rope scaling": (lambda folder: edit_config(folder, rope_scaling={"type": "yarn"}), "sets rope_scaling"),
    "heads that do not divide": (lambda folder: edit_config(folder, num_attention_heads=5), "5 heads"),
    "adapters without alpha": (lambda folder: edit_config(folder, use_lora=True), "lora_alpha"),
}


@pytest.mark.parametrize("case", BAD_DIRECTORIES)
def test_a_bad_directory_is_one_sentence_with_a_mend(stage2: Path, case: str) -> None:
    spoil, message = BAD_DIRECTORIES[case]
    spoil(stage2)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_flexislm(stage2, dtype=torch.float32)
    assert str(stage2) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_audio_marks_is_refused(tmp_path: Path) -> None:
    content = json.loads(TOKENIZER.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|audio_bos|>"]
    content["model"]["vocab"].pop("<|audio_bos|>", None)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = read_config(FOLDER / "stage2" / "config.json")
    with pytest.raises(CheckpointError, match=r"has no token <\|audio_bos\|>"):
        load_tokenizer(tmp_path, config)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere", config)


def test_a_tokenizer_larger_than_the_model_is_refused(stage2: Path) -> None:
    shutil.copyfile(TOKENIZER, stage2 / "tokenizer.json")
    edit_config(stage2, vocab_size=390)
    with pytest.raises(CheckpointError, match="396 tokens for a vocab_size of 390"):
        load_tokenizer(stage2, read_config(stage2 / "config.json"))


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_exported_loads_again(tmp_path: Path, packed: bool) -> None:
    model = load_flexislm(FOLDER / "stage3", dtype=torch.float32)
    export_flexislm(model, TOKENIZER, tmp_path, dtype=torch.float32, packed=packed)
    again = load_flexislm(tmp_path, dtype=torch.float32)
    if packed:
        for name, weight in model.named_parameters():
            step = weight.abs().amax() / 127 + 1e-3
            assert (again.get_parameter(name) - weight).abs().max() <= step, name
    else:
        assert same_weights(model, again)
    assert again.config.thinker_hears_speech
    assert load_tokenizer(tmp_path, again.config).special.im_end == 258


def test_an_export_has_the_official_keys_and_switches(tmp_path: Path) -> None:
    model = load_flexislm(FOLDER / "stage2", dtype=torch.float32)
    export_flexislm(model, TOKENIZER, tmp_path)
    original = load_file(FOLDER / "stage2" / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert set(original) - set(written) == {"length_decoder.weight", "length_decoder.bias", "speech_delay_embeddings"}
    assert all(written[key].shape == original[key].shape for key in written)
    theirs = json.loads((FOLDER / "stage2" / "config.json").read_text())
    ours = json.loads((tmp_path / "config.json").read_text())
    assert {key for key in ours if key in theirs and ours[key] != theirs[key]} == {"torch_dtype"}
    assert "agogic" not in ours


def test_merging_adapters_does_not_let_the_thinker_hear_speech(stage2: Path, tmp_path: Path) -> None:
    path = stage2 / "config.json"
    config = json.loads(path.read_text())
    config.pop("use_combined_embedding")
    path.write_text(json.dumps(config | {"use_lora": True, "lora_alpha": 16}))
    export_flexislm(load_flexislm(stage2, dtype=torch.float32), TOKENIZER, tmp_path / "merged")
    assert not read_config(tmp_path / "merged" / "config.json").thinker_hears_speech
