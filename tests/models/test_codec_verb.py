"""`agogic codec`, from the command line, with small networks of our own and of the official layout."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from agent.cli.codec import app
from benchmarks.golden.codec import TINY_CODEC, TINY_SENSEVOICE
from models.checkpoints.voice_files import save_network
from streaming.flexicodec.codec import CodecConfig, SpeechCodec
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import FlexiCodec
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.unmerge import UnmergeConfig
from streaming.speaking.vocos import Vocos, VocosConfig
from tests.support.golden import golden_tensors
from tests.support.report_shape import shaped

SPEECH = golden_tensors("flexicodec", "audio.safetensors")["b_16k"].numpy()
FRAMES = 24  # 30,000 samples, filled up to whole frames


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("embedded")
    codec = CodecConfig(
        dim=32, vector_dim=32, num_heads=2, ffn_dim=32, encoder_layers=1, aggregator_layers=1, levels=(8, 5)
    )
    unmerge = UnmergeConfig(32, 1, 2, 32, 8, 2, 1)
    flow = FlowConfig(32, 1, 2, 32, 32, codebook_size=40, chunk_frames=16, context_chunks=2, unmerge=unmerge)
    vocoder = VocosConfig(dim=32, hidden=32, num_layers=1, causal=True, look_ahead_frames=2)
    save_network(SpeechCodec(codec), codec, folder / "codec.safetensors")
    save_network(Voicebox(flow), flow, folder / "flow.safetensors")
    save_network(Vocos(vocoder), vocoder, folder / "vocoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("official")
    codec = FlexiCodec(TINY_CODEC, TINY_SENSEVOICE, SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.ones(FEATURES)))
    state = codec.state_dict()
    semantic = {
        key.removeprefix("semantic_model."): value for key, value in state.items() if key.startswith("semantic_model.")
    }
    save_file(
        {key: value for key, value in state.items() if "semantic_model." not in key},
        folder / "12hz_v1_half.safetensors",
    )
    torch.save(semantic, folder / "model.pt")
    values = " ".join(["1.0"] * FEATURES)
    (folder / "am.mvn").write_text(
        f"<AddShift> 560 560\n<LearnRateCoef> 0 [ {values} ]\n<Rescale> 560 560\n<LearnRateCoef> 0 [ {values} ]\n"
    )
    lines = (f"  {name}: {_yaml(getattr(TINY_CODEC, name))}" for name in TINY_CODEC.__struct_fields__)
    (folder / "12hz_v1_half_config.yaml").write_text("model:\n" + "\n".join(lines) + "\n")
    return folder


def _yaml(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "speech.wav", SPEECH, 16_000)
    return tmp_path / "speech.wav"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_embedded_there_and_back(embedded: Path, sound: Path, tmp_path: Path) -> None:
    codes, back, picture = tmp_path / "a.agc", tmp_path / "back.wav", tmp_path / "tokens.svg"
    done = run("encode", sound, codes, "--model", embedded, "--rate", 6.25, "--plot", picture, "--json")
    assert done.exit_code == 0, done.output
    report = shaped("codec", json.loads(done.stdout))
    assert report["tokens"] == FRAMES // 2
    assert report["realised_hz"] == 6.25
    assert report["quantizers"] == 1
    assert report["bits_per_second"] == pytest.approx(6.25 * (3 + 6), abs=0.1)
    assert report["bytes"] == codes.stat().st_size
    done = run("decode", codes, back, "--json")
    assert done.exit_code == 0, done.output
    info = soundfile.info(back)
    assert (info.samplerate, info.frames) == (24_000, len(SPEECH) * 3 // 2), "as long as what went in"
    drawing = ET.fromstring(picture.read_text())
    said = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"speech.wav", "kHz", "frames", "seconds", "a token begins", "8", "0", "1"} <= set(said)
    (image,) = drawing.iter("{http://www.w3.org/2000/svg}image")
    width, height, pixels = _png(base64.b64decode(image.attrib["href"].partition(",")[2]))
    assert width == FRAMES * 16
    starts = (pixels[:256] == np.array([110, 235, 255])).all(axis=2).all(axis=0)
    assert starts.sum() == FRAMES // 2
    assert height == pixels.shape[0]


def _png(data: bytes) -> tuple[int, int, np.ndarray]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    size = int.from_bytes(data[33:37])
    assert data[37:41] == b"IDAT"
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(height, 1 + 3 * width)
    return width, height, lines[:, 1:].reshape(height, width, 3)


def test_official_there_and_back(official: Path, sound: Path, tmp_path: Path) -> None:
    codes, back = tmp_path / "a.agc", tmp_path / "back.wav"
    done = run("encode", sound, codes, "--model", official, "--threshold", 1.0, "--quantizers", 3, "--json")
    assert done.exit_code == 0, done.output
    report = shaped("codec", json.loads(done.stdout))
    assert (report["tokens"], report["realised_hz"], report["quantizers"]) == (23, 12.5, 3)
    assert report["bits_per_second"] == pytest.approx(12.5 * (3 + 15 + 2 * 6), abs=0.1)
    done = run("decode", codes, back)
    assert done.exit_code == 0, done.output
    assert "12.50 Hz" in done.stdout
    info = soundfile.info(back)
    assert (info.samplerate, info.frames) == (16_000, len(SPEECH))


def test_refusals_are_one_sentence(embedded: Path, official: Path, sound: Path, tmp_path: Path) -> None:
    codes, silence, picture = tmp_path / "a.agc", tmp_path / "short.wav", tmp_path / "no" / "a.svg"
    soundfile.write(silence, np.zeros(300), 16_000)
    assert run("encode", sound, codes, "--model", embedded).exit_code == 0
    for arguments, message in (
        (("encode", sound, codes, "--model", embedded, "--quantizers", 2), "has 1 quantizers, not 2"),
        (("encode", silence, codes, "--model", embedded), "at least 80 ms"),
        (("encode", silence, codes, "--model", official), "at least 85 ms"),
        (("encode", codes, tmp_path / "b.agc", "--model", embedded), "no audio that can be read"),
        (("encode", codes, codes, "--model", embedded), "write to another file"),
        (("encode", sound, tmp_path / "b.mp3", "--model", embedded), "call it b.agc"),
        (("decode", codes, tmp_path / "b.flac"), "call it b.wav"),
        (("encode", sound, codes, "--model", tmp_path / "none"), "is no model"),
        (("encode", sound, codes, "--model", embedded, "--plot", picture), "cannot write"),
        (("decode", sound, tmp_path / "b.wav"), "is no .agc file"),
        (("decode", codes, tmp_path / "b.wav", "--model", official), "encoded by other weights"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    whole = codes.read_bytes()
    for at in (0, 5, 20, len(whole) // 2, len(whole) - 6, len(whole) - 1):
        codes.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        done = run("decode", codes, tmp_path / "b.wav")
        assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1, "a flipped bit is never heard"
    done = run("encode", sound, codes, "--rate", 5, "--threshold", 0.9)
    assert done.exit_code == 2
    assert "not both" in done.stderr
