"""Non-causal weights chunk by chunk: the one-shot result where it can be had, bounded windows where not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from streaming.flow import FlowConfig, Voicebox
from streaming.flow_decoder import SpeechCodeError
from streaming.infill import InfillDecoder, InfillDials, VocosWindow, VoicePrompt
from streaming.vocos import Vocos, VocosConfig
from tests.support.golden import golden_tensors, relative_error, weights

FEW = InfillDials(steps=3, first_chunk_frames=3, look_ahead_frames=2, left_context_frames=6, largest_chunk_frames=8)


@pytest.fixture(scope="module")
def voicebox() -> Voicebox:
    golden = golden_tensors("flexicodec", "voicebox_tiny.safetensors")
    module = Voicebox(FlowConfig(64, 3, 4, 256, 256, 256)).eval()
    state = {key.removeprefix("voicebox_model."): value for key, value in weights(golden).items()}
    module.load_state_dict(state)
    return module


@pytest.fixture(scope="module")
def vocos() -> Vocos:
    module = Vocos(VocosConfig(64, 128, 3)).eval()
    module.load_state_dict(weights(golden_tensors("flexicodec", "vocos_tiny.safetensors")))
    return module


def prompt(frames: int) -> VoicePrompt:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(256, (frames,), generator=generator)
    return VoicePrompt(codes, torch.ones_like(codes), torch.randn(4 * frames + 2, 128, generator=generator))


def decode(decoder: InfillDecoder, codes: list[tuple[int, int]]) -> list[Tensor]:
    chunks = []
    for code in codes:
        decoder.push(*code)
        while (mel := decoder.take()) is not None:
            chunks.append(mel)
    decoder.end()
    while (mel := decoder.take()) is not None:
        chunks.append(mel)
    return chunks


CODES = [(n * 37 % 256, 1 + n % 4) for n in range(14)]
FRAMES = sum(duration for _, duration in CODES)


def test_one_chunk_is_the_one_shot_solution(voicebox: Voicebox) -> None:
    dials = dataclasses.replace(FEW, first_chunk_frames=60, largest_chunk_frames=60)
    voice = prompt(5)
    decoder = InfillDecoder(voicebox, dials, voice)
    (mel,) = decode(decoder, CODES)
    with torch.inference_mode():
        spoken = torch.tensor([code for code, duration in CODES for _ in range(duration)])
        codes = torch.cat((voice.codes, spoken))[None]
        condition = voicebox.condition(codes, torch.ones_like(codes))
        noise = decoder._noise[: 4 * FRAMES][None]
        whole = voicebox.solve(condition, noise, steps=3, prompt=voice.mel[None, :20], guidance=2.0, rescale=0.75)
    torch.testing.assert_close(mel, whole[0])


@pytest.mark.parametrize("with_prompt", [True, False])
def test_chunks_cover_every_frame_and_grow(voicebox: Voicebox, with_prompt: bool) -> None:
    chunks = decode(InfillDecoder(voicebox, FEW, prompt(5) if with_prompt else None), CODES)
    sizes = [len(chunk) // 4 for chunk in chunks]
    assert sum(sizes) == FRAMES
    assert sizes[0] == 3 and sizes[1] == 4 and max(sizes) == 8


def test_chunks_depend_on_what_was_made_before_them(voicebox: Voicebox) -> None:
    other = [(200, CODES[0][1]), *CODES[1:]]
    one, two = (torch.cat(decode(InfillDecoder(voicebox, FEW, prompt(5)), codes)) for codes in (CODES, other))
    assert (one[12:28] - two[12:28]).abs().max() > 1e-4


def test_nothing_waits_for_more_than_the_look_ahead(voicebox: Voicebox) -> None:
    decoder = InfillDecoder(voicebox, FEW, None)
    for _ in range(FEW.first_chunk_frames + FEW.look_ahead_frames - 1):
        decoder.push(1, 1)
        assert decoder.take() is None
    decoder.push(1, 1)
    assert decoder.take() is not None


def test_impossible_codes_are_refused(voicebox: Voicebox) -> None:
    with pytest.raises(SpeechCodeError, match="0 to 255"):
        InfillDecoder(voicebox, FEW, None).push(256, 1)


@pytest.mark.parametrize("piece", [1, 4, 29])
def test_windowed_vocoder_is_exact_with_the_full_context(vocos: Vocos, piece: int) -> None:
    mel = torch.randn(93, 128, generator=torch.Generator().manual_seed(7))
    window = VocosWindow(vocos, VocosWindow.exact_context(vocos))
    sound = torch.cat([*(window.push(part) for part in mel.split(piece)), window.flush()])
    with torch.inference_mode():
        torch.testing.assert_close(sound, vocos(mel[None])[0], rtol=1e-4, atol=1e-5)


def test_a_shorter_context_is_an_approximation_of_known_kind(vocos: Vocos) -> None:
    mel = golden_tensors("flexicodec", "vocos_tiny.safetensors")["in.mel"][0].T
    with torch.inference_mode():
        whole = vocos(mel[None])[0]
    errors = []
    for context in (3, 6, 10):
        window = VocosWindow(vocos, context)
        sound = torch.cat([*(window.push(part) for part in mel.split(5)), window.flush()])
        assert len(sound) == len(whole)
        errors.append(relative_error(sound, whole))
    assert errors[0] > errors[1] > errors[2] > 0
