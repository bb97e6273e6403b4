"""One leased slot: the utterances a caller is speaking and the answer being spoken back.

    Respond ─► waiting (until its utterance is ready) ─► speaking ─► done | cancelled | failed

An utterance that has probably ended may be answered before that is certain; where it goes on, the answer is over.

A session does nothing by itself: `handle` takes a message, `works` says what could be done for it and by when, and the
engine does that for several sessions at once. Whatever goes wrong stays within it. What was heard by a listener that
does not transcribe is written down when the session does nothing else (`worker.dictation`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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
    ToolCall,
    Transcript,
    WorkerError,
)
from worker.dictation import Dictation
from worker.listening import Clock, Send, Utterance, Utterances
from worker.parts import (
    Called,
    Conversation,
    Finished,
    Question,
    RequestError,
    Sound,
    Speaker,
    SpeechModel,
    SpoiltError,
    Spoken,
    TextPiece,
)
from worker.scheduler import AHEAD_S, ENOUGH_S, Key, Work

log = logging.getLogger("agogic.worker")

HURRY_S, HURRY_EACH_S = 0.15, 0.03
"""With less sound than this in hand, the next piece is not waited for to grow; so much more for every other answer that
is being made, whose turn may come first."""
FIRST_SOUND_S = 0.2
"""An answer should be heard this soon; those who would run dry earlier go before it."""
LATE_FIRST_SOUND_S = 0.25
"""One that is heard later than this came late."""
ON_THE_WAY_S = 0.1
"""Sound should be ready so much before it is needed: it has to get through two processes."""
WAITED_FOR_S, LONG_S = 0.1, 10.0
"""Who waits for a first sound that is late counts as late by one to two times this, by how long he waits."""
TEXT_S = 0.2
"""The next token of an answer that is read should come within this time."""
BEGINNING_SIZE = 16
"""Positions behind the sound, about."""

ToSession = StartUtterance | AudioIn | LikelyEnd | EndUtterance | DropUtterance | Respond | Cancel
Reason = Literal["completed", "max_output_tokens", "cancelled", "failed"]


@dataclass(slots=True)
class Response:
    request: Respond
    arrived_at: float
    speaker: Speaker | None = None
    speaker_at: float = 0.0
    samples: int = 0
    first_text_at: float = 0.0
    first_audio_at: float = 0.0
    stepped_at: float = 0.0


class Session:
    """See the module. number: the service's name for this slot; send: where its messages go; clock: seconds.

    other_answers: how many other sessions are being answered just now; lead_s: how long it takes from some steps of
    talking to their sound, next_in_s: and at the worst, with what others may need in between; coarsest_hz: the rate
    that its answers may be made coarse to; active_at: when something last happened in it; first_sounds: whether
    answers that began to be heard since somebody emptied it came late.
    """

    def __init__(self, number: int, model: SpeechModel, send: Send, clock: Clock, coarsest_hz: float) -> None:
        self.number = number
        self.coarsest_hz = coarsest_hz
        self._model = model
        self._send = send
        self._clock = clock
        self._response: Response | None = None
        self._generation = -1
        self.other_answers = 0
        self.lead_s = self.next_in_s = 0.0
        self.active_at = clock()
        self.first_sounds: list[bool] = []
        written = lambda utterance, text: send(Transcript(number, utterance, text, True))  # noqa: E731
        self._dictation = Dictation(model, written, clock)
        self.utterances = Utterances(number, model, self._dictation, send, clock)

    # --- messages ---

    def handle(self, message: ToSession) -> None:
        """Never raises: what is wrong with a message, or goes wrong in it, stays within the session."""
        self.active_at = self._clock()
        try:
            match message:
                case StartUtterance():
                    self.utterances.start(message)
                case AudioIn():
                    answered = self._answered()
                    if answered is not None and answered.number == message.utterance:
                        self._finish("cancelled")
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
        self._response = Response(message, self._clock())

    # --- work ---

    def works(self, key: Key) -> Iterator[Work]:
        """What could be done for this session, under its `key`: what was heard, and what is said or written."""
        utterance = self.utterances.due()
        if utterance is not None:
            # Late or not, what nobody waits for is no more urgent than what should be done now.
            deadline = max(utterance.deadline, self._clock())
            if self._response is not None and utterance is self._awaited():
                deadline = self._first_sound_due(self._response)
            yield Work(key, utterance.stage, deadline, utterance.size)
        if self._response is not None:
            yield from self._speaking(key, self._response)
        elif self.utterances.all_heard and (due := self._dictation.due()) is not None:
            # While the caller speaks or an answer is at hand, those have the model's places.
            unit, deadline = due
            yield Work(key, unit, deadline, BEGINNING_SIZE if unit == "beginning" else 0)

    @property
    def answering(self) -> bool:
        """Whether an answer is being made."""
        return self._response is not None

    @property
    def made(self) -> bool:
        """Whether all of the answer at hand is made."""
        speaker = self._response.speaker if self._response else None
        return speaker is None or speaker.unit == "end"

    @property
    def dry_at(self) -> float | None:
        """When the caller's sound will have run out, None where no answer is being heard."""
        response = self._response
        if response is None or not response.first_audio_at:
            return None
        return response.first_audio_at + response.samples / self._model.output_sample_rate

    def speaker(self) -> Speaker | None:
        """Whose unit is to be done, made where there is none yet. `take` or `fail` must follow. None where it cannot be
        made: then that is reported. Never raises."""
        response = self._response
        if response is None:
            return self._dictation.speaker()
        try:
            if response.speaker is None:
                response.speaker_at = self._clock()
                response.speaker = self._model.respond(self._question(response.request))
        except Exception as error:
            self.fail(error)
        return response.speaker

    def take(self, events: Sequence[Spoken]) -> None:
        """What the unit of the `speaker` gave."""
        response = self._response
        if response is None:
            self._dictation.take(events)
            return
        response.stepped_at = self.active_at = self._clock()
        for event in events:
            self._deliver(response, event)

    def fail(self, error: Exception) -> None:
        """That unit failed."""
        if self._response is None:
            self._dictation.fail(error)
        elif isinstance(error, RequestError):
            self._finish("failed", str(error), error.code)
        else:
            self._finish("failed", f"the answer failed: {error}")

    def spoilt(self, error: Exception) -> None:
        """All that the model keeps for this session is dropped; the service has what is needed to begin anew."""
        log.error("session %d starts anew: %s", self.number, error)
        if self._response:
            self._finish("failed", f"the answer failed: {error}")
        self.utterances.lose_all(f"the session had to start anew: {error}")

    def close(self) -> None:
        """Drops everything; nothing more is sent."""
        if self._response and self._response.speaker:
            self._response.speaker.close()
        self._response = None
        self.utterances.close()

    def _answered(self) -> Utterance | None:
        """The utterance that is answered, if it is open still."""
        request = self._response.request if self._response is not None else None
        if request is None or not request.context or request.say:
            return None
        utterance = self.utterances.get(request.context[-1].utterance)
        return utterance if utterance and not utterance.heard else None

    def _awaited(self) -> Utterance | None:
        """The utterance that the answer at hand still waits for."""
        utterance = self._answered()
        begun = self._response is not None and self._response.speaker is not None
        return utterance if utterance and not begun and not utterance.answerable else None

    def _first_sound_due(self, response: Response) -> float:
        """Of those who wait too long already, who came first goes first, and all before what nobody waits for."""
        due, now = response.arrived_at + FIRST_SOUND_S, self._clock()
        return due if due > now else now - WAITED_FOR_S - WAITED_FOR_S * min(1.0, (now - due) / LONG_S)

    def _speaking(self, key: Key, response: Response) -> Iterator[Work]:
        """The next unit of the answer, and steps of talking where it is the sound of earlier ones: by the time the
        caller's buffer runs dry, soon after the request before that."""
        awaited = self._awaited()
        if awaited is not None and awaited.likely:
            return
        now, rate = self._clock(), self._model.output_sample_rate
        dry_at = self.dry_at
        if dry_at is not None:
            deadline = dry_at - ON_THE_WAY_S
        elif not response.request.speech and response.stepped_at:
            deadline = response.stepped_at + TEXT_S
        else:
            deadline = self._first_sound_due(response)
        speaker = response.speaker
        if speaker is None:
            yield Work(key, "beginning", deadline, BEGINNING_SIZE)
            return
        in_hand_s = (dry_at if dry_at is not None else response.arrived_at + FIRST_SOUND_S) - now
        hurry_s = HURRY_S + HURRY_EACH_S * self.other_answers
        hurried = in_hand_s < hurry_s
        speaker.pace(hurried=hurried, alone=not self.other_answers, next_in_s=self.next_in_s)
        unit = speaker.unit
        if unit != "token":
            size = {"sound": speaker.unit_samples, "beginning": BEGINNING_SIZE}.get(unit, 0)
            cuts = speaker.cuts if unit == "sound" else ()
            yield Work(key, unit, deadline, size, playing=dry_at is not None, cuts=cuts)
        if not speaker.talks:
            return
        if dry_at is None:
            if unit == "token":
                yield Work(key, "token", deadline)
            return
        made_until = response.first_audio_at + speaker.made_samples / rate
        token_deadline = (deadline if unit == "token" else made_until - ON_THE_WAY_S) - self.lead_s
        joins_from, begins_from = made_until - AHEAD_S, made_until - ENOUGH_S
        if unit == "token":
            # From then on sound comes of fewer tokens; where it does not, more are needed.
            joins_from, begins_from = min(joins_from, dry_at - hurry_s), min(begins_from, dry_at - hurry_s)
        yield Work(key, "token", token_deadline, 0, joins_from, begins_from, playing=True)

    def _question(self, request: Respond) -> Question:
        if not request.context and not request.say:
            raise RequestError("empty_context", "there is nothing to answer: the context is empty")
        last = request.context[-1].utterance if request.context and not request.say else None
        utterance = self.utterances.get(last)
        if utterance is not None and not utterance.answerable:
            raise RequestError("utterance_open", f"utterance {last} has not ended; end it before asking for an answer")
        return Question(
            Conversation(request.instructions, tuple(request.context), request.tools),
            self.utterances.answerable(),
            request.input_hz,
            request.output_hz,
            request.speech,
            request.max_output_tokens,
            session=self.number,
            generation=request.generation,
            say=request.say,
        )

    def _deliver(self, response: Response, event: Spoken) -> None:
        generation = response.request.generation
        match event:
            case TextPiece(text):
                response.first_text_at = response.first_text_at or self._clock()
                self._send(TextDelta(self.number, generation, text))
            case Sound(pcm, tokens, words):
                if not np.isfinite(pcm).all():
                    raise SpoiltError("its sound holds values that are no numbers")
                if not response.first_audio_at:
                    response.first_audio_at = self._clock()
                    self.first_sounds.append(response.first_audio_at - response.arrived_at > LATE_FIRST_SOUND_S)
                data = (np.clip(pcm, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
                self._send(AudioOut(self.number, generation, response.samples, data, list(tokens), list(words)))
                response.samples += len(pcm)
            case Called(name, arguments):
                self._send(ToolCall(self.number, generation, name, arguments))
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
