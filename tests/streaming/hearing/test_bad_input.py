"""What no microphone sends and no caller should ask for: every streaming module answers or says what is wrong, and
none of them keeps more the longer it runs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.golden.files import COMMITTED, Golden
from benchmarks.streams.look_ahead import tiny_sensevoice
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.sensevoice_chunks import ChunkDials, ChunkedSenseVoice
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig
from streaming.hearing.log_mel import StreamingWhisperMel, whisper_log_mel
from streaming.hearing.omni_encoder import OmniEncoder, OmniEncoderConfig
from streaming.hearing.speech_mel import SpeechMel
from streaming.layers.module import StreamingModule
from streaming.layers.transformer import ProjectedTransformer, TransformerConfig
from streaming.merging.causal_merger import CausalMerger
from streaming.merging.merger import InterleavedMergingTransformer
from streaming.merging.rate_control import RateController, RateError
from streaming.speaking.vocos import Vocos, VocosConfig

WIDTH, BASE_HZ, MAX_GROUP = 16, 25.0, 16
MEL_PER_PIECE = 1000
FRONT_ENDS = [SpeechMel(), StreamingWhisperMel(), SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.ones(FEATURES))]
GARBAGE = st.sampled_from([math.nan, math.inf, -math.inf, 1e38, -1e38, 1.0, -1.0, 0.0])


@pytest.fixture(scope="module")
def encoder() -> BlockCausalEncoder:
    torch.manual_seed(0)
    return BlockCausalEncoder(
        EncoderConfig(hidden_size=WIDTH, layers=2, heads=2, feed_forward=24, left_frames=16, pieces=7, middle_layer=1)
    ).eval()


@pytest.fixture(scope="module")
def merger() -> CausalMerger:
    torch.manual_seed(0)
    config = TransformerConfig(WIDTH, WIDTH, 2, 1, 24, WIDTH, "causal", 12)
    merging = InterleavedMergingTransformer(config).requires_grad_(False)
    return CausalMerger(merging, nn.Identity(), RateController(BASE_HZ, MAX_GROUP))


def held_bytes(state: object) -> int:
    """Memory that a state keeps alive, whatever part of it is in use."""
    if isinstance(state, Tensor):
        return state.untyped_storage().nbytes()
    if isinstance(state, tuple):
        return sum(map(held_bytes, state))
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return sum(held_bytes(getattr(state, field.name)) for field in dataclasses.fields(state))
    return len(state) if hasattr(state, "__len__") else 0  # type: ignore[arg-type]


@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda module: type(module).__name__)
@settings(max_examples=10, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 6000), GARBAGE), max_size=30), cut=st.integers(0, 6400))
def test_samples_that_are_no_sound_leave_the_features_finite(
    front_end: StreamingModule[object], places: list[tuple[int, float]], cut: int
) -> None:
    audio = torch.randn(1, 6400, generator=torch.Generator().manual_seed(1)) * 0.1
    for place, value in places:
        audio[:, place : place + 40] = value
    state, parts = front_end.initial_state(1), []
    for piece in audio.split([cut, 6400 - cut], dim=1):
        features, state = front_end.step(piece, state)
        parts.append(features)
    features = torch.cat((*parts, front_end.flush(state)[0]), dim=1)
    assert features.isfinite().all()
    torch.testing.assert_close(features, front_end(audio), rtol=1e-4, atol=1e-4)


def test_what_is_no_number_is_heard_as_silence() -> None:
    audio = torch.randn(1, 8000, generator=torch.Generator().manual_seed(2)) * 0.1
    silent, broken = audio.clone(), audio.clone()
    silent[:, 3000:4000] = 0.0
    broken[:, 3000:4000] = math.nan
    for front_end in FRONT_ENDS:
        assert torch.equal(front_end(broken), front_end(silent))
    assert torch.equal(whisper_log_mel(broken[0]), whisper_log_mel(silent[0]))


def test_clipped_sound_is_sound(encoder: BlockCausalEncoder) -> None:
    loud = (torch.randn(1, 16_000, generator=torch.Generator().manual_seed(3)) * 5).clamp(-1, 1)
    with torch.inference_mode():
        assert encoder(SpeechMel()(loud)).isfinite().all()


@pytest.mark.parametrize("target_hz", [12.5, 8.0, 6.25, 5.0, 4.0])
def test_silence_alone_is_grouped_as_asked(encoder: BlockCausalEncoder, merger: CausalMerger, target_hz: float) -> None:
    with torch.inference_mode():
        frames = encoder(SpeechMel()(torch.zeros(1, 160_000)))[0]
        merged = merger.forward(frames, target_hz)
    assert merged.embeddings.isfinite().all()
    assert sum(merged.durations_frames) == len(frames) and max(merged.durations_frames) <= MAX_GROUP
    assert len(merged.durations_frames) / len(frames) * BASE_HZ == pytest.approx(target_hz, rel=0.1)


def test_ten_minutes_without_a_pause_keep_no_more_than_twenty_seconds(
    encoder: BlockCausalEncoder, merger: CausalMerger
) -> None:
    mel, sound = SpeechMel(), torch.randn(1, 160 * MEL_PER_PIECE, generator=torch.Generator().manual_seed(4)) * 0.1
    hearing, encoder_state, merger_state = mel.initial_state(1), encoder.initial_state(1), merger.initial_state(WIDTH)
    groups, held = 0, []
    with torch.inference_mode():
        for _ in range(60):
            features, hearing = mel.step(sound, hearing)
            frames, encoder_state = encoder.step(features, encoder_state)
            merged, merger_state = merger.step(frames[0], merger_state, 6.25)
            groups += len(merged.durations_frames)
            assert merged.embeddings.isfinite().all() and len(merger_state.open_frames) < MAX_GROUP
            held.append(sum(map(held_bytes, (hearing, encoder_state, merger_state))))
    assert max(held[2:]) <= 1.1 * max(held[:2])
    assert groups / 600 == pytest.approx(6.25, rel=0.03)


@settings(max_examples=40, deadline=None)
@given(target_hz=st.floats(allow_nan=True, allow_infinity=True), seed=st.integers(0, 99))
def test_any_rate_is_met_or_refused(merger: CausalMerger, target_hz: float, seed: int) -> None:
    frames = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(seed))
    state = merger.initial_state(WIDTH)
    if 0 < target_hz <= BASE_HZ:
        merged, state = merger.step(frames, state, target_hz)
        rest, _ = merger.flush(state)
        durations = merged.durations_frames + rest.durations_frames
        assert sum(durations) == 60 and max(durations) <= MAX_GROUP
    else:
        with pytest.raises(RateError, match="out of range: more than 0 and at most 25 Hz"):
            merger.step(frames, state, target_hz)
        assert len(merger.step(frames, state, 5.0)[0].durations_frames) > 5, "a refused call leaves no trace"


@settings(max_examples=20, deadline=None)
@given(
    turns=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([4.0, 5.0, 6.25, 8.0, 12.5])), min_size=1, max_size=8),
    cuts=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_the_rate_may_change_in_mid_turn(
    merger: CausalMerger, turns: list[tuple[int, float]], cuts: int, seed: int
) -> None:
    frames = torch.randn(sum(count for count, _ in turns), WIDTH, generator=torch.Generator().manual_seed(seed))

    def durations(size: int) -> tuple[int, ...]:
        state, start, made = merger.initial_state(WIDTH), 0, []
        for count, target_hz in turns:
            for piece in frames[start : start + count].split(size) if count else ():
                merged, state = merger.step(piece, state, target_hz)
                made += merged.durations_frames
            start += count
        return (*made, *merger.flush(state)[0].durations_frames)

    assert durations(cuts) == durations(1000)
    assert sum(durations(1000)) == len(frames) and max(durations(1000), default=0) <= MAX_GROUP


def test_a_new_rate_is_reached_within_seconds(merger: CausalMerger) -> None:
    frames = torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(5))
    merged, state = merger.step(frames[:250], merger.initial_state(WIDTH), 12.5)
    _, state = merger.step(frames[250:625], state, 4.0)
    last, _ = merger.step(frames[625:], state, 4.0)
    assert len(last.durations_frames) / 15 == pytest.approx(4.0, rel=0.15)
    assert len(merged.durations_frames) / 10 == pytest.approx(12.5, rel=0.1)


def test_a_piece_of_nothing_changes_nothing(encoder: BlockCausalEncoder, merger: CausalMerger) -> None:
    transformer = ProjectedTransformer(TransformerConfig(WIDTH, WIDTH, 2, 1, 24, WIDTH, "causal", 6)).eval()
    omni = OmniEncoder(OmniEncoderConfig(WIDTH, 1, 2, 24, WIDTH, num_mel_bins=8, n_window=8)).eval()
    chunked = ChunkedSenseVoice(tiny_sensevoice(Golden(COMMITTED / "flexicodec")), ChunkDials(5, 2, 9))
    vocoder = Vocos(VocosConfig(dim=WIDTH, hidden=24, num_layers=1, causal=True, look_ahead_frames=2)).eval()
    modules: list[tuple[StreamingModule[object], Tensor]] = [
        *((front_end, torch.randn(1, 4000) * 0.1) for front_end in FRONT_ENDS),
        (encoder, torch.randn(1, 70, 80)),
        (omni, torch.randn(1, 40, 8)),
        (chunked, torch.randn(1, 12, FEATURES)),
        (transformer, torch.randn(1, 9, WIDTH)),
        (vocoder, torch.randn(1, 9, 128)),
    ]  # type: ignore[list-item]
    with torch.inference_mode():
        for module, x in modules:
            y, state = module.step(x[:, :0], module.initial_state(1))
            assert y.shape[1] == 0
            first, state = module.step(x, state)
            nothing, state = module.step(x[:, :0], state)
            assert nothing.shape[1] == 0
            torch.testing.assert_close(first, module.step(x, module.initial_state(1))[0], rtol=0, atol=0)
        empty, state = merger.step(torch.zeros(0, WIDTH), merger.initial_state(WIDTH), 5.0)
        assert not len(empty.embeddings) and not len(merger.flush(state)[0].embeddings)
