"""Unmerge, flow decoder and vocoder chunk by chunk: equal to the whole, alone or in company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streaming.layers.module import join_rows, split_rows
from streaming.speaking.chunk_plan import ChunkPlan
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.flow_decoder import CodeFrames, FlowChunk, FlowDecoder, FlowDials, FlowState, SpeechCodeError
from streaming.speaking.unmerge import UnmergeConfig, repeat_codes
from streaming.speaking.vocos import Vocos, VocosConfig
from tests.support.company import step_some

Code = tuple[int, int]
PLANS = [
    ((4,), (2,)),
    ((4,), (2,), (1, 3)),
    ((1, 1, 2, 4), (0, 0, 1, 2)),
    ((1, 1, 2, 4), (0, 2, 1, 2, 0), (2, 1, 3)),
    ((3, 1), (1,), (5,)),
]
CODES = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 8)), min_size=1, max_size=9)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def lively(module: nn.Module) -> nn.Module:
    """Weights under which every part matters, and outputs of about unit size."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in module.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        size = 0.8 / fan_in**0.5 if fan_in > 1 else 0.2
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "to_weight.bias", "scale", "gamma")):
                parameter.add_(0.8)
    return module.eval()


@pytest.fixture(scope="module")
def decoder() -> FlowDecoder:
    unmerge = UnmergeConfig(32, 2, 4, 48, 5, 2, 2)
    config = FlowConfig(32, 2, 4, 48, 48, 100, chunk_frames=16, context_chunks=2, unmerge=unmerge)
    voicebox = lively(Voicebox(config))
    assert isinstance(voicebox, Voicebox)
    return FlowDecoder(voicebox, FlowDials(steps=2, noise_scale=0.5)).eval()


@pytest.fixture(scope="module", params=PLANS, ids=str)
def planned(decoder: FlowDecoder, request: pytest.FixtureRequest) -> FlowDecoder:
    """The decoder under several chunk plans."""
    return FlowDecoder(decoder.voicebox, decoder.dials, ChunkPlan(*request.param)).eval()


@pytest.fixture(scope="module")
def vocoder() -> Vocos:
    module = lively(Vocos(VocosConfig(dim=24, hidden=40, num_layers=3, causal=True, look_ahead_frames=2)))
    assert isinstance(module, Vocos)
    return module


def table(rows: list[list[Code]]) -> tuple[Tensor, Tensor]:
    both = torch.zeros(2, len(rows), max(map(len, rows)), dtype=torch.int64)
    for at, row in enumerate(rows):
        both[:, at, : len(row)] = torch.tensor(row).T
    return both[0], both[1]


def render(
    decoder: FlowDecoder, codes: list[Code], bunch: int, hurried: tuple[bool, ...] = (False,), cut: int | None = None
) -> Tensor:
    """Mel of one session whose codes arrive `bunch` at a time; whether it is `hurried` then, in turns, and at which of
    the places where that is possible each call is cut."""
    frames, state, made = decoder.frames(), decoder.initial_state(1), []

    def take() -> FlowChunk | None:
        frames.most_chunks = max(decoder.plan.together)
        if cut is None or not frames.ready or not (cuts := frames.cuts):
            return frames.take()
        frames.cut(cuts[cut % len(cuts)])
        expected = frames.next_frames
        chunk = frames.take()
        assert chunk is not None and len(chunk.layout.start[0]) == expected in cuts
        return chunk

    def drain(state: FlowState) -> FlowState:
        while (chunk := take()) is not None:
            mel, state = decoder.step(chunk, state)
            made.append(mel[0, : 4 * chunk.real_frames(decoder.look_ahead_frames)[0]])
        return state

    for at, code in enumerate(codes):
        frames.push(*code)
        frames.hurried = hurried[at % len(hurried)]
        if at % bunch == bunch - 1:
            state = drain(state)
    frames.end()
    drain(state)
    return torch.cat(made)


def test_repeated_codes_know_place_and_length() -> None:
    owner, position, duration, real = repeat_codes(torch.tensor([[2, 1, 0], [1, 1, 2]]))
    assert owner[:, :3].tolist() == [[0, 0, 1], [0, 1, 2]]
    assert position.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert duration.tolist() == [[2, 2, 1, 0], [1, 1, 2, 2]]
    assert real.tolist() == [[True, True, True, False], [True] * 4]


@settings(max_examples=15, deadline=None)
@given(
    codes=CODES,
    bunch=st.integers(1, 5),
    hurried=st.lists(st.booleans(), min_size=1, max_size=3),
    cut=st.none() | st.integers(0, 3),
)
def test_codes_in_any_bunches_give_the_whole_mel(
    planned: FlowDecoder, codes: list[Code], bunch: int, hurried: list[bool], cut: int | None
) -> None:
    with torch.inference_mode():
        whole = planned(*table([codes]))[0]
        torch.testing.assert_close(render(planned, codes, bunch, tuple(hurried), cut), whole, **TOLERANCE)


def test_uniform_plan_is_what_the_weights_do_without_one(decoder: FlowDecoder) -> None:
    codes, durations = table([[(3, 2), (5, 8), (7, 1), (9, 4)]])
    with torch.inference_mode():
        plain = decoder.voicebox.condition(codes, durations)
        torch.testing.assert_close(decoder.voicebox.condition(codes, durations, decoder.plan), plain, **TOLERANCE)


def test_short_first_chunks_let_sound_begin_after_one_code(decoder: FlowDecoder) -> None:
    plan = ChunkPlan((1, 1, 2, 4), (0, 0, 1, 2))
    frames = CodeFrames(plan, 2, 100)
    frames.push(3, 1)
    assert frames.ready and frames.take() is not None
    usual = decoder.frames()
    usual.push(3, 5)
    assert not usual.ready


def test_later_calls_make_several_chunks_and_the_end_cuts_them_short() -> None:
    frames, kept = CodeFrames(ChunkPlan((4,), (2,), (1, 2)), 2, 100), []
    for _ in range(15):
        frames.push(3, 1)
        if (chunk := frames.take()) is not None:
            kept.append((len(chunk.layout.start[0]), chunk.real_frames(2)[0]))
    assert kept == [(4, 4), (8, 8)]
    frames.end()
    last = frames.take()
    assert last is not None and (len(last.layout.start[0]), last.real_frames(2)) == (4, [3])
    assert frames.take() is None


def test_in_a_hurry_complete_chunks_do_not_wait_for_more() -> None:
    frames = CodeFrames(ChunkPlan((4,), (2,), (4,)), 2, 100)
    frames.push(3, 8)
    frames.push(3, 5)
    assert not frames.ready
    frames.hurried = True
    assert frames.ready and frames.next_frames == 8
    chunk = frames.take()
    assert chunk is not None and len(chunk.layout.start[0]) == 8
    assert not frames.ready, "a chunk and what it sees are not complete"


def test_among_others_calls_are_shorter_than_planned() -> None:
    frames = CodeFrames(ChunkPlan((4,), (2,), (4,)), 2, 100)
    frames.push(3, 8)
    frames.push(3, 8)
    frames.push(3, 8)
    frames.most_chunks = 2
    assert [len(chunk.layout.start[0]) for _ in range(2) if (chunk := frames.take())] == [8, 8]
    frames.most_chunks = 4
    frames.push(3, 8)
    assert not frames.ready
    frames.end()
    assert frames.next_frames == 16


@pytest.mark.parametrize(
    "plan",
    [((), (1,)), ((0,), (1,)), ((4,), ()), ((4,), (-1,)), ((4,), (3,)), ((4,), (2,), ()), ((4,), (2,), (0,))],
)
def test_impossible_plans_are_refused(decoder: FlowDecoder, plan: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"chunk|look"):
        FlowDecoder(decoder.voicebox, decoder.dials, ChunkPlan(*plan))


def test_a_padded_batch_gives_what_each_item_gives(decoder: FlowDecoder) -> None:
    rows = [[(3, 2), (5, 8), (7, 1)], [(50, 8), (51, 8), (52, 8), (9, 3)]]
    with torch.inference_mode():
        together = decoder(*table(rows))
        for row, codes in enumerate(rows):
            frames = 4 * sum(duration for _, duration in codes)
            torch.testing.assert_close(together[row, :frames], decoder(*table([codes]))[0], **TOLERANCE)


@settings(max_examples=8, deadline=None)
@given(rows=st.lists(CODES, min_size=2, max_size=3), turns=st.lists(st.integers(1, 7), min_size=4, max_size=12))
def test_sessions_out_of_step_do_not_touch_each_other(
    decoder: FlowDecoder, rows: list[list[Code]], turns: list[int]
) -> None:
    # Equal plans, but rows stand at different calls: one chunk a call keeps them equally long.
    decoder = FlowDecoder(decoder.voicebox, decoder.dials, ChunkPlan((4,), (2,))).eval()
    sessions = []
    for codes in rows:
        frames = decoder.frames()
        for code in codes:
            frames.push(*code)
        frames.end()
        sessions.append(frames)
    made: list[list[Tensor]] = [[] for _ in rows]
    with torch.inference_mode():
        states = [decoder.initial_state(1) for _ in rows]
        for turn in [*turns, *[7] * 20]:
            taken = {row: session.take() for row, session in enumerate(sessions) if turn & 1 << row}
            chunks = {row: chunk for row, chunk in taken.items() if chunk is not None}
            if chunks:
                mel, after = decoder.step(
                    FlowChunk.stack([*chunks.values()]), join_rows([states[row] for row in chunks])
                )
                for at, (row, state) in enumerate(zip(chunks, split_rows(after, len(chunks)), strict=True)):
                    states[row] = state
                    made[row].append(mel[at, : 4 * chunks[row].real_frames(decoder.look_ahead_frames)[0]])
        for row, codes in enumerate(rows):
            torch.testing.assert_close(torch.cat(made[row]), render(decoder, codes, 1), **TOLERANCE)


@settings(max_examples=10, deadline=None)
@given(ages=st.lists(st.integers(0, 5), min_size=2, max_size=4))
def test_sessions_of_any_age_step_as_rows_of_one_state(decoder: FlowDecoder, vocoder: Vocos, ages: list[int]) -> None:
    decoder = FlowDecoder(decoder.voicebox, decoder.dials, ChunkPlan((4,), (2,))).eval()
    states, sounds, chunks, alone, mels = [], [], [], [], []
    with torch.inference_mode():
        for row, age in enumerate(ages):
            frames, state, sound = decoder.frames(), decoder.initial_state(1), vocoder.initial_state(1)
            for number in range(4 * age + 6):
                frames.push((7 * row + number) % 100, 1)
            taken = [frames.take() for _ in range(age + 1)]
            *earlier, last = [chunk for chunk in taken if chunk is not None]
            for chunk in earlier:
                mel, state = decoder.step(chunk, state)
                _, sound = vocoder.step(mel, sound)
            mel, after = decoder.step(last, state)
            alone.append((mel, after, *vocoder.step(mel, sound)))
            states.append(state)
            sounds.append(sound)
            chunks.append(last)
            mels.append(mel)
        mel, after = decoder.step(FlowChunk.stack(chunks), join_rows(states))
        wave, sound = vocoder.step(torch.cat(mels), join_rows(sounds))
        together = zip(
            mel.split(1), split_rows(after, len(ages)), wave.split(1), split_rows(sound, len(ages)), strict=True
        )
        for made, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(made[0], expected[0], **TOLERANCE)
            torch.testing.assert_close(made[1].keys, expected[1].keys, **TOLERANCE)
            torch.testing.assert_close(made[2], expected[2], **TOLERANCE)
            torch.testing.assert_close(made[3].sound, expected[3].sound, **TOLERANCE)


def test_a_long_utterance_outlives_every_ring(decoder: FlowDecoder) -> None:
    codes = [(n % 100, 1 + n % 8) for n in range(150)]
    with torch.inference_mode():
        torch.testing.assert_close(render(decoder, codes, 3), decoder(*table([codes]))[0], **TOLERANCE)


def test_look_ahead_ends_where_the_config_says(decoder: FlowDecoder) -> None:
    early = [(1, 1)] * 6
    with torch.inference_mode():
        one, other = (decoder(*table([[*early, (late, 1), (late, 1)]]))[0, :16] for late in (10, 90))
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        near = decoder(*table([[*early[:5], (90, 1), (10, 1), (10, 1)]]))[0, :16]
    assert (near - one).abs().max() > 1e-3


def test_other_codes_and_other_lengths_sound_different(decoder: FlowDecoder) -> None:
    with torch.inference_mode():
        base = decoder(*table([[(1, 2), (2, 2)]]))
        assert (decoder(*table([[(1, 2), (3, 2)]])) - base).abs().max() > 1e-2
        assert (decoder(*table([[(1, 1), (2, 3)]])) - base).abs().max() > 1e-2


@pytest.mark.parametrize(("code", "duration"), [(100, 1), (-1, 1), (0, 0), (0, 9)])
def test_impossible_codes_are_refused(code: int, duration: int) -> None:
    with pytest.raises(SpeechCodeError):
        CodeFrames(ChunkPlan((4,), (2,)), 2, 100).push(code, duration)


def test_weights_with_full_attention_refuse_to_stream() -> None:
    with pytest.raises(ValueError, match="chunk_frames"):
        FlowDecoder(Voicebox(FlowConfig(32, 1, 4, 48, 48, 100)), FlowDials())


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=7), seed=st.integers(0, 1000))
def test_mel_in_any_pieces_gives_the_whole_sound(vocoder: Vocos, sizes: list[int], seed: int) -> None:
    mel = torch.randn(2, sum(sizes) + 1, 128, generator=torch.Generator().manual_seed(seed))
    state, made = vocoder.initial_state(2), []
    with torch.inference_mode():
        for piece in mel.split([*sizes, 1], dim=1):
            sound, state = vocoder.step(piece, state)
            assert sound.shape == (2, 480 * piece.shape[1])
            made.append(sound)
        rest, _ = vocoder.flush(state)
        streamed = torch.cat([*made, rest], 1)
        torch.testing.assert_close(streamed[:, vocoder.delay_samples :], vocoder(mel), **TOLERANCE)


def test_vocoder_rows_in_company_are_rows_alone(vocoder: Vocos) -> None:
    mel = torch.randn(2, 12, 128, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        state = vocoder.initial_state(2)
        _, state = step_some(vocoder, mel[:, :5], state, [0])
        made, state = vocoder.step(torch.stack((mel[0, 5:9], mel[1, :4])), state)
        alone, _ = vocoder.step(mel[1:, :4], vocoder.initial_state(1))
        torch.testing.assert_close(made[1:], alone, **TOLERANCE)
        first, _ = vocoder.step(mel[:1, 9:], split_rows(state, 2)[0])
        whole = vocoder(mel[:1])
        start = vocoder.delay_samples
        torch.testing.assert_close(first[:, : 3 * 480], whole[:, 9 * 480 - start : 12 * 480 - start], **TOLERANCE)


def test_the_sound_of_a_frame_waits_for_its_look_ahead_only(vocoder: Vocos) -> None:
    mel = torch.randn(1, 20, 128, generator=torch.Generator().manual_seed(3))
    changed = mel.clone()
    changed[:, 12:] += 1.0
    with torch.inference_mode():
        difference = (vocoder(mel) - vocoder(changed))[0].abs()
    # A changed frame reaches 720 samples back by its own transform and look_ahead_frames by the first convolution.
    first_changed = int((difference > 1e-6).nonzero()[0])
    assert 12 * 480 - vocoder.delay_samples <= first_changed < 11 * 480


def test_symmetric_vocoder_weights_refuse_to_stream() -> None:
    with pytest.raises(ValueError, match="see the future"):
        Vocos(VocosConfig(dim=8, hidden=8, num_layers=1)).initial_state(1)
