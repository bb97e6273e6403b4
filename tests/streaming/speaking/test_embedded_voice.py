"""The shipped voice: it streams what it says at once, its codes carry the sound, and its files are small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoints.voice_files import load_codec, load_flow, load_vocoder
from streaming.flexicodec.codec import SpeechCodec
from streaming.speaking.flow_decoder import FlowDecoder, FlowDials
from streaming.speaking.vocos import Vocos

EMBEDDED = Path(__file__).resolve().parents[3] / "models" / "embedded"
FILES = ("codec", "flow", "vocoder")


@pytest.fixture(scope="module")
def voice() -> tuple[SpeechCodec, FlowDecoder, Vocos]:
    return (
        load_codec(EMBEDDED / "codec.safetensors"),
        FlowDecoder(load_flow(EMBEDDED / "flow.safetensors"), FlowDials()).eval(),
        load_vocoder(EMBEDDED / "vocoder.safetensors"),
    )


def some_codes(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1600, (9,), generator=generator), torch.randint(1, 5, (9,), generator=generator)


def stream(flow: FlowDecoder, vocoder: Vocos, codes: Tensor, durations: Tensor) -> Tensor:
    frames, mel_state, sound_state = flow.frames(), flow.initial_state(1), vocoder.initial_state(1)
    made = []
    for code, duration in zip(codes.tolist(), durations.tolist(), strict=True):
        frames.push(code, duration)
    frames.end()
    while (chunk := frames.take()) is not None:
        mel, mel_state = flow.step(chunk, mel_state)
        sound, sound_state = vocoder.step(mel[:, : 4 * chunk.real_frames(flow.look_ahead_frames)[0]], sound_state)
        made.append(sound)
    return torch.cat([*made, vocoder.flush(sound_state)[0]], 1)[0, vocoder.delay_samples :]


def test_streamed_speech_is_the_speech_made_at_once(voice: tuple[SpeechCodec, FlowDecoder, Vocos]) -> None:
    _, flow, vocoder = voice
    codes, durations = some_codes(1)
    with torch.inference_mode():
        whole = vocoder(flow(codes[None], durations[None]))[0]
        streamed = stream(flow, vocoder, codes, durations)
    assert len(whole) == 1920 * int(durations.sum())
    torch.testing.assert_close(streamed, whole, rtol=1e-3, atol=1e-4)


def test_other_codes_make_another_sound_and_silence_is_not_the_answer(
    voice: tuple[SpeechCodec, FlowDecoder, Vocos],
) -> None:
    _, flow, vocoder = voice
    (codes, durations), (others, _) = some_codes(1), some_codes(2)
    with torch.inference_mode():
        one, two = (vocoder(flow(c[None], durations[None]))[0] for c in (codes, others))
    assert one.square().mean().sqrt() > 0.003
    assert (one - two).square().mean().sqrt() > 0.3 * one.square().mean().sqrt()
    assert one.abs().max() <= 1.5


def test_every_code_has_a_vector_and_the_decoder_knows_every_code(
    voice: tuple[SpeechCodec, FlowDecoder, Vocos],
) -> None:
    codec, flow, _ = voice
    size = codec.semantic_vq.fsq.codebook_size
    assert flow.voicebox.config.codebook_size == size == 1600
    with torch.inference_mode():
        vectors = codec.vectors(torch.arange(size))
    assert torch.unique(vectors, dim=0).shape[0] == size


def test_the_voice_fits_the_repository() -> None:
    assert sum((EMBEDDED / f"{name}.safetensors").stat().st_size for name in FILES) < 14_000_000
