"""The engine and its sessions: order of work, cancelling, isolation, refusals."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from agent.wire import (
    AudioIn,
    AudioOut,
    Cancel,
    CloseSession,
    ContextItem,
    DropUtterance,
    EndUtterance,
    OpenSession,
    Refused,
    Respond,
    ResponseDone,
    SessionOpened,
    StartUtterance,
    TextDelta,
    UtteranceEncoded,
    WorkerError,
    WorkerLoad,
)
from tests.worker.scripted import (
    SECOND,
    SOUND_SAMPLES,
    Ear,
    Given,
    HandClock,
    ScriptedListener,
    ScriptedModel,
    ScriptedSpeaker,
    ask,
    codes,
    drain,
    open_engine,
)
from worker.engine import Engine
from worker.parts import Spoken
from worker.session import FIRST_SOUND_S, ON_THE_WAY_S
from worker.step_times import Cost, UnitSize


def test_answer_counts_samples_and_reports_its_words() -> None:
    engine, ear = open_engine(ScriptedModel(words=3))
    engine.submit(ear, ask())
    drain(engine)
    sounds = ear.of(AudioOut)
    assert [s.first_sample for s in sounds] == [0, SOUND_SAMPLES, 2 * SOUND_SAMPLES]
    assert all(len(s.pcm) == 2 * SOUND_SAMPLES for s in sounds)
    assert [s.words[0].start_sample for s in sounds] == [s.first_sample for s in sounds]
    done = ear.of(ResponseDone)[0]
    assert done.reason == "completed" and done.text == "hello0 hello1 hello2 "
    assert done.stats.speech_tokens == 3 and done.stats.requested_output_hz == 12.5


def test_answer_waits_for_the_utterance_it_answers() -> None:
    model = ScriptedModel()
    engine, ear = open_engine(model)
    engine.submit(ear, StartUtterance(1, 1, 12.5, []))
    engine.submit(ear, AudioIn(1, 1, SECOND))
    engine.submit(ear, EndUtterance(1, 1))
    engine.submit(ear, Respond(1, 1, [ContextItem("user", "", 1)], 12.5))
    drain(engine)
    kinds = [type(message) for message in ear.got]
    assert kinds.index(UtteranceEncoded) < kinds.index(TextDelta)
    assert list(model.questions[0].heard) == [1]


def test_cancelled_answer_stops_before_the_next_unit() -> None:
    engine, ear = open_engine(ScriptedModel(words=100))
    engine.submit(ear, ask())
    for _ in range(4):
        engine.iterate()
    before = len(ear.of(AudioOut))
    assert before == 3
    engine.submit(ear, Cancel(1, 1))
    drain(engine)
    assert len(ear.of(AudioOut)) == before
    assert [done.reason for done in ear.of(ResponseDone)] == ["cancelled"]


def test_cancel_of_an_older_generation_leaves_the_newer_one() -> None:
    engine, ear = open_engine(ScriptedModel(words=2))
    engine.submit(ear, ask(generation=7))
    engine.submit(ear, Cancel(1, 6))
    drain(engine)
    assert [(d.generation, d.reason) for d in ear.of(ResponseDone)] == [(7, "completed")]


def test_newer_answer_cancels_the_older_one() -> None:
    engine, ear = open_engine(ScriptedModel(words=50))
    engine.submit(ear, ask("old", generation=1))
    engine.iterate()
    engine.iterate()
    engine.submit(ear, ask("new", generation=2))
    drain(engine)
    assert [(d.generation, d.reason) for d in ear.of(ResponseDone)] == [(1, "cancelled"), (2, "completed")]
    first_of_new = next(i for i, m in enumerate(ear.got) if isinstance(m, AudioOut) and m.generation == 2)
    assert not any(isinstance(m, AudioOut) and m.generation == 1 for m in ear.got[first_of_new:])


def test_stale_generation_is_refused() -> None:
    engine, ear = open_engine(ScriptedModel(words=1))
    engine.submit(ear, ask(generation=3))
    engine.submit(ear, ask(generation=3))
    drain(engine)
    assert codes(ear) == ["stale_generation"]
    assert len(ear.of(ResponseDone)) == 1


def test_two_answers_are_made_in_turns() -> None:
    model = ScriptedModel(words=20)
    engine, ear = open_engine(model, sessions=2)
    engine.submit(ear, ask("a", session=1))
    engine.submit(ear, ask("b", session=2))
    drain(engine)
    longest = max(len(run) for run in "".join(model.units).replace("ab", "a|b").replace("ba", "b|a").split("|"))
    assert longest <= 4, "".join(model.units)


def test_answers_at_the_same_point_take_their_steps_together() -> None:
    model = ScriptedModel(words=6, joins=True)
    engine, ear = open_engine(model, sessions=3)
    for session, name in enumerate("abc", 1):
        engine.submit(ear, ask(name, session=session))
    drain(engine)
    assert "abc" in ["".join(sorted(step)) for step in model.joint_steps]
    assert len(model.joint_steps) < 3 * 7, "fewer steps than answers times tokens"
    texts = {done.session: done.text for done in ear.of(ResponseDone)}
    assert texts == {row: "".join(f"{name}{word} " for word in range(6)) for row, name in enumerate("abc", 1)}


def test_failed_joint_step_ends_the_answer_that_has_the_fault_and_no_other() -> None:
    engine, ear = open_engine(ScriptedModel(words=6, joins=True), sessions=2)
    engine.submit(ear, ask("fail", session=1))
    engine.submit(ear, ask("fine", session=2))
    drain(engine)
    assert {d.session: (d.reason, d.text) for d in ear.of(ResponseDone)} == {
        1: ("failed", "fail0 fail1 fail2 fail3 "),
        2: ("completed", "".join(f"fine{word} " for word in range(6))),
    }
    engine.submit(ear, ask("again", session=2, generation=2))
    drain(engine)
    assert ear.of(ResponseDone)[-1].reason == "completed"


def test_first_sound_goes_before_an_answer_that_is_ahead_of_its_listener() -> None:
    model = ScriptedModel(words=20)
    engine, ear = open_engine(model, sessions=2)
    engine.submit(ear, ask("a", session=1))
    for _ in range(8):
        engine.iterate()
    engine.submit(ear, ask("b", session=2))
    mark = len(model.units)
    for _ in range(2):
        engine.iterate()
    assert model.units[mark:] == ["b"], "one unit opens the answer, the next makes its first sound"


def test_sound_of_several_answers_is_made_together_but_not_without_bound() -> None:
    model = ScriptedModel(words=6, joins=True, unit_samples=24_000)
    engine, ear = open_engine(model, slots=5, sessions=5)
    for session, name in enumerate("abcde", 1):
        engine.submit(ear, ask(name, session=session))
    for _ in range(5):
        engine.iterate()
    model.joint_steps.clear()
    drain(engine)
    assert max(map(len, model.joint_steps)) == 2, "two seconds of sound, not three"
    assert {done.reason for done in ear.of(ResponseDone)} == {"completed"}


def test_a_stretch_of_sound_is_cut_short_for_who_would_come_too_late_behind_it() -> None:
    """A second of sound takes 90 ms, half of it 50: the token of another, due in 80, can wait for that."""
    model, clock = ScriptedModel(words=6, joins=True), HandClock(expected={"sound": Cost(0.010, 0.0, 0.08 / 24_000)})
    engine, ear = open_engine(model, sessions=2, clock=clock)
    for session, name in enumerate("ab", 1):
        engine.submit(ear, ask(name, session=session))
    engine.iterate()
    long, other = model.speakers
    long.unit_samples, long.cuts = 24_000, (6_000, 12_000)
    clock.now += FIRST_SOUND_S - 0.085
    engine.iterate()
    assert long.unit_samples == 12_000 and (long.said, other.said) == (1, 0)


def test_who_would_run_dry_goes_before_who_has_just_asked() -> None:
    model, clock = ScriptedModel(words=30), HandClock()
    engine, ear = open_engine(model, sessions=2, clock=clock)
    engine.submit(ear, ask("a", session=1))
    for _ in range(3):
        engine.iterate()
    # Two words of 80 ms are out. So much later, and what is on the way taken off, they end before a first sound is due.
    clock.now += 2 * 0.08 - FIRST_SOUND_S - ON_THE_WAY_S + 0.001
    engine.submit(ear, ask("b", session=2))
    for _ in range(3):
        engine.iterate()
    assert model.units[2:] == ["a", "b"], "a is made safe, then b is opened and heard"


def test_answers_hurry_when_little_is_in_hand_and_the_more_the_more_are_made() -> None:
    model, clock = ScriptedModel(words=30), HandClock()
    engine, ear = open_engine(model, sessions=2, clock=clock)
    engine.submit(ear, ask("a", session=1))
    paces = []
    for _ in range(4):
        engine.iterate()
        paces.append(model.speakers[0].pace_set)
    assert paces == [None, (False, True), (True, True), (False, True)], "80 ms are little, 160 are enough"
    clock.now += 0.03
    engine.submit(ear, ask("b", session=2))
    engine.iterate()
    assert model.speakers[0].pace_set == (False, False), "210 ms are enough for two"
    clock.now += 0.17
    engine.iterate()
    assert model.speakers[0].pace_set == (True, False), "120 ms are not enough for two"


def test_fault_in_one_session_leaves_the_other_alone() -> None:
    engine, ear = open_engine(ScriptedModel(words=4), sessions=2)
    engine.submit(ear, ask("fail", session=1))
    engine.submit(ear, ask("fine", session=2))
    engine.submit(ear, StartUtterance(1, 1, 12.5, []))
    engine.submit(ear, AudioIn(1, 1, b"\x00\x40"))  # 0.5: the encoder's fault
    engine.submit(ear, EndUtterance(1, 1))
    drain(engine)
    assert {d.session: d.reason for d in ear.of(ResponseDone)} == {1: "failed", 2: "completed"}
    assert codes(ear) == ["internal"]
    engine.submit(ear, ask("again", session=1, generation=2))
    drain(engine)
    assert ear.of(ResponseDone)[-1].reason == "completed", "the session itself goes on"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (AudioIn(1, 1, b"\x00"), "bad_audio"),
        (AudioIn(1, 99, SECOND), "unknown_utterance"),
        (EndUtterance(1, 99), "unknown_utterance"),
        (StartUtterance(1, 1, 12.5, []), "duplicate_utterance"),
        (StartUtterance(1, 2, 3.0, []), "bad_rate"),
        (AudioIn(9, 1, SECOND), "unknown_session"),
        (Cancel(9, 1), "unknown_session"),
    ],
)
def test_a_wrong_message_is_one_error_for_its_session(message: AudioIn, code: str) -> None:
    engine, ear = open_engine(ScriptedModel())
    engine.submit(ear, StartUtterance(1, 1, 12.5, []))
    engine.submit(ear, message)
    drain(engine)
    assert codes(ear) == [code]
    error = ear.of(WorkerError)[0]
    assert error.session == message.session
    known = message.session == 1 and not isinstance(message, Cancel)
    assert error.utterance == (message.utterance if known else None)
    engine.submit(ear, ask())
    drain(engine)
    assert ear.of(ResponseDone)[0].reason == "completed"


def test_answer_to_an_open_utterance_fails_with_a_reason() -> None:
    engine, ear = open_engine(ScriptedModel())
    engine.submit(ear, StartUtterance(1, 1, 12.5, []))
    engine.submit(ear, Respond(1, 1, [ContextItem("user", "", 1)], 12.5))
    drain(engine)
    done = ear.of(ResponseDone)[0]
    assert done.reason == "failed" and "has not ended" in done.error


def test_audio_after_ten_minutes_is_an_error_and_bounded() -> None:
    engine, ear = open_engine(ScriptedModel())
    engine.submit(ear, StartUtterance(1, 1, 12.5, []))
    for _ in range(11):
        engine.submit(ear, AudioIn(1, 1, SECOND * 60))
    drain(engine)
    assert codes(ear) == ["utterance_too_long"]
    assert ear.of(UtteranceEncoded)[0].samples == 600 * 16_000


def test_slots_are_counted_over_clients_and_freed() -> None:
    engine, ear = open_engine(ScriptedModel(), slots=2, sessions=2)
    other = Ear()
    engine.submit(other, OpenSession(1))
    drain(engine)
    assert [type(m) for m in other.got] == [Refused] and other.got[0].code == "capacity"
    engine.submit(ear, CloseSession(1))
    engine.submit(other, OpenSession(1))
    drain(engine)
    assert other.of(SessionOpened) == [SessionOpened(1)]
    engine.client_gone(ear)
    drain(engine)
    assert engine.open_sessions == 1


def test_same_session_number_on_two_connections_are_two_sessions() -> None:
    engine, ear = open_engine(ScriptedModel(words=2))
    other = Ear()
    engine.submit(other, OpenSession(1))
    engine.submit(ear, ask("mine"))
    engine.submit(other, ask("theirs"))
    drain(engine)
    assert ear.of(ResponseDone)[0].text.startswith("mine0") and other.of(ResponseDone)[0].text.startswith("theirs0")


def test_old_utterances_make_room() -> None:
    engine, ear = open_engine(ScriptedModel())
    for number in range(20):
        engine.submit(ear, StartUtterance(1, number, 12.5, []))
        engine.submit(ear, EndUtterance(1, number))
        drain(engine)
    assert codes(ear) == [] and len(ear.of(UtteranceEncoded)) == 20
    engine.submit(ear, DropUtterance(1, 19))
    engine.submit(ear, EndUtterance(1, 19))
    drain(engine)
    assert codes(ear) == ["unknown_utterance"]


def test_the_engine_tells_for_how_long_it_has_been_at_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = HandClock(), []
    engine, ear = open_engine(ScriptedModel(), clock=clock)
    engine.submit(ear, ask())
    step = ScriptedSpeaker.step

    def slow(speaker: ScriptedSpeaker) -> list[Spoken]:
        clock.now += 7.0
        told.append(engine.unit_s)
        return step(speaker)

    monkeypatch.setattr(ScriptedSpeaker, "step", slow)
    drain(engine)
    assert set(told) == {7.0}
    assert engine.unit_s == 0.0


def test_the_load_is_told_and_callers_beyond_it_are_refused() -> None:
    class Slow(HandClock):
        def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
            self.now += 0.05
            return super().run(unit, work)

    clock = Slow({"token": Cost(0.05), "beginning": Cost(0.05), "hearing": Cost(0.05)})
    engine, ear = open_engine(ScriptedModel(words=40, joins=True), slots=40, sessions=4, clock=clock)
    for session in range(1, 5):
        engine.submit(ear, ask("a", session=session))
    drain(engine)
    loads = ear.of(WorkerLoad)
    assert loads and loads[-1].busy > 0.5 and loads[-1].sessions == 4
    assert [hz for hz, _ in loads[-1].at_hz] == [12.5, 10.0, 8.0, 6.25, 5.0, 4.0]
    for session in range(5, 30):
        engine.submit(ear, OpenSession(session, 12.5))
    drain(engine)
    refused = [refusal for refusal in ear.of(Refused) if refusal.code == "capacity"]
    assert refused and "can carry" in refused[0].message
    clock.now += 60.0
    engine.submit(ear, OpenSession(99, 12.5))
    drain(engine)
    assert SessionOpened(99) in ear.got, "who has long been silent costs nothing"


def test_a_fault_at_a_message_stays_within_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel()
    engine, ear = open_engine(model, sessions=2)

    def faulty(*_: object) -> ScriptedListener:
        raise ValueError("a fault in the ear")

    monkeypatch.setattr(model, "listen", faulty)
    engine.submit(ear, StartUtterance(1, 1, 12.5, []))
    engine.submit(ear, ask(session=2))
    drain(engine)
    assert [(error.session, error.code, error.utterance) for error in ear.of(WorkerError)] == [(1, "internal", 1)]
    assert [done.reason for done in ear.of(ResponseDone)] == ["completed"]


def test_stop_ends_the_thread_whether_it_works_or_waits() -> None:
    import threading

    engine = Engine(ScriptedModel(), 1)
    thread = threading.Thread(target=engine.run)
    thread.start()
    time.sleep(0.05)
    engine.stop()
    thread.join(2.0)
    assert not thread.is_alive()
