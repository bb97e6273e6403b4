"""One leased slot: the utterances a caller is speaking and the answer being spoken back.

    StartUtterance ─► open ─ AudioIn ─► open ─ EndUtterance ─► ending ─(all audio taken in)─► heard ─ Drop ─► gone
    Respond ─► waiting (until its utterance is heard) ─► speaking ─► done | cancelled | failed

A session does nothing by itself: `handle` takes a message, `due` says what its next unit of work is and by when it
should be done, `work` does that unit, or the engine does it for several sessions at once. Whatever goes wrong in a
unit of its own stays within the session. What was heard by a listener that does not
transcribe is written down when there is nothing else to do (`worker.dictation`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np

from agent.wire import (
    INPUT_SAMPLE_RATE,
    AudioIn,
    AudioOut,
    Cancel,
    DropUtterance,
    EndUtterance,
    LikelyEnd,
    Message,
    Respond,
    ResponseDone,
    ResponseStats,
    StartUtterance,
    TextDelta,
    Transcript,
    UtteranceEncoded,
    WorkerError,
)
from worker.dictation import Dictation
from worker.parts import (
    UNIT_SAMPLES,
    Conversation,
    Finished,
    Listener,
    Pcm,
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

MAX_UTTERANCE_SAMPLES = 600 * INPUT_SAMPLE_RATE
MAX_HEARD = 8
"""Utterances whose encoded audio a slot keeps; older turns of a conversation are known by their text."""
FIRST_OUTPUT_HZ = 12.5
"""The rate that the first answer is expected to have; only a wrong guess costs time."""
HURRY_S = 0.2
"""With less sound than this in hand, the next piece is not waited for to grow."""
FIRST_SOUND_S = 0.1
"""An answer should be heard this soon; those who would run dry earlier go before it."""
LISTEN_SLACK_S, LIKELY_END_S = 0.5, 0.15
"""Audio that nobody waits for may lie this long before answers have to make way for it, and this long where the
utterance has probably ended, so that all is ready when that is certain."""

Reason = Literal["completed", "max_output_tokens", "cancelled", "failed"]
Send = Callable[[Message], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Due:
    """A session's next unit and by when (clock seconds) it should be done. What is not its "own" may be done in one go
    with those of other sessions."""

    work: Literal["hearing", "token", "sound", "own"]
    deadline: float


@dataclass(slots=True)
class Utterance:
    """waiting: what arrived and was not listened to yet; likely: it may have ended here, prepared: and is ready for
    that; due_at: since when there is something to do."""

    number: int
    listener: Listener
    started_at: float
    waiting: deque[Pcm] = field(default_factory=deque)
    waiting_samples: int = 0
    due_at: float = 0.0
    samples: int = 0
    likely: bool = False
    prepared: bool = False
    ended: bool = False
    heard: bool = False
    transcript: str = ""

    @property
    def due(self) -> bool:
        """Whether there is something to do: enough audio for it to be worth the while, or an end, likely or certain."""
        if self.ended:
            return not self.heard
        if self.likely:
            return not self.prepared
        return self.waiting_samples >= UNIT_SAMPLES

    def take(self, most: int) -> Pcm:
        """Up to `most` samples of the waiting audio."""
        waiting = np.concatenate(list(self.waiting))
        self.waiting.clear()
        if len(waiting) > most:
            self.waiting.append(waiting[most:])
        self.waiting_samples -= min(most, len(waiting))
        return waiting[:most]


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
    """See the module. number: the service's name for this slot; send: where its messages go; clock: seconds."""

    def __init__(self, number: int, model: SpeechModel, send: Send, clock: Clock) -> None:
        self.number = number
        self._model = model
        self._send = send
        self._clock = clock
        self._utterances: dict[int, Utterance] = {}
        self._hearing: Utterance | None = None
        self._response: Response | None = None
        self._generation = -1
        self._output_hz = FIRST_OUTPUT_HZ
        self._dictation = Dictation(model, lambda utterance, text: send(Transcript(number, utterance, text, True)))

    # --- messages ---

    def handle(
        self, message: StartUtterance | AudioIn | LikelyEnd | EndUtterance | DropUtterance | Respond | Cancel
    ) -> None:
        try:
            match message:
                case StartUtterance():
                    self._start_utterance(message)
                case AudioIn():
                    self._audio_in(message)
                case LikelyEnd():
                    self._end(message.utterance, certain=False)
                case EndUtterance():
                    self._end(message.utterance, certain=True)
                case DropUtterance():
                    self._drop(message.utterance)
                case Respond():
                    self._respond(message)
                case Cancel():
                    if self._response and self._response.request.generation <= message.generation:
                        self._finish("cancelled")
        except RequestError as error:
            self._send(WorkerError(self.number, error.code, str(error)))

    def _end(self, number: int, *, certain: bool) -> None:
        utterance = self._utterance(number)
        utterance.likely = True
        utterance.ended = utterance.ended or certain
        utterance.due_at = self._clock()

    def _drop(self, number: int) -> None:
        utterance = self._utterances.pop(number, None)
        self._dictation.drop(number)
        if utterance is not None:
            utterance.listener.close()

    def _utterance(self, number: int) -> Utterance:
        try:
            return self._utterances[number]
        except KeyError:
            raise RequestError("unknown_utterance", f"utterance {number} was never started or is dropped") from None

    def _start_utterance(self, message: StartUtterance) -> None:
        if message.utterance in self._utterances:
            raise RequestError("duplicate_utterance", f"utterance {message.utterance} exists; number each one anew")
        finished = [utterance.number for utterance in self._utterances.values() if utterance.heard]
        for number in finished[: max(0, len(self._utterances) + 1 - MAX_HEARD)]:
            self._dictation.give_up(number)
            self._drop(number)
        if len(self._utterances) >= MAX_HEARD:
            raise RequestError("too_many_utterances", f"{MAX_HEARD} utterances are open; end or drop one first")
        self._dictation.give_way()
        conversation = Conversation(message.instructions, tuple(message.context))
        previous = next(reversed(self._utterances.values()), None)
        listener = self._model.listen(
            conversation, message.input_hz, self._output_hz, previous.listener if previous and previous.heard else None
        )
        self._utterances[message.utterance] = Utterance(message.utterance, listener, self._clock())

    def _audio_in(self, message: AudioIn) -> None:
        utterance = self._utterance(message.utterance)
        if utterance.ended:
            raise RequestError("utterance_ended", f"audio came after the end of utterance {message.utterance}")
        if len(message.pcm) % 2:
            raise RequestError("bad_audio", f"{len(message.pcm)} bytes are no whole number of 16-bit samples")
        if not message.pcm:
            return
        samples = len(message.pcm) // 2
        if utterance.samples + samples > MAX_UTTERANCE_SAMPLES:
            utterance.ended = True
            seconds = MAX_UTTERANCE_SAMPLES // INPUT_SAMPLE_RATE
            raise RequestError("utterance_too_long", f"an utterance may last {seconds} s; the rest of it is not heard")
        if not utterance.due:
            utterance.due_at = self._clock()
        utterance.likely = utterance.prepared = False
        utterance.samples += samples
        utterance.waiting_samples += samples
        pcm = np.frombuffer(message.pcm, dtype="<i2").astype(np.float32) / 32768.0
        utterance.waiting.append(pcm)

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
        """The next unit: it should be done by the time the caller's buffer runs dry while we speak, by the arrival of
        the request before the first sound, with some slack for listening, with much for what is only to be written
        down. None: there is nothing to do."""
        listening, speaking = self._listening_due(), self._speaking_due()
        if listening is not None and (speaking is None or listening.deadline <= speaking.deadline):
            return listening
        return speaking or self._dictation_due()

    def work(self) -> None:
        """Does the unit that `due` spoke of, one of its own. Never raises: an error ends the utterance or the answer
        it struck."""
        due = self.due()
        assert due is not None and due.work == "own"
        if due == self._listening_due():
            self._round_off(next(utterance for utterance in self._utterances.values() if utterance.due))
        elif due == self._speaking_due():
            self._speak()
        else:
            self._dictation.work()

    def heard_by(self) -> float | None:
        """By when the audio that waits should be listened to; None: nothing is waiting, or not yet enough."""
        due = self._listening_due()
        return due.deadline if due is not None and due.work == "hearing" else None

    def take_audio(self, most: int) -> tuple[Listener, Pcm]:
        """The listener whose audio is due and up to `most` samples of that. `hear` or `fail_to_hear` must follow."""
        self._hearing = next(utterance for utterance in self._utterances.values() if utterance.due)
        return self._hearing.listener, self._hearing.take(most)

    def hear(self) -> None:
        """The listener has taken the audio of `take_audio`."""
        assert self._hearing is not None
        self._hearing.due_at = self._clock()
        self._report_transcript(self._hearing, final=False)

    def fail_to_hear(self, error: Exception) -> None:
        """The listener could not take it."""
        assert self._hearing is not None
        self._lose(self._hearing, "internal", f"listening failed: {error}")

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
        for number in list(self._utterances):
            self._drop(number)

    def _awaited(self) -> Utterance | None:
        """The utterance that the answer at hand still waits for."""
        if self._response is None or self._response.speaker is not None:
            return None
        last = self._response.request.context[-1] if self._response.request.context else None
        utterance = self._utterances.get(last.utterance) if last and last.utterance is not None else None
        return utterance if utterance and not utterance.heard else None

    def _listening_due(self) -> Due | None:
        utterance = next((utterance for utterance in self._utterances.values() if utterance.due), None)
        if utterance is None:
            return None
        return Due("hearing" if utterance.waiting else "own", self._listening_deadline(utterance))

    def _listening_deadline(self, utterance: Utterance) -> float:
        if self._response is not None and utterance is self._awaited():
            return self._response.arrived_at + FIRST_SOUND_S
        return utterance.due_at + (LIKELY_END_S if utterance.likely else LISTEN_SLACK_S)

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
            return Due("own", deadline)
        speaker.hurried = deadline - self._clock() < HURRY_S
        unit = speaker.unit
        return Due("own" if unit == "end" else unit, deadline)

    def _dictation_due(self) -> Due | None:
        """None while the caller speaks or an answer is at hand: they have the model's places."""
        free = self._response is None and all(utterance.heard for utterance in self._utterances.values())
        deadline = self._dictation.deadline() if free else None
        return Due("own", deadline) if deadline is not None else None

    def _round_off(self, utterance: Utterance) -> None:
        """All of it is listened to: what its end, certain or likely, brings with it."""
        try:
            if not utterance.ended:
                utterance.listener.prepare()
                utterance.prepared = True
                self._report_transcript(utterance, final=False)
                return
            encoded = utterance.listener.finish()
            utterance.heard = True
            if utterance.listener.transcribes:
                self._report_transcript(utterance, final=True)
            else:
                self._dictation.add(utterance.number, utterance.listener, encoded, self._clock())
            self._send(
                UtteranceEncoded(
                    self.number,
                    utterance.number,
                    encoded.samples,
                    encoded.frames,
                    encoded.groups,
                    encoded.realised_hz,
                    encoded.encode_ms,
                )
            )
        except RequestError as error:
            self._lose(utterance, error.code, str(error))
        except Exception as error:
            log.exception("session %d: utterance %d failed", self.number, utterance.number)
            self._lose(utterance, "internal", f"listening failed: {error}")

    def _lose(self, utterance: Utterance, code: str, message: str) -> None:
        self._drop(utterance.number)
        self._send(WorkerError(self.number, code, message, utterance.number))

    def _report_transcript(self, utterance: Utterance, final: bool) -> None:
        text = utterance.listener.transcript
        if final or text != utterance.transcript:
            utterance.transcript = text
            self._send(Transcript(self.number, utterance.number, text, final))

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
            self._finish("failed", str(error))
        except Exception as error:
            log.exception("session %d: answer %d failed", self.number, response.request.generation)
            self._finish("failed", f"the answer failed: {error}")

    def _question(self, request: Respond) -> Question:
        if not request.context:
            raise RequestError("empty_context", "there is nothing to answer: the context is empty")
        last = request.context[-1].utterance
        if last in self._utterances and not self._utterances[last].heard:
            raise RequestError("utterance_open", f"utterance {last} has not ended; end it before asking for an answer")
        return Question(
            Conversation(request.instructions, tuple(request.context)),
            {utterance.number: utterance.listener for utterance in self._utterances.values() if utterance.heard},
            request.input_hz,
            request.output_hz,
            request.speech,
            request.max_output_tokens,
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

    def _finish(self, reason: Reason, error: str = "") -> None:
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
        self._send(ResponseDone(self.number, response.request.generation, reason, text, stats, error))


def _since(start: float, end: float) -> float:
    """Milliseconds from start to end, 0 where the end never came (clock 0)."""
    return (end - start) * 1e3 if end else 0.0
