"""Official FlexiCodec files load under every prefix they come with, and damaged or foreign files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.golden.codec import TINY_CODEC, TINY_SENSEVOICE
from models.checkpoints.flexicodec_checkpoint import (
    CodecFiles,
    load_flexicodec,
    load_vocos,
    load_voicebox,
    read_codec_config,
)
from models.errors import CheckpointError
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import FlexiCodec
from tests.support.golden import golden_tensors, weights


@pytest.fixture(scope="module")
def codec() -> FlexiCodec:
    torch.manual_seed(4)
    front_end = SenseVoiceFrontEnd(torch.full((FEATURES,), -0.5), torch.full((FEATURES,), 2.0))
    return FlexiCodec(TINY_CODEC, TINY_SENSEVOICE, front_end).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def official(codec: FlexiCodec) -> dict[str, Tensor]:
    """The codec as the original code would save it."""
    convolutions = frozenset(
        f"{name}.weight"
        for name, module in codec.named_modules()
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d)
        and not name.endswith(("dwconv", "fsmn_block"))
    )
    state: dict[str, Tensor] = {}
    for key, tensor in codec.state_dict().items():
        if key in convolutions:
            state[f"{key}_g"] = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
            state[f"{key}_v"] = tensor
        else:
            state[key] = tensor
    return {**state, "semantic_mean": torch.zeros(1), "semantic_std": torch.ones(1)}


@pytest.fixture
def cmvn(tmp_path: Path) -> Path:
    def vector(tag: str, value: str) -> str:
        return f"<{tag}> 560 560\n<LearnRateCoef> 0 [ {' '.join([value] * FEATURES)} ]\n"

    path = tmp_path / "am.mvn"
    path.write_text(vector("AddShift", "-0.5") + vector("Rescale", "2.0"))
    return path


def split(official: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    semantic = {
        key.removeprefix("semantic_model."): value
        for key, value in official.items()
        if key.startswith("semantic_model.")
    }
    return {key: value for key, value in official.items() if not key.startswith("semantic_model.")}, semantic


@pytest.mark.parametrize("prefix", ["", "flexicodec_model.", "dualcodec_model."])
def test_loads_a_codec_with_sensevoice_inside(
    codec: FlexiCodec, official: dict[str, Tensor], cmvn: Path, tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "codec.safetensors"
    other = {"voicebox_model.cond_emb.weight": torch.zeros(1)} if prefix else {}
    save_file({prefix + key: value.contiguous() for key, value in official.items()} | other, path)
    loaded = load_flexicodec(CodecFiles(path, cmvn), TINY_CODEC)
    # Folding the gains back in rounds the weights, and codes of random ones hang on less than that: the weights are
    # compared, and the sound of equal codes.
    torch.testing.assert_close(loaded.state_dict(), codec.state_dict(), rtol=1e-5, atol=1e-7)
    codes = loaded.encode(golden_tensors("flexicodec", "audio.safetensors")["b_16k"], 6.25, 3)
    assert int(codes.durations.sum()) == 23 and len(codes.semantic) == 12
    torch.testing.assert_close(loaded.decode(codes), codec.decode(codes), rtol=1e-3, atol=1e-5)


def test_loads_half_precision_with_sensevoice_apart(official: dict[str, Tensor], cmvn: Path, tmp_path: Path) -> None:
    codec, semantic = split(official)
    save_file({key: value.half().contiguous() for key, value in codec.items()}, tmp_path / "codec.safetensors")
    extra = {"ctc.ctc_lo.weight": torch.zeros(2, 2), "encoder.tp_norm.weight": torch.zeros(2)}
    wrapped = {f"module.{key}": value for key, value in (semantic | extra).items()}
    torch.save({"state_dict": wrapped}, tmp_path / "model.pt")
    files = CodecFiles(tmp_path / "codec.safetensors", cmvn, tmp_path / "model.pt")
    loaded = load_flexicodec(files, TINY_CODEC)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])


def test_counts_the_layers_and_reads_the_yaml(official: dict[str, Tensor], cmvn: Path, tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in official.items()}, tmp_path / "codec.safetensors")
    yaml = tmp_path / "config.yaml"
    lines = [
        f"  {key}: {list(value) if isinstance(value, tuple) else value}"
        for key, value in ((name, getattr(TINY_CODEC, name)) for name in TINY_CODEC.__struct_fields__)
        if key != "transformer_num_layers"
    ]
    yaml.write_text("train:\n  lr: 1.0\nmodel:\n" + "\n".join(lines) + "\n")
    loaded = load_flexicodec(CodecFiles(tmp_path / "codec.safetensors", cmvn, config=yaml))
    assert loaded.config == TINY_CODEC


def test_names_what_is_wrong(official: dict[str, Tensor], cmvn: Path, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"

    def load(change: dict[str, Tensor], *without: str) -> None:
        state = {key: value.contiguous() for key, value in (official | change).items() if key not in without}
        save_file(state, path)
        load_flexicodec(CodecFiles(path, cmvn), TINY_CODEC)

    with pytest.raises(CheckpointError, match=r"codec\.safetensors lacks dac\.decoder\.model\.7\.bias"):
        load({}, "dac.decoder.model.7.bias")
    with pytest.raises(CheckpointError, match=r"1 tensors nobody knows, such as dac\.decoder\.model\.9"):
        load({"dac.decoder.model.9.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"shape \[2\] instead of \[1\]"):
        load({"dac.decoder.model.7.bias": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds no FlexiCodec"):
        load({}, "semantic_aggregator.query_embedding")
    load({"repa_mlp.0.weight": torch.zeros(1)})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        load_flexicodec(CodecFiles(path, cmvn), TINY_CODEC)
    (tmp_path / "model.pt").write_bytes(b"nothing")
    save_file({key: value.contiguous() for key, value in split(official)[0].items()}, path)
    with pytest.raises(CheckpointError, match=r"model\.pt is damaged"):
        load_flexicodec(CodecFiles(path, cmvn, tmp_path / "model.pt"), TINY_CODEC)
    with pytest.raises(CheckpointError, match="holds no SenseVoice"):
        load_flexicodec(CodecFiles(path, cmvn), TINY_CODEC)


def test_refuses_a_configuration_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  encoder_rates: [4, 4, 5, 8, 2]\n  semantic_model_type: w2v\n")
    with pytest.raises(CheckpointError, match="semantic_model_type is 'w2v'"):
        read_codec_config(path)
    path.write_text("model: {}\n")
    with pytest.raises(CheckpointError, match="no section with encoder_rates"):
        read_codec_config(path)


def test_loads_voicebox_under_its_prefix(tmp_path: Path) -> None:
    golden = golden_tensors("flexicodec", "voicebox_tiny.safetensors")
    state = {f"voicebox_model.{key}": value for key, value in weights(golden).items()}
    save_file(state | {"repa_projection.0.weight": torch.zeros(1)}, tmp_path / "nartts.safetensors")
    module = load_voicebox(tmp_path / "nartts.safetensors", head_dim=16)
    torch.testing.assert_close(module.condition(golden["codes"], torch.ones_like(golden["codes"])), golden["cond"])


def test_vocos_of_another_mel_size_is_refused(tmp_path: Path) -> None:
    golden = golden_tensors("flexicodec", "vocos_tiny.safetensors")
    path = tmp_path / "vocos.safetensors"
    save_file(weights(golden), path)
    torch.testing.assert_close(load_vocos(path)(golden["in.mel"].transpose(1, 2)), golden["out.waveform"])
    save_file(weights(golden) | {"backbone.embed.weight": torch.zeros(64, 100, 7)}, path)
    with pytest.raises(CheckpointError, match="vocoder for 100 mel bins"):
        load_vocos(path)
