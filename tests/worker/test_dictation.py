"""What was heard without a recogniser is written down when the session has nothing else to do, and gives way to all."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from agent.wire import (
    INPUT_SAMPLE_RATE,
    AudioIn,
    Cancel,
    CloseSession,
    ContextItem,
    DropUtterance,
    EndUtterance,
    Message,
    OpenSession,
    Respond,
    ResponseDone,
    StartUtterance,
    Transcript,
    UtteranceEncoded,
    WorkerError,
)
from tests.support.official import question, save_official
from tests.worker.scripted import Ear, HandClock, ScriptedModel
from worker.dictation import LEAST_TOKENS, TOKENS_PER_S
from worker.engine import Engine
from worker.listening import MAX_HEARD
from worker.loading import load_model
from worker.parts import SpeechModel
from worker.pipeline import Networks, Pipeline
from worker.turn import TurnSettings, write_down

SECOND = b"\x00\x10" * 16_000
WRITTEN = "w0 w1 w2"


def opened(model: SpeechModel, sessions: int = 1) -> tuple[Engine, Ear]:
    engine, ear = Engine(model, sessions, HandClock()), Ear()
    for number in range(1, sessions + 1):
        engine.submit(ear, OpenSession(number))
    return engine, ear


def spoken(number: int, pcm: bytes = SECOND, session: int = 1) -> list[Message]:
    return [
        StartUtterance(session, number, 12.5, []),
        AudioIn(session, number, pcm),
        EndUtterance(session, number),
    ]


def answer(number: int, session: int = 1) -> Respond:
    return Respond(session, number, [ContextItem("user", "", number)], 12.5)


def do(engine: Engine, ear: Ear, *messages: Message) -> None:
    for message in messages:
        engine.submit(ear, message)
    while engine.iterate():
        pass


def until_writing(engine: Engine, model: ScriptedModel) -> None:
    while "w" not in "".join(model.units):
        assert engine.iterate()


def test_it_is_written_after_the_answer() -> None:
    engine, ear = opened(model := ScriptedModel(words=3, transcribes=False))
    do(engine, ear, *spoken(1), answer(1))
    assert ear.of(Transcript) == [Transcript(1, 1, WRITTEN, True)]
    kinds = [type(message) for message in ear.got]
    assert kinds.index(UtteranceEncoded) < kinds.index(ResponseDone) < kinds.index(Transcript)
    asked = model.questions[-1]
    assert asked.transcribe and not asked.speech and asked.max_output_tokens == 24
    assert len(asked.conversation.items) == 1 and all(speaker.closed for speaker in model.speakers)


def test_it_is_written_after_a_cancelled_answer_and_without_any() -> None:
    engine, ear = opened(ScriptedModel(words=3, transcribes=False))
    do(engine, ear, *spoken(1), answer(1), Cancel(1, 1))
    do(engine, ear, *spoken(2))
    assert [done.reason for done in ear.of(ResponseDone)] == ["cancelled"]
    assert ear.of(Transcript) == [Transcript(1, number, WRITTEN, True) for number in (1, 2)]


def test_live_transcripts_are_not_written_again() -> None:
    engine, ear = opened(model := ScriptedModel())
    do(engine, ear, *spoken(1), answer(1))
    assert [transcript.final for transcript in ear.of(Transcript)].count(True) == 1
    assert not any(question.transcribe for question in model.questions)


@pytest.mark.parametrize("interruption", [[StartUtterance(1, 2, 12.5, [])], [answer(7)]], ids=["caller", "answer"])
def test_it_gives_way_at_once_and_is_begun_anew(interruption: list[Message]) -> None:
    engine, ear = opened(model := ScriptedModel(words=3, transcribes=False))
    for message in spoken(1):
        engine.submit(ear, message)
    until_writing(engine, model)
    for message in interruption:
        engine.submit(ear, message)
    engine.iterate()
    assert model.speakers[0].closed and model.units == ["w"]
    do(engine, ear)
    if isinstance(interruption[0], StartUtterance):
        assert not ear.of(Transcript), "the caller is still speaking"
        do(engine, ear, EndUtterance(1, 2))
    assert ear.of(Transcript)[0] == Transcript(1, 1, WRITTEN, True)
    assert all(speaker.closed for speaker in model.speakers)


@pytest.mark.parametrize("ending", [DropUtterance(1, 1), CloseSession(1)], ids=["dropped", "closed"])
def test_nothing_is_written_for_nobody(ending: Message) -> None:
    engine, ear = opened(model := ScriptedModel(words=3, transcribes=False))
    for message in spoken(1):
        engine.submit(ear, message)
    until_writing(engine, model)
    do(engine, ear, ending)
    assert not ear.of(Transcript) and model.units == ["w"] and model.speakers[0].closed


def test_work_of_other_sessions_comes_first() -> None:
    engine, ear = opened(model := ScriptedModel(words=3, transcribes=False), sessions=2)
    for message in spoken(1):
        engine.submit(ear, message)
    until_writing(engine, model)
    do(engine, ear, *spoken(1, session=2), answer(1, session=2))
    assert "".join(model.units) == "w" + "a" * 4 + "w" * 7, "the rest of the first, then the second"
    assert [transcript.session for transcript in ear.of(Transcript)] == [1, 2]


def test_what_cannot_be_written_is_empty_and_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ear = opened(model := ScriptedModel(words=3, transcribes=False))
    do(engine, ear, *spoken(1, pcm=b""))
    assert not model.questions, "nothing was heard"
    respond = model.respond

    def fail(question: object) -> object:
        raise ValueError("a fault in the model")

    monkeypatch.setattr(model, "respond", fail)
    do(engine, ear, *spoken(2))
    monkeypatch.setattr(model, "respond", respond)
    do(engine, ear, *spoken(3))
    assert [(t.utterance, t.text) for t in ear.of(Transcript)] == [(1, ""), (2, ""), (3, WRITTEN)]
    assert not ear.of(WorkerError)


def test_each_utterance_gets_one_final_transcript_even_where_there_never_is_time() -> None:
    engine, ear = opened(ScriptedModel(words=3, transcribes=False))
    for number in range(1, MAX_HEARD + 2):
        for message in (*spoken(number), answer(number)):
            engine.submit(ear, message)
        while len(ear.of(UtteranceEncoded)) < number:
            engine.iterate()
    assert ear.of(Transcript) == [Transcript(1, 1, "", True)]
    do(engine, ear)
    assert [transcript.utterance for transcript in ear.of(Transcript)] == list(range(1, MAX_HEARD + 2))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    directory = save_official(tmp_path_factory.mktemp("official") / "toy", prompt=False)
    return load_model(str(directory), speaks=False).networks


def written_answer(number: int, session: int = 1) -> Respond:
    return msgspec.structs.replace(answer(number, session), speech=False, max_output_tokens=12)


def test_official_weights_write_in_a_call_what_they_write_when_asked(official: Networks) -> None:
    pcm = (question().numpy() * 32767).astype("<i2")
    engine, ear = opened(Pipeline(official, 1))
    for number in (1, 2, 3):
        do(engine, ear, *spoken(number, pcm.tobytes()), written_answer(number))
    limit = LEAST_TOKENS + int(TOKENS_PER_S * len(pcm) / INPUT_SAMPLE_RATE)
    asked = write_down(Pipeline(official, 1), pcm.astype(np.float32) / 32768, TurnSettings(max_output_tokens=limit))
    assert asked.transcript and not ear.of(WorkerError)
    assert ear.of(Transcript) == [Transcript(1, number, asked.transcript, True) for number in (1, 2, 3)]
    first, *others = [done.text for done in ear.of(ResponseDone)]
    assert first != asked.transcript and others == [first] * 2, "answered as if nothing had been written"


def test_who_speaks_or_is_answered_finds_a_place_while_others_are_written_down(official: Networks) -> None:
    engine, ear = opened(Pipeline(official, 2), sessions=2)
    for number in range(1, 6):
        for session in (1, 2):
            for message in (*spoken(number, session=session), written_answer(number, session)):
                engine.submit(ear, message)
            for _ in range(4 * number):
                engine.iterate()
    do(engine, ear)
    assert not ear.of(WorkerError)
    assert {done.reason for done in ear.of(ResponseDone)} == {"cancelled", "max_output_tokens"}
    told = sorted((transcript.session, transcript.utterance) for transcript in ear.of(Transcript))
    assert told == [(session, number) for session in (1, 2) for number in range(1, 6)]
    assert all(transcript.text for transcript in ear.of(Transcript))
