"""FlexiCodec-TTS: whole and step by step agree, lengths and refusals."""

from __future__ import annotations

import pytest
import torch

from benchmarks.golden.speech import TINY_ARTTS
from streaming.flexicodec.artts import ArSampling, ArTts, TimedCodes
from streaming.flexicodec.relative_encoder import RelativeEncoder

NO_PROMPT = TimedCodes([], [])


@pytest.fixture(scope="module")
def model() -> ArTts:
    torch.manual_seed(2)
    return ArTts(TINY_ARTTS).eval().requires_grad_(False)


@pytest.mark.parametrize("sizes", [[11], [1] * 11, [4, 0, 6, 1]])
def test_any_chunking_gives_the_whole(sizes: list[int]) -> None:
    torch.manual_seed(0)
    module = RelativeEncoder(TINY_ARTTS.language).requires_grad_(False)
    for layer in module.encoders:
        torch.nn.init.normal_(layer.self_attn.pos_bias_u)
        torch.nn.init.normal_(layer.self_attn.pos_bias_v)
    x = torch.randn(2, 11, 64)
    state = module.initial_state(2, 11)
    parts = []
    for piece in x.split(sizes, dim=1):
        y, state = module.step(piece, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), module(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="12 positions do not fit"):
        module.step(x[:, :1], state)


def test_lengths_follow_the_text(model: ArTts) -> None:
    longest = model.generate([3, 4, 5, 6], 0.91, NO_PROMPT, ArSampling(top_k=1, max_length_ratio=3.0))
    assert len(longest.codes) == len(longest.durations) <= 12


def test_stop_is_refused_until_the_least_length(model: ArTts) -> None:
    stopping = ArTts(TINY_ARTTS).eval().requires_grad_(False)
    stopping.load_state_dict(model.state_dict())
    stopping.llm_decoder.bias[TINY_ARTTS.speech_vocabulary] = 1e4
    assert stopping.generate([1, 2, 3, 4], 0.86, NO_PROMPT, ArSampling()).codes == []
    held = stopping.generate([1, 2, 3, 4], 0.86, NO_PROMPT, ArSampling(top_k=1, min_length_ratio=0.5))
    assert len(held.codes) == 2
    assert TINY_ARTTS.speech_vocabulary not in held.codes


def test_sampling_is_seeded(model: ArTts) -> None:
    def speak(seed: int) -> TimedCodes:
        sampling = ArSampling(max_length_ratio=5.0)
        return model.generate([1, 2, 3], 0.86, NO_PROMPT, sampling, torch.Generator().manual_seed(seed))

    assert speak(1) == speak(1)
    assert speak(1) != speak(2)


def test_other_frame_rates_are_refused(model: ArTts) -> None:
    with pytest.raises(ValueError, match=r"0\.9 is not one of the model's: 0\.86, 0\.91"):
        model.generate([1], 0.9, NO_PROMPT, ArSampling())
