"""One leased slot: the utterances a caller is speaking and the answer being spoken back.

    Respond ─► waiting (until its utterance is heard) ─► speaking ─► done | cancelled | failed

A session does nothing by itself: `handle` takes a message, `due` says what its next unit of work is and by when it
should be done, `work` does that unit, or the engine does it for several sessions at once. Whatever goes wrong in a
unit of its own stays within the session. What was heard by a listener that does not transcribe is written down when
there is nothing else to do (`worker.dictation`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from agent.wire import (
    AudioIn,
    AudioOut,
    Cancel,
    DropUtterance,
    EndUtterance,
    LikelyEnd,
    Respond,
    ResponseDone,
    ResponseStats,
    StartUtterance,
    TextDelta,
    Transcript,
    WorkerError,
)
from worker.dictation import Dictation
from worker.listening import Clock, Send, Utterance, Utterances
from worker.parts import (
    Conversation,
    Finished,
    Question,
    RequestError,
    Sound,
    Speaker,
    SpeechModel,
    Spoken,
    TextPiece,
    Unit,
)

log = logging.getLogger("agogic.worker")

FIRST_OUTPUT_HZ = 12.5
"""The rate that the first answer is expected to have; only a wrong guess costs time."""
HURRY_S, HURRY_EACH_S = 0.1, 0.03
"""With less sound than this in hand, the next piece is not waited for to grow; so much more for every other answer that
is being made, whose turn may come first."""
FIRST_SOUND_S = 0.2
"""An answer should be heard this soon; those who would run dry earlier go before it."""

ToSession = StartUtterance | AudioIn | LikelyEnd | EndUtterance | DropUtterance | Respond | Cancel
Reason = Literal["completed", "max_output_tokens", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Due:
    """A session's next unit and by when (clock seconds) it should be done. Hearing, tokens and sounds of several
    sessions may be done in one go; "answer" is the beginning or the end of one."""

    work: Literal["hearing", "token", "sound", "rounding off", "answer", "dictation"]
    deadline: float


@dataclass(slots=True)
class Response:
    request: Respond
    arrived_at: float
    speaker: Speaker | None = None
    speaker_at: float = 0.0
    samples: int = 0
    first_text_at: float = 0.0
    first_audio_at: float = 0.0


class Session:
    """See the module. number: the service's name for this slot; send: where its messages go; clock: seconds.

    other_answers: how many other sessions are being answered just now.
    """

    def __init__(self, number: int, model: SpeechModel, send: Send, clock: Clock) -> None:
        self.number = number
        self._model = model
        self._send = send
        self._clock = clock
        self._response: Response | None = None
        self._generation = -1
        self.other_answers = 0
        self._output_hz = FIRST_OUTPUT_HZ
        self._dictation = Dictation(model, lambda utterance, text: send(Transcript(number, utterance, text, True)))
        self.utterances = Utterances(number, model, self._dictation, send, clock)

    # --- messages ---

    def handle(self, message: ToSession) -> None:
        """Never raises: what is wrong with a message, or goes wrong in it, stays within the session."""
        try:
            match message:
                case StartUtterance():
                    self.utterances.start(message, self._output_hz)
                case AudioIn():
                    self.utterances.audio(message)
                case LikelyEnd():
                    self.utterances.end(message.utterance, certain=False)
                case EndUtterance():
                    self.utterances.end(message.utterance, certain=True)
                case DropUtterance():
                    self.utterances.drop(message.utterance)
                case Respond():
                    self._respond(message)
                case Cancel():
                    if self._response and self._response.request.generation <= message.generation:
                        self._finish("cancelled")
        except RequestError as error:
            self._refuse(message, error.code, str(error))
        except Exception as error:
            log.exception("session %d: a %s failed", self.number, type(message).__name__)
            self._refuse(message, "internal", f"the worker failed at it: {error}")

    def _refuse(self, message: ToSession, code: str, text: str) -> None:
        utterance = None if isinstance(message, Respond | Cancel) else message.utterance
        self._send(WorkerError(self.number, code, text, utterance))

    def _respond(self, message: Respond) -> None:
        if message.generation <= self._generation:
            raise RequestError("stale_generation", f"generation {message.generation} is not after {self._generation}")
        if self._response:
            self._finish("cancelled")
        self._dictation.give_way()
        self._generation = message.generation
        self._output_hz = message.output_hz
        self._response = Response(message, self._clock())

    # --- work ---

    def due(self) -> Due | None:
        """The next unit: it should be done by the time the caller's buffer runs dry while we speak, soon after the
        request before the first sound, with some slack for listening, with much for what is only to be written down.
        None: there is nothing to do."""
        listening, speaking = self.listening_due(), self._speaking_due()
        if listening is not None and (speaking is None or listening.deadline <= speaking.deadline):
            return listening
        return speaking or self._dictation_due()

    @property
    def answering(self) -> bool:
        """Whether an answer is being made."""
        return self._response is not None

    def listening_due(self) -> Due | None:
        """The same for listening alone."""
        utterance = self.utterances.due()
        if utterance is None:
            return None
        deadline = utterance.deadline
        if self._response is not None and utterance is self._awaited():
            deadline = self._response.arrived_at + FIRST_SOUND_S
        return Due("hearing" if utterance.waiting else "rounding off", deadline)

    def work(self, due: Due) -> None:
        """Does a unit that is not done together with others. Never raises: an error ends the utterance or the answer
        it struck."""
        match due.work:
            case "rounding off":
                utterance = self.utterances.due()
                assert utterance is not None
                self.utterances.round_off(utterance)
            case "answer":
                self._speak()
            case _:
                self._dictation.work()

    def joining(self, unit: Unit) -> Speaker | None:
        """The speaker at work, if it can do such a unit now."""
        due = self._speaking_due()
        speaker = self._response.speaker if self._response else None
        return speaker if due is not None and due.work == unit else None

    def take(self, events: Sequence[Spoken]) -> None:
        """What the unit of the speaker that was `joining` gave."""
        assert self._response is not None
        for event in events:
            self._deliver(self._response, event)

    def fail(self, error: Exception) -> None:
        """That unit failed."""
        self._finish("failed", f"the answer failed: {error}")

    def close(self) -> None:
        """Drops everything; nothing more is sent."""
        if self._response and self._response.speaker:
            self._response.speaker.close()
        self._response = None
        self.utterances.close()

    def _awaited(self) -> Utterance | None:
        """The utterance that the answer at hand still waits for."""
        if self._response is None or self._response.speaker is not None:
            return None
        last = self._response.request.context[-1] if self._response.request.context else None
        utterance = self.utterances.get(last.utterance) if last else None
        return utterance if utterance and not utterance.heard else None

    def _speaking_due(self) -> Due | None:
        response = self._response
        if response is None:
            return None
        awaited = self._awaited()
        if awaited is not None and awaited.ended:
            return None
        speaker, deadline = response.speaker, response.arrived_at + FIRST_SOUND_S
        if response.first_audio_at:
            deadline = response.first_audio_at + response.samples / self._model.output_sample_rate
        if speaker is None:
            return Due("answer", deadline)
        hurried = deadline - self._clock() < HURRY_S + HURRY_EACH_S * self.other_answers
        speaker.pace(hurried=hurried, alone=not self.other_answers)
        unit = speaker.unit
        return Due("answer" if unit == "end" else unit, deadline)

    def _dictation_due(self) -> Due | None:
        """None while the caller speaks or an answer is at hand: they have the model's places."""
        free = self._response is None and self.utterances.all_heard
        deadline = self._dictation.deadline() if free else None
        return Due("dictation", deadline) if deadline is not None else None

    def _speak(self) -> None:
        response = self._response
        assert response is not None
        try:
            if response.speaker is None:
                response.speaker_at = self._clock()
                response.speaker = self._model.respond(self._question(response.request))
                return
            self.take(response.speaker.step())
        except RequestError as error:
            self._finish("failed", str(error), error.code)
        except Exception as error:
            log.exception("session %d: answer %d failed", self.number, response.request.generation)
            self._finish("failed", f"the answer failed: {error}")

    def _question(self, request: Respond) -> Question:
        if not request.context:
            raise RequestError("empty_context", "there is nothing to answer: the context is empty")
        last = request.context[-1].utterance
        utterance = self.utterances.get(last)
        if utterance is not None and not utterance.heard:
            raise RequestError("utterance_open", f"utterance {last} has not ended; end it before asking for an answer")
        return Question(
            Conversation(request.instructions, tuple(request.context)),
            self.utterances.heard(),
            request.input_hz,
            request.output_hz,
            request.speech,
            request.max_output_tokens,
            session=self.number,
            generation=request.generation,
        )

    def _deliver(self, response: Response, event: TextPiece | Sound | Finished) -> None:
        generation = response.request.generation
        match event:
            case TextPiece(text):
                response.first_text_at = response.first_text_at or self._clock()
                self._send(TextDelta(self.number, generation, text))
            case Sound(pcm, tokens, words):
                response.first_audio_at = response.first_audio_at or self._clock()
                data = (np.clip(pcm, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
                self._send(AudioOut(self.number, generation, response.samples, data, list(tokens), list(words)))
                response.samples += len(pcm)
            case Finished(reason):
                self._finish(reason)

    def _finish(self, reason: Reason, error: str = "", code: str = "") -> None:
        response, self._response = self._response, None
        assert response is not None
        text, stats = "", ResponseStats()
        if response.speaker is not None:
            text, stats = response.speaker.text, response.speaker.stats()
            response.speaker.close()
        waited_ms = _since(response.arrived_at, response.speaker_at)
        stats = msgspec.structs.replace(
            stats,
            first_token_ms=stats.first_token_ms + waited_ms if stats.first_token_ms else 0.0,
            first_text_ms=_since(response.arrived_at, response.first_text_at),
            first_audio_ms=_since(response.arrived_at, response.first_audio_at),
            total_ms=_since(response.arrived_at, self._clock()),
            requested_output_hz=response.request.output_hz,
        )
        self._send(ResponseDone(self.number, response.request.generation, reason, text, stats, error, code))


def _since(start: float, end: float) -> float:
    """Milliseconds from start to end, 0 where the end never came (clock 0)."""
    return (end - start) * 1e3 if end else 0.0
