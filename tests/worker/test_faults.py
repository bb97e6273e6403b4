"""A unit of several callers that fails halfway leaves no trace, so that each can be tried alone; spoilt numbers and a
full memory are one session's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from agent.wire import (
    AudioIn,
    ContextItem,
    EndUtterance,
    OpenSession,
    Respond,
    ResponseDone,
    StartUtterance,
    UtteranceEncoded,
    WorkerError,
)
from tests.worker.scripted import Ear, HandClock, ScriptedListener, ScriptedModel
from tests.worker.test_pipeline import NOTHING, noise, question, run
from tests.worker.tiny import pipeline
from worker.engine import Engine
from worker.listener import PipelineListener
from worker.parts import Finished, Listener, RequestError, Sound, Speaker, Spoken, TextPiece, Unit
from worker.pipeline import Pipeline

ROWS = 2


def after_the_work(function: Callable[..., Any], several: Callable[..., bool]) -> Callable[..., Any]:
    """Fails once it has done everything, where it did so for several rows."""

    def failing(*args: Any, **options: Any) -> Any:
        given = function(*args, **options)
        if several(*args):
            raise RuntimeError("a fault of the networks")
        return given

    return failing


def each_alone(work: Callable[[Sequence[Any]], Any], rows: Sequence[Any], failed: list[int]) -> list[Any]:
    """As the engine does it; `failed` counts how often it had to."""
    try:
        return [work(rows)]
    except RuntimeError:
        failed.append(len(rows))
        return [work([row]) for row in rows]


def heard_and_answered(
    model: Pipeline, failed: list[int], breaking: pytest.MonkeyPatch | None = None
) -> list[tuple[str, list[float]]]:
    """Two utterances listened to in three pieces, and their answers, unit by unit; `breaking`: joint work fails."""
    sounds = [noise(1.5, seed) for seed in range(ROWS)]
    listeners = [model.listen(NOTHING, 12.5, 12.5) for _ in sounds]
    voice = model.networks.voice
    for owner, name in ((model.runner, "extend_together"), (model.runner, "_feed"), (voice, "_render")):
        if breaking is not None:
            failing = after_the_work(getattr(owner, name), lambda rows, *_: len(rows) > 1)
            breaking.setattr(owner, name, failing)
    each_alone(model.open, listeners, failed)
    for at in range(0, 24_000, 8_000):

        def feed(rows: Sequence[PipelineListener], at: int = at) -> None:
            model.feed(rows, [sounds[listeners.index(row)][at : at + 8_000] for row in rows])

        each_alone(feed, listeners, failed)
    each_alone(model.prepare, listeners, failed)
    for listener in listeners:
        listener.finish()
    speakers = [model.respond(question(listener)) for listener in listeners]
    texts, pcm, going = [""] * ROWS, [[] for _ in range(ROWS)], set(range(ROWS))
    while going:
        unit = speakers[min(going)].unit
        rows = [row for row in sorted(going) if speakers[row].unit == unit]
        if unit == "end":
            given = [speakers[row].step() for row in rows]
        else:
            given = [
                reply
                for part in each_alone(partial(model.step, unit=unit), [speakers[row] for row in rows], failed)
                for reply in part
            ]
        for row, events in zip(rows, given, strict=True):
            for event in events:
                if isinstance(event, TextPiece):
                    texts[row] += event.text
                elif isinstance(event, Sound):
                    pcm[row].append(event.pcm)
                elif isinstance(event, Finished):
                    going.discard(row)
    return [(text, np.concatenate(parts).tolist()) for text, parts in zip(texts, pcm, strict=True)]


def test_joint_units_that_fail_after_their_work_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[int] = []
    expected = heard_and_answered(pipeline(3), failed)
    assert not failed
    given = heard_and_answered(pipeline(3), failed, monkeypatch)
    assert len(failed) > 10, "prompts, sounds, ends, beginnings, steps and pieces of speech"
    for (text, pcm), (wanted_text, wanted_pcm) in zip(given, expected, strict=True):
        assert text == wanted_text and pcm
        np.testing.assert_allclose(pcm, wanted_pcm, atol=2e-4)


class SpoiltModel(ScriptedModel):
    """Whoever is called `broken` makes a sound of no numbers, or finds no memory."""

    memory = False

    def step(self, speakers: Sequence[Speaker], unit: Unit) -> list[list[Spoken]]:
        names = [getattr(speaker, "name", "") for speaker in speakers]
        if self.memory and "broken" in names and speakers[0].unit != "beginning":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        given = super().step(speakers, unit)
        return [
            [Sound(np.full_like(event.pcm, np.nan), (), ()) if isinstance(event, Sound) else event for event in events]
            if name == "broken"
            else events
            for name, events in zip(names, given, strict=True)
        ]


@pytest.mark.parametrize("memory", [False, True], ids=["no numbers", "no memory"])
def test_a_spoilt_session_begins_anew_and_no_other_notices(memory: bool) -> None:
    model = SpoiltModel(words=4, joins=True)
    model.memory = memory
    engine, ear = Engine(model, 2, HandClock()), Ear()
    for session, name in ((1, "broken"), (2, "fine")):
        engine.submit(ear, OpenSession(session))
        engine.submit(ear, StartUtterance(session, 7, 12.5, []))
        engine.submit(ear, AudioIn(session, 7, b"\x00\x10" * 16_000))
        engine.submit(ear, EndUtterance(session, 7))
        engine.submit(ear, Respond(session, 1, [ContextItem("user", name)], 12.5))
    while engine.iterate():
        pass
    assert {done.session: done.reason for done in ear.of(ResponseDone)} == {1: "failed", 2: "completed"}
    assert {encoded.session for encoded in ear.of(UtteranceEncoded)} == {1, 2}
    lost = [(error.session, error.utterance) for error in ear.of(WorkerError)]
    assert lost == [(1, 7)], "what it had heard goes with it, and the service is told which utterance to send again"
    model.memory = False
    engine.submit(ear, Respond(1, 2, [ContextItem("user", "again")], 12.5))
    while engine.iterate():
        pass
    assert ear.of(ResponseDone)[-1].reason == "completed"


class NarrowModel(ScriptedModel):
    """Takes no instructions of more than ten letters."""

    def open(self, listeners: Sequence[Listener]) -> None:
        for listener in listeners:
            assert isinstance(listener, ScriptedListener)
            if len(listener.conversation.instructions) > 10:
                raise RequestError("context_too_long", "it does not fit")
        super().open(listeners)


def test_a_prompt_that_does_not_fit_is_its_own_callers_error() -> None:
    engine, ear = Engine(NarrowModel(), 3, HandClock()), Ear()
    for session, instructions in ((1, "be brief, and never rude"), (2, "be brief")):
        engine.submit(ear, OpenSession(session))
        engine.submit(ear, StartUtterance(session, 1, 12.5, [], instructions))
        engine.submit(ear, AudioIn(session, 1, b"\x00\x10" * 8_000))
        engine.submit(ear, EndUtterance(session, 1))
    while engine.iterate():
        pass
    assert [(error.session, error.code) for error in ear.of(WorkerError)] == [(1, "context_too_long")]
    assert [encoded.session for encoded in ear.of(UtteranceEncoded)] == [2]


def test_a_run_alone_is_what_it_was() -> None:
    """The comparison above means something: answers are not empty."""
    model = pipeline(2)
    utterance = model.listen(NOTHING, 12.5, 12.5)
    utterance.feed(noise(1.5))
    utterance.finish()
    assert run(model.respond(question(utterance)))[1].size
