"""The engine and what callers say: units, likely ends, answers begun in a pause, faults of the ear."""

from __future__ import annotations

import pytest

from agent.wire import (
    AudioIn,
    AudioOut,
    Cancel,
    ContextItem,
    EndJudged,
    EndUtterance,
    LikelyEnd,
    Respond,
    ResponseDone,
    StartUtterance,
    Transcript,
    UtteranceEncoded,
    WorkerError,
)
from tests.worker.scripted import (
    SECOND,
    Ear,
    ScriptedListener,
    ScriptedModel,
    drain,
    open_engine,
)
from worker.engine import Engine
from worker.parts import FOLLOWED_SAMPLES, MOST_SAMPLES, UNIT_SAMPLES


@pytest.mark.parametrize(("followed", "unit"), [(False, UNIT_SAMPLES), (True, FOLLOWED_SAMPLES)])
def test_utterance_is_heard_in_units_and_reported(followed: bool, unit: int) -> None:
    model = ScriptedModel()
    engine, ear = open_engine(model)
    engine.submit(ear, StartUtterance(1, 5, 12.5, [], followed=followed))
    for at in range(0, 6 * len(SECOND), 1024):
        engine.submit(ear, AudioIn(1, 5, (6 * SECOND)[at : at + 1024]))
        drain(engine)
    engine.submit(ear, EndUtterance(1, 5))
    drain(engine)
    full, rest = divmod(6 * 16_000, unit)
    assert model.heard_together == [[unit]] * full + [[rest]]
    transcripts = ear.of(Transcript)
    assert [t.final for t in transcripts] == [False] * (full + 1) + [True]
    words = [unit * (number + 1) // 1600 for number in range(full)]
    assert [len(t.text.split()) for t in transcripts] == [*words, 60, 60]
    assert ear.of(UtteranceEncoded) == [UtteranceEncoded(1, 5, 96_000, 150, 75, 12.5, 1.0)]


def test_callers_whose_audio_is_due_are_heard_together_in_bounded_units() -> None:
    model = ScriptedModel()
    engine, ear = open_engine(model, sessions=3)
    for session, seconds in ((1, 1), (2, 9), (3, 1)):
        engine.submit(ear, StartUtterance(session, 1, 12.5, []))
        engine.submit(ear, AudioIn(session, 1, SECOND * seconds))
        engine.submit(ear, EndUtterance(session, 1))
    drain(engine)
    assert sum(map(sum, model.heard_together)) == 11 * 16_000
    assert max(map(sum, model.heard_together)) <= MOST_SAMPLES and len(model.heard_together) == 5
    assert max(map(len, model.heard_together)) >= 2
    assert {encoded.session: encoded.samples for encoded in ear.of(UtteranceEncoded)} == {
        1: 16_000,
        2: 9 * 16_000,
        3: 16_000,
    }


def test_likely_end_is_prepared_for_and_more_audio_takes_it_back() -> None:
    engine, ear = open_engine(ScriptedModel())
    engine.submit(ear, StartUtterance(1, 5, 12.5, []))
    drain(engine)
    utterance = next(iter(engine._sessions.values())).utterances.get(5)
    assert utterance is not None
    listener = utterance.listener
    assert isinstance(listener, ScriptedListener)
    for sent, prepared in ((1000, [1000]), (700, [1000, 1700])):
        engine.submit(ear, AudioIn(1, 5, SECOND[: 2 * sent]))
        engine.submit(ear, LikelyEnd(1, 5))
        drain(engine)
        assert listener.prepared == prepared, "less than is listened to otherwise, and once"
    engine.submit(ear, AudioIn(1, 5, SECOND[:200]))
    drain(engine)
    assert listener.samples == 1700, "nothing hurries any more"
    engine.submit(ear, EndUtterance(1, 5))
    drain(engine)
    assert ear.of(UtteranceEncoded)[0].samples == 1800 and listener.prepared == [1000, 1700, 1800]


def pausing(model: ScriptedModel) -> tuple[Engine, Ear]:
    """Somebody has said something, and is being answered although he may go on."""
    engine, ear = open_engine(model)
    engine.submit(ear, StartUtterance(1, 5, 12.5, []))
    engine.submit(ear, AudioIn(1, 5, SECOND))
    engine.submit(ear, LikelyEnd(1, 5))
    engine.submit(ear, Respond(1, 1, [ContextItem("user", "", 5)], 12.5))
    return engine, ear


@pytest.mark.parametrize("certainty", [0.75, None])
def test_who_can_tell_says_how_finished_a_pause_sounds(certainty: float | None) -> None:
    engine, ear = pausing(ScriptedModel(certainty=certainty))
    assert engine.ready().judges_ends == (certainty is not None)
    drain(engine)
    assert ear.of(EndJudged) == ([EndJudged(1, 5, 16_000, 0.75)] if certainty else [])


def test_answer_begun_in_a_pause_goes_on_when_that_was_the_end() -> None:
    engine, ear = pausing(ScriptedModel(words=3))
    while not ear.of(AudioOut):
        assert engine.iterate()
    engine.submit(ear, EndUtterance(1, 5))
    drain(engine)
    assert [done.reason for done in ear.of(ResponseDone)] == ["completed"] and not ear.of(WorkerError)
    assert len(ear.of(AudioOut)) == 3 and len(ear.of(UtteranceEncoded)) == 1


@pytest.mark.parametrize("cancelled", [True, False])
def test_answer_begun_in_a_pause_ends_where_the_voice_goes_on(cancelled: bool) -> None:
    engine, ear = pausing(ScriptedModel(words=30))
    while not ear.of(AudioOut):
        assert engine.iterate()
    if cancelled:
        engine.submit(ear, Cancel(1, 1))
    engine.submit(ear, AudioIn(1, 5, SECOND))
    engine.submit(ear, EndUtterance(1, 5))
    engine.submit(ear, Respond(1, 2, [ContextItem("user", "", 5)], 12.5))
    drain(engine)
    assert [(done.generation, done.reason) for done in ear.of(ResponseDone)] == [(1, "cancelled"), (2, "completed")]
    assert ear.of(UtteranceEncoded)[0].samples == 32_000


def test_answer_waits_for_the_pause_to_be_heard() -> None:
    model = ScriptedModel()
    engine, _ = pausing(model)
    while not model.heard_together:
        assert engine.iterate()
    assert model.heard_together == [[16_000]] and not model.questions
    drain(engine)
    assert len(model.questions) == 1


def test_fault_of_the_networks_ends_the_utterance_that_has_it_and_no_other() -> None:
    engine, ear = open_engine(ScriptedModel(), sessions=3)
    for session in (1, 2, 3):
        engine.submit(ear, StartUtterance(session, 1, 12.5, []))
    engine.submit(ear, AudioIn(1, 1, b"\x00\x40"))  # 0.5: the encoder's fault
    engine.submit(ear, EndUtterance(1, 1))
    engine.submit(ear, AudioIn(2, 1, SECOND))
    engine.submit(ear, EndUtterance(2, 1))
    drain(engine)
    engine.submit(ear, AudioIn(3, 1, SECOND))
    engine.submit(ear, EndUtterance(3, 1))
    drain(engine)
    lost = [(error.session, error.code, error.utterance) for error in ear.of(WorkerError)]
    assert lost == [(1, "internal", 1)]
    heard = {encoded.session: encoded.samples for encoded in ear.of(UtteranceEncoded)}
    assert heard == {2: 16_000, 3: 16_000}, "who was tried with it is heard alone, once"
