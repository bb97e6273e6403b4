"""A complete official checkpoint at toy size, laid out as a user would download it."""

from __future__ import annotations

import shutil
from pathlib import Path

import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.golden.codec import TINY_CODEC, TINY_SENSEVOICE
from models.checkpoints.hub import AUDIO_ENCODER, FLOW, SENSEVOICE, VOCODER, VOICE_CODEC
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import FlexiCodec
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.vocos import Vocos, VocosConfig
from tests.support.golden import golden_file, golden_tensors

FLOW_CONFIG = FlowConfig(hidden=64, num_layers=1, num_heads=1, ffn_dim=64, mlp_dim=64, codebook_size=8**5)


def question() -> Tensor:
    """The recording [49280] at 16 kHz that the recorded runs answer."""
    return golden_tensors("flexislm", "log_mel.safetensors")["clip_a.waveform"]


def save_official(directory: Path, variant: str = "stage2", *, prompt: bool = True) -> Path:
    """`variant` and audio encoder as recorded; codec, flow decoder and vocoder of few random weights."""
    torch.manual_seed(4)
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden_file("flexislm", f"{variant}/{name}"), directory)
    shutil.copy(golden_file("flexislm", "tokenizer/tokenizer.json"), directory)
    shutil.copytree(golden_file("flexislm", "audio_encoder_64/config.json").parent, directory / AUDIO_ENCODER.folder)
    _save_codec(directory / VOICE_CODEC.folder, directory / SENSEVOICE.folder)
    _save(_lively(Voicebox(FLOW_CONFIG)), directory / FLOW.folder / FLOW.files[0], "voicebox_model.")
    vocoder = _lively(Vocos(VocosConfig(dim=32, hidden=64, num_layers=1)))
    _save(vocoder, directory / VOCODER.folder / VOCODER.files[0])
    if prompt:
        speech = golden_tensors("flexicodec", "audio.safetensors")["b_16k"]
        soundfile.write(directory / "prompt.wav", speech, 16_000)
    return directory


def _save_codec(folder: Path, semantic_folder: Path) -> None:
    folder.mkdir()
    semantic_folder.mkdir()
    front_end = SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.ones(FEATURES))
    state = FlexiCodec(TINY_CODEC, TINY_SENSEVOICE, front_end).state_dict()
    inner = "semantic_model."
    semantic = {key.removeprefix(inner): value for key, value in state.items() if key.startswith(inner)}
    torch.save(semantic, semantic_folder / "model.pt")
    values = " ".join(["1.0"] * FEATURES)
    vectors = (f"<{tag}> 560 560\n<LearnRateCoef> 0 [ {values} ]\n" for tag in ("AddShift", "Rescale"))
    (semantic_folder / "am.mvn").write_text("".join(vectors))
    weights, config = VOICE_CODEC.files
    save_file({key: value for key, value in state.items() if inner not in key}, folder / weights)
    lines = (f"  {name}: {_yaml(getattr(TINY_CODEC, name))}" for name in TINY_CODEC.__struct_fields__)
    (folder / config).write_text("model:\n" + "\n".join(lines) + "\n")


def _save(module: nn.Module, path: Path, prefix: str = "") -> None:
    save_file({prefix + key: value.contiguous() for key, value in module.state_dict().items()}, path)


def _lively(module: nn.Module) -> nn.Module:
    """Weights large enough that every input matters to the output."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.6 / parameter.shape[-1] ** 0.5)
    return module


def _yaml(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
