"""The pipeline, real classes with random weights: prefilled early or late, alone or in company, it is the same."""

from __future__ import annotations

import copy
import dataclasses

import msgspec
import numpy as np
import pytest
import torch

from agent.wire import ContextItem, TokenSpan, WordSpan
from streaming.hearing.turn_end import TurnEnd, TurnEndConfig
from streaming.merging.grouping import group_frames
from tests.worker.tiny import awake, networks, pipeline
from worker.ears.block import BlockEar
from worker.listener import PipelineListener
from worker.parts import Conversation, Finished, Pcm, Question, RequestError, Sound, Speaker, TextPiece
from worker.pipeline import Pipeline
from worker.prefill import PROMPT_POSITIONS
from worker.speaker import LONGEST_PAUSE, LONGEST_PER_LETTER, PipelineSpeaker
from worker.turn import TurnSettings, ask_by_text, ask_by_voice, write_down

NOTHING = Conversation("", ())
STEPS = 14


def noise(seconds: float, seed: int = 0) -> Pcm:
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


def hear(
    model: Pipeline, pcm: Pcm, sizes: tuple[int, ...] = (5120,), conversation: Conversation = NOTHING
) -> PipelineListener:
    utterance = model.listen(conversation, 12.5, 12.5)
    at = turn = 0
    while at < len(pcm):
        utterance.feed(pcm[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    utterance.finish()
    return utterance


def question(
    utterance: PipelineListener | None, output_hz: float = 12.5, history: tuple[ContextItem, ...] = ()
) -> Question:
    last = ContextItem("user", "" if utterance else "one latte", 3 if utterance else None)
    heard = {3: utterance} if utterance else {}
    return Question(Conversation("", (*history, last)), heard, 12.5, output_hz, True, STEPS)


def run(speaker: Speaker) -> tuple[str, Pcm, list[TokenSpan], list[WordSpan]]:
    text, sounds, tokens, words = "", [np.zeros(0, np.float32)], [], []
    while True:
        for event in speaker.step():
            match event:
                case TextPiece(piece):
                    text += piece
                case Sound(pcm, new_tokens, new_words):
                    sounds.append(pcm)
                    tokens += new_tokens
                    words += new_words
                case Finished():
                    return text, np.concatenate(sounds), tokens, words


def assert_same(one: tuple, other: tuple) -> None:
    assert one[0] == other[0] and one[2:] == other[2:]
    np.testing.assert_allclose(one[1], other[1], atol=1e-4)


def test_sound_is_as_long_as_its_tokens() -> None:
    model = pipeline()
    _, pcm, tokens, _ = run(model.respond(question(hear(model, noise(2)))))
    assert tokens
    assert len(pcm) == 1920 * sum(token.duration_frames for token in tokens)


def test_pieces_of_audio_do_not_matter() -> None:
    model, pcm = pipeline(), noise(3)
    one, other = hear(model, pcm), hear(model, pcm, sizes=(160, 1, 4800, 333))
    assert one.transcript == other.transcript
    torch.testing.assert_close(one.embeddings, other.embeddings, rtol=1e-4, atol=1e-5)


def test_utterances_heard_together_are_what_they_are_alone() -> None:
    """Callers who begin at different times, in pieces of all sizes, some of which complete several blocks."""
    model = pipeline(3)
    sounds = [noise(3, seed) for seed in range(3)]
    alone = [hear(model, pcm) for pcm in sounds]
    together = [model.listen(NOTHING, 12.5, 12.5) for _ in sounds]
    taken, sizes = [0, 0, 0], np.random.default_rng(3)
    while min(taken) < len(sounds[0]):
        rows = [row for row in range(3) if taken[row] < len(sounds[row]) and sizes.random() < 0.8]
        if not rows:
            continue
        pieces = [sounds[row][taken[row] : taken[row] + int(sizes.integers(1, 16_000))] for row in rows]
        model.feed([together[row] for row in rows], pieces)
        for row, piece in zip(rows, pieces, strict=True):
            taken[row] += len(piece)
    for one, other in zip(alone, together, strict=True):
        other.finish()
        assert one.transcript == other.transcript
        torch.testing.assert_close(one.embeddings, other.embeddings, rtol=1e-4, atol=1e-5)
        assert_same(run(model.respond(question(other))), run(model.respond(question(one))))


@pytest.mark.parametrize("exact", [False, True])
def test_an_end_that_was_prepared_for_and_did_not_come_leaves_no_trace(exact: bool) -> None:
    parts = networks()
    ear = parts.ear
    assert isinstance(ear, BlockEar)
    ear = BlockEar(ear.encoder, ear.merger, ear.spelling, exact_at_end=exact)
    model = Pipeline(dataclasses.replace(parts, ear=ear), 2)
    pcm = noise(3)
    straight = hear(model, pcm)
    utterance = model.listen(NOTHING, 12.5, 12.5)
    for at in range(0, len(pcm), 7001):
        utterance.prepare()
        utterance.feed(pcm[at : at + 7001])
    utterance.prepare()
    prepared, position = utterance.embeddings, utterance.prefill.mark()
    encoded = utterance.finish()
    assert utterance.embeddings is not prepared and torch.equal(utterance.embeddings, prepared)
    assert utterance.prefill.mark() == position, "the end cost nothing any more"
    assert (encoded.samples, encoded.groups) == (len(pcm), straight.groups)
    assert utterance.transcript == straight.transcript
    torch.testing.assert_close(utterance.embeddings, straight.embeddings, rtol=1e-4, atol=1e-5)
    assert_same(run(model.respond(question(utterance))), run(model.respond(question(straight))))


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_answer_begun_in_a_pause_leaves_no_trace_or_is_the_answer(goes_on: bool) -> None:
    parts = networks()
    ear = parts.ear
    assert isinstance(ear, BlockEar)
    head = awake(TurnEnd(TurnEndConfig(ear.encoder.config.hidden_size, pauses=(-1.0, 0.0, 1.0))))
    assert isinstance(head, TurnEnd)
    judging = BlockEar(ear.encoder, ear.merger, ear.spelling, turn_end=head)
    model, pcm = Pipeline(dataclasses.replace(parts, ear=judging), 2), noise(3)
    assert model.judges_ends and not Pipeline(parts, 2).judges_ends
    first = 30_000 if goes_on else len(pcm)
    utterance = model.listen(NOTHING, 12.5, 12.5)
    utterance.feed(pcm[:first])
    assert utterance.certainty is None, "nothing is prepared"
    utterance.prepare()
    assert utterance.certainty is not None and 0.0 <= utterance.certainty <= 1.0
    begun = model.respond(question(utterance))
    for _ in range(12):
        begun.step()
    if goes_on:
        begun.close()
        utterance.feed(pcm[first:])
        utterance.finish()
        assert_same(run(model.respond(question(utterance))), run(model.respond(question(hear(model, pcm)))))
        return
    utterance.finish()
    assert utterance.prefill.busy, "its slot is not to be had while it is answered"
    text, *_ = run(begun)
    assert begun.text == run(model.respond(question(hear(model, pcm))))[0].strip() and begun.text.endswith(text.strip())


def test_prepared_end_survives_the_loss_of_its_slot() -> None:
    model = pipeline()
    straight = run(model.respond(question(hear(model, noise(2)))))
    utterance = model.listen(NOTHING, 12.5, 12.5)
    utterance.feed(noise(2)[:9000])
    utterance.prepare()
    utterance.prefill.lose_slot()
    utterance.feed(noise(2)[9000:])
    utterance.finish()
    assert_same(run(model.respond(question(utterance))), straight)


def test_prefilled_while_listening_or_afterwards_is_the_same() -> None:
    model = pipeline()
    utterance = hear(model, noise(2))
    first = run(model.respond(question(utterance)))
    utterance.prefill.lose_slot()
    assert_same(run(model.respond(question(utterance))), first)


def test_second_answer_to_the_same_utterance_rolls_the_first_one_back() -> None:
    model = pipeline()
    utterance = hear(model, noise(2))
    first = run(model.respond(question(utterance)))
    assert_same(run(model.respond(question(utterance))), first)
    given_up = model.respond(question(utterance))
    given_up.step()
    given_up.close()
    assert_same(run(model.respond(question(utterance))), first)


def test_other_output_rate_prefills_the_talker_anew() -> None:
    model = pipeline()
    utterance = hear(model, noise(2))
    at_four = run(model.respond(question(utterance, 4.0)))
    fresh = pipeline()
    late = fresh.listen(NOTHING, 12.5, 4.0)
    late.feed(noise(2))
    late.finish()
    assert_same(run(fresh.respond(question(late, 4.0))), at_four)


def test_history_that_differs_from_what_was_prefilled_is_used() -> None:
    model = pipeline()
    utterance = hear(model, noise(2))
    plain = run(model.respond(question(utterance)))
    history = (ContextItem("assistant", "Hello, what can I get you?"),)
    remembered = run(model.respond(question(utterance, history=history)))
    assert remembered[0] != plain[0] or remembered[2] != plain[2]
    early = hear(model, noise(2), conversation=Conversation("", history))
    assert_same(run(model.respond(question(early, history=history))), remembered)


def test_answers_made_in_turns_are_those_made_alone() -> None:
    model = pipeline(2)
    utterances = [hear(model, noise(2, seed)) for seed in (1, 2)]
    alone = [run(model.respond(question(utterance))) for utterance in utterances]
    speakers = [model.respond(question(utterance)) for utterance in utterances]
    texts, tokens, going = ["", ""], [[], []], {0, 1}
    while going:
        for row in tuple(going):
            for event in speakers[row].step():
                if isinstance(event, TextPiece):
                    texts[row] += event.text
                elif isinstance(event, Sound):
                    tokens[row] += event.tokens
                else:
                    going.discard(row)
    assert texts == [answer[0] for answer in alone]
    assert tokens == [answer[2] for answer in alone]
    assert alone[0][0] != alone[1][0] or alone[0][2] != alone[1][2], "two questions, two answers"


@pytest.mark.parametrize("begin_apart", [0, 3])
def test_units_done_together_give_what_they_give_alone(begin_apart: int) -> None:
    """Tokens and sounds; the answers begin in step or some units after each other."""
    model = pipeline(3)
    utterances = [hear(model, noise(1 + seed / 2, seed)) for seed in range(3)]
    alone = [run(model.respond(question(utterance))) for utterance in utterances]
    speakers = [model.respond(question(utterance)) for utterance in utterances]
    texts, tokens, going = [""] * 3, [[], [], []], {0, 1, 2}
    sounds: list[list[Pcm]] = [[], [], []]
    joint_sounds = turn = 0
    while going:
        started = [row for row in sorted(going) if turn >= row * begin_apart]
        turn += 1
        given = {}
        for unit in ("token", "sound"):
            together = [row for row in started if row not in given and speakers[row].unit == unit]
            if together:
                events = model.step([speakers[row] for row in together], unit)
                given |= dict(zip(together, events, strict=True))
                joint_sounds += unit == "sound" and len(together) > 1
        for row in set(started) - set(given):
            given[row] = speakers[row].step()
        for row, events in given.items():
            for event in events:
                if isinstance(event, TextPiece):
                    texts[row] += event.text
                elif isinstance(event, Sound):
                    tokens[row] += event.tokens
                    sounds[row].append(event.pcm)
                else:
                    going.discard(row)
    assert texts == [answer[0] for answer in alone]
    assert tokens == [answer[2] for answer in alone]
    for parts, (_, pcm, _, _) in zip(sounds, alone, strict=True):
        np.testing.assert_allclose(np.concatenate(parts), pcm, atol=1e-4)
    assert joint_sounds, "there is nothing to see if nobody's sound was made with another's"


def test_silenced_or_swapped_embeddings_change_the_answer() -> None:
    model = pipeline()
    one, other = hear(model, noise(2, 1)), hear(model, noise(2, 2))
    said = run(model.respond(question(one)))
    one.prefill.lose_slot()
    mine, theirs = one._embeddings, other._embeddings
    one._embeddings = [torch.zeros_like(part) for part in mine]
    silenced = run(model.respond(question(one)))
    one.prefill.lose_slot()
    one._embeddings = theirs
    swapped = run(model.respond(question(one)))
    assert len({(answer[0], tuple(answer[2])) for answer in (said, silenced, swapped)}) == 3


@pytest.mark.parametrize("hz", [4.0, 6.25, 12.5])
def test_realised_input_rate_is_reported(hz: float) -> None:
    model = pipeline()
    turn = write_down(model, noise(8), TurnSettings(input_hz=hz))
    assert turn.encoded is not None and turn.encoded.samples == 128_000
    assert abs(turn.encoded.realised_hz / hz - 1) < 0.1


def test_exact_at_the_end_of_the_turn_is_the_offline_top_k() -> None:
    parts = networks()
    ear = parts.ear
    assert isinstance(ear, BlockEar)
    exact = BlockEar(ear.encoder, ear.merger, ear.spelling, exact_at_end=True)
    utterance = hear(Pipeline(dataclasses.replace(parts, ear=exact), 1), noise(4), sizes=(1600, 333))
    frames = ear.encoder(ear.mel(torch.from_numpy(noise(4))[None]))[0]
    groups = group_frames(frames, 12.5, 25.0, max_group=16)
    assert utterance.hearing.groups == groups.count
    expected = parts.slm.input_merging_transformer(frames, groups.lengths)
    torch.testing.assert_close(utterance.embeddings, expected, rtol=1e-4, atol=1e-5)


def test_question_longer_than_the_model_remembers_is_answered_by_its_end() -> None:
    model = pipeline()
    utterance = model.listen(NOTHING, 12.5, 12.5)
    for _ in range(30):
        utterance.feed(noise(5))
    encoded = utterance.finish()
    assert encoded.groups > PROMPT_POSITIONS
    assert run(model.respond(question(utterance)))[2]


def test_sound_that_goes_on_after_the_words_is_cut() -> None:
    model = pipeline()
    asked = dataclasses.replace(question(None), max_output_tokens=400)
    speaker = model.respond(asked)
    assert isinstance(speaker, PipelineSpeaker)
    while not speaker._tokens.frames:
        speaker.step()
    speaker._words.end_text()
    _, pcm, _, _ = run(speaker)
    assert len(pcm) / 1920 < LONGEST_PER_LETTER * len(speaker.text) + LONGEST_PAUSE + 8


def test_slots_are_taken_from_those_who_do_not_need_them() -> None:
    model = pipeline(1)  # two slots
    heard = [hear(model, noise(1, seed)) for seed in range(5)]
    answers = [run(model.respond(question(utterance))) for utterance in heard]
    assert_same(run(model.respond(question(heard[0]))), answers[0])
    listening = [model.listen(NOTHING, 12.5, 12.5) for _ in range(2)]
    with pytest.raises(RequestError, match="at work"):
        model.listen(NOTHING, 12.5, 12.5)
    listening[0].close()
    run(model.respond(question(None)))


def test_utterance_dropped_under_its_answer_keeps_its_slot_until_the_end() -> None:
    model = pipeline(1)
    utterance = hear(model, noise(1))
    expected = run(model.respond(question(utterance)))
    speaker = model.respond(question(utterance))
    speaker.step()
    utterance.close()
    hear(model, noise(1, 5))
    text, _, tokens, _ = run(speaker)
    assert expected[0].endswith(text) and tokens == expected[2]


def test_written_question_and_silence_have_answers() -> None:
    model = pipeline()
    settings = TurnSettings(max_output_tokens=STEPS)
    turns = (
        ask_by_text(model, "one latte", settings),
        ask_by_voice(model, np.zeros(0, np.float32), settings),
        ask_by_voice(model, np.zeros(16_000, np.float32), settings),
    )
    assert all(turn.stats.text_tokens and len(turn.pcm) for turn in turns)


@pytest.mark.parametrize("hz", [3.9, 12.6, float("nan")])
def test_rates_out_of_range_are_refused(hz: float) -> None:
    model = pipeline()
    with pytest.raises(RequestError, match=r"4 to 12\.5 Hz"):
        model.listen(NOTHING, hz, 12.5)
    with pytest.raises(RequestError, match=r"4 to 12\.5 Hz"):
        model.respond(question(None, hz))


def test_no_answer_lasts_longer_than_its_model_allows() -> None:
    usual = ask_by_text(pipeline(), "one latte", TurnSettings(max_output_tokens=60))
    assert sum(token.duration_frames for token in usual.tokens) > 20
    parts = networks()
    slm = copy.copy(parts.slm)
    agogic = msgspec.structs.replace(slm.config.agogic, longest_answer_s=0.8)
    slm.config = msgspec.structs.replace(slm.config, agogic=agogic)
    short = ask_by_text(
        Pipeline(dataclasses.replace(parts, slm=slm), 2), "one latte", TurnSettings(max_output_tokens=60)
    )
    assert short.reason == "max_output_tokens"
    assert 0 < sum(token.duration_frames for token in short.tokens[:-1]) < 10, "0.8 s are ten frames"
    assert short.tokens == usual.tokens[: len(short.tokens)]
