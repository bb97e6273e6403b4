"""What the assembled codec promises beyond equality with the original: rates, lengths, prefixes, clear refusals."""

from __future__ import annotations

import pytest
import torch

from benchmarks.golden.codec import TINY_CODEC, TINY_SENSEVOICE
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import (
    AudioTooShortError,
    FlexiCodec,
    FlexiCodecConfig,
    SpeechCodes,
    UnsupportedCodecError,
)
from tests.support.golden import golden_tensors

SPEECH = golden_tensors("flexicodec", "audio.safetensors")["b_16k"]


@pytest.fixture(scope="module")
def codec() -> FlexiCodec:
    torch.manual_seed(1)
    front_end = SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.ones(FEATURES))
    return FlexiCodec(TINY_CODEC, TINY_SENSEVOICE, front_end).eval().requires_grad_(False)


@pytest.mark.parametrize("rate_hz", [12.5, 8.0, 6.25, 5.0, 4.0])
def test_codes_at_the_requested_rate(codec: FlexiCodec, rate_hz: float) -> None:
    codes = codec.encode(SPEECH, rate_hz, quantizers=5)
    frames = int(codes.durations.sum())
    assert frames == 23  # 30,000 samples: 31 stacked frames, 23 at 12.5 Hz
    assert len(codes.semantic) == len(codes.durations) == round(frames * rate_hz / 12.5)
    assert 1 <= int(codes.durations.min()) <= int(codes.durations.max()) <= 8


def test_a_rate_below_the_longest_group_gives_the_longest_groups(codec: FlexiCodec) -> None:
    assert codec.encode(SPEECH, 1.1, quantizers=1).durations.tolist() == [8, 8, 7]


def test_threshold_one_never_merges(codec: FlexiCodec) -> None:
    alike = torch.ones(9, 64)
    assert codec.merge(alike, 1.0).tolist() == [1] * 9
    assert codec.merge(alike, 0.9).tolist() == [8, 1]


def test_fewer_quantizers_give_a_prefix(codec: FlexiCodec) -> None:
    full, few, semantic = (codec.encode(SPEECH, 6.25, quantizers=count) for count in (5, 3, 1))
    assert full.acoustic is not None and few.acoustic is not None
    assert torch.equal(full.acoustic[:2], few.acoustic)
    assert torch.equal(full.semantic, few.semantic)
    assert semantic.acoustic is None


def test_sound_has_the_length_of_the_durations(codec: FlexiCodec) -> None:
    codes = SpeechCodes(torch.tensor([5, 32_767, 0]), torch.randint(64, (4, 3)), torch.tensor([2, 1, 4]))
    assert codec.decode(codes).shape == (1280 * 7 - 16,)


def test_too_little_audio_is_refused(codec: FlexiCodec) -> None:
    with pytest.raises(AudioTooShortError, match="at least 85 ms"):
        codec.encode(SPEECH[:1359], quantizers=5)
    assert len(codec.encode(SPEECH[:1360], quantizers=5).semantic) == 1


@pytest.mark.parametrize("quantizers", [0, 6])
def test_impossible_numbers_of_quantizers_are_refused(codec: FlexiCodec, quantizers: int) -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        codec.encode(SPEECH, quantizers=quantizers)


def test_unsupported_architectures_are_refused_by_name() -> None:
    assert FlexiCodecConfig.from_official({"encoder_dim": 4, "quantizer_dropout": 1.0}).encoder_dim == 4
    with pytest.raises(UnsupportedCodecError, match="is_causal is True"):
        FlexiCodecConfig.from_official({"is_causal": True})
