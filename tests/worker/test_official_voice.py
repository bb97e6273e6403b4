"""The official models' voice with toy weights: prompts from recordings, sound of the right length, prompts cached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import worker.voices.official
from benchmarks.golden.codec import TINY_CODEC, TINY_SENSEVOICE
from benchmarks.golden.speech import TINY_FLOW
from models.checkpoints.flexicodec_checkpoint import CodecFiles, load_voicebox
from models.checkpoints.hub import Companions
from models.errors import CheckpointError
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import FlexiCodec
from streaming.speaking.flow import Voicebox
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice
from streaming.speaking.vocos import Vocos, VocosConfig
from tests.support.golden import golden_file, golden_tensors, weights
from worker.voices.official import OfficialVoice, load_official_voice, make_prompt

SPEECH = golden_tensors("flexicodec", "audio.safetensors")["b_16k"]
FLOW = golden_tensors("flexicodec", "voicebox_tiny.safetensors")
VOCOS = golden_tensors("flexicodec", "vocos_tiny.safetensors")
DIALS = InfillDials(steps=2, chunk_frames=(2, 5), look_ahead_frames=2, context_frames=6)


@pytest.fixture(scope="module")
def voice() -> OfficialVoice:
    flow, vocoder = Voicebox(TINY_FLOW), Vocos(VocosConfig(dim=64, hidden=128, num_layers=3))
    flow.load_state_dict(weights(FLOW))
    vocoder.load_state_dict(weights(VOCOS))
    return OfficialVoice(InfillDecoder(flow, DIALS), vocoder, PromptVoice(FLOW["codes"][0, :13], FLOW["prompt"][0]))


def codec() -> FlexiCodec:
    torch.manual_seed(3)
    return FlexiCodec(
        TINY_CODEC, TINY_SENSEVOICE, SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.ones(FEATURES))
    ).eval()


def test_sound_comes_in_chunks_and_adds_up(voice: OfficialVoice) -> None:
    stream = voice.begin()
    pieces = []
    for code, duration in [(7, 3), (200, 1), (31, 8), (5, 2)]:
        stream.push(code, duration)
        while stream.ready:
            pieces += voice.render([stream])
    assert stream.samples > 0
    stream.end()
    while stream.ready:
        pieces += voice.render([stream])
    assert stream.finished
    assert sum(map(len, pieces)) == stream.samples == 14 * 1920
    assert stream.flow_ms > 0 and stream.vocoder_ms > 0


def test_an_answer_without_codes_is_silent(voice: OfficialVoice) -> None:
    stream = voice.begin()
    stream.end()
    assert stream.ready
    assert len(voice.render([stream])[0]) == 0
    assert stream.finished and not stream.ready


def test_a_prompt_is_as_long_as_its_recording() -> None:
    prompt = make_prompt(codec(), SPEECH)
    assert len(prompt.codes) == 23
    mel = golden_tensors("flexicodec", "mel24k.safetensors")["b.mel_normalised"].T
    torch.testing.assert_close(prompt.mel, mel[:92], rtol=1e-3, atol=1e-4)
    with pytest.raises(CheckpointError, match="record 3 to 10 s"):
        make_prompt(codec(), SPEECH[:8000])


def test_the_prompt_is_made_once_per_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = weights(FLOW)
    flow["cond_emb.weight"] = flow["cond_emb.weight"].repeat(128, 1)  # as many codes as the toy codec has
    save_file(flow, tmp_path / "nartts.safetensors")
    save_file(weights(VOCOS), tmp_path / "vocos.safetensors")
    files = CodecFiles(golden_file("flexicodec", "frontend.safetensors"), tmp_path / "am.mvn")
    companions = Companions(tmp_path, files, tmp_path / "nartts.safetensors", tmp_path / "vocos.safetensors")
    loads = []
    monkeypatch.setattr(worker.voices.official, "load_flexicodec", lambda files: loads.append(files) or codec())
    monkeypatch.setattr(
        worker.voices.official, "load_voicebox", lambda path, dtype: load_voicebox(path, head_dim=16, dtype=dtype)
    )
    cache = tmp_path / "cache" / "prompt.safetensors"

    def load(audio: torch.Tensor) -> PromptVoice:
        return load_official_voice(companions, audio, DIALS, prompt_cache=cache).prompt

    first, again = load(SPEECH), load(SPEECH)
    assert len(loads) == 1
    assert torch.equal(first.codes, again.codes) and torch.equal(first.mel, again.mel)
    load(SPEECH[2000:])
    assert len(loads) == 2
    cache.write_bytes(b"rubbish")
    load(SPEECH)
    assert len(loads) == 3
