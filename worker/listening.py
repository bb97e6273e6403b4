"""The utterances of one session: sound waits until it is due, is listened to, and is rounded off at its end.

    start ─► open ─ audio, likely end ─► open ─ end ─► ending ─(all audio taken in)─► heard ─ drop ─► gone

Sound is listened to in long units, shorter ones where somebody follows the transcript, and at once where the utterance
ends or has probably ended. What a listener that does not transcribe has heard goes to the dictation.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agent.wire import (
    INPUT_SAMPLE_RATE,
    AudioIn,
    EndJudged,
    Message,
    StartUtterance,
    Transcript,
    UtteranceEncoded,
    WorkerError,
)
from worker.dictation import Dictation
from worker.parts import FOLLOWED_SAMPLES, UNIT_SAMPLES, Conversation, Listener, Pcm, RequestError, SpeechModel
from worker.step_times import Kind

log = logging.getLogger("agogic.worker")

MAX_UTTERANCE_SAMPLES = 600 * INPUT_SAMPLE_RATE
MAX_HEARD = 8
"""Utterances whose encoded audio a slot keeps; older turns of a conversation are known by their text."""
CHARACTERS_A_POSITION, LEAST_POSITIONS = 4, 16
"""Of text before the sound, about."""
LISTEN_SLACK_S, LIKELY_END_S = 0.5, 0.15
"""Audio that nobody waits for may lie this long before answers have to make way for it, and this long where the
utterance has probably ended, so that all is ready when that is certain."""

Send = Callable[[Message], None]
Clock = Callable[[], float]


@dataclass(slots=True)
class Utterance:
    """unit_samples: how much audio is worth listening to; opening_size: about how many positions stand before it;
    waiting: what arrived and was not listened to yet; likely: it may have ended here, prepared: and is ready for that;
    due_at: since when there is something to do."""

    number: int
    listener: Listener
    unit_samples: int
    opening_size: int
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
        """Whether there is something to do: a beginning, enough audio to be worth the while, or an end, likely or
        certain."""
        if not self.listener.opened:
            return True
        if self.ended:
            return not self.heard
        if self.likely:
            return not self.prepared
        return self.waiting_samples >= self.unit_samples

    @property
    def stage(self) -> Kind:
        """What comes next, where something is due."""
        if not self.listener.opened:
            return "opening"
        return "hearing" if self.waiting else "ending"

    @property
    def size(self) -> int:
        """Of that unit."""
        return {"opening": self.opening_size, "hearing": self.waiting_samples}.get(self.stage, 0)

    @property
    def answerable(self) -> bool:
        """Whether it can be answered as it is: it has ended, or is ready for it."""
        return self.heard or self.prepared

    @property
    def deadline(self) -> float:
        """By when (clock seconds) that should be done, if no answer waits for it."""
        return self.due_at + (LIKELY_END_S if self.likely else LISTEN_SLACK_S)

    def put(self, pcm: Pcm) -> None:
        """More audio: what looked like the end was none."""
        self.likely = self.prepared = False
        self.samples += len(pcm)
        self.waiting_samples += len(pcm)
        self.waiting.append(pcm)

    def take(self, most: int) -> Pcm:
        """Up to `most` samples of the waiting audio."""
        waiting = np.concatenate(list(self.waiting))
        self.waiting.clear()
        if len(waiting) > most:
            self.waiting.append(waiting[most:])
        self.waiting_samples -= min(most, len(waiting))
        return waiting[:most]


class Utterances:
    """Of the session `number` of one client."""

    def __init__(self, number: int, model: SpeechModel, dictation: Dictation, send: Send, clock: Clock) -> None:
        self._number = number
        self._model = model
        self._dictation = dictation
        self._send = send
        self._clock = clock
        self._all: dict[int, Utterance] = {}
        self._working: Utterance | None = None
        self._stage: Kind = "opening"

    # --- messages ---

    def start(self, message: StartUtterance) -> None:
        """Raises RequestError."""
        if message.utterance in self._all:
            raise RequestError("duplicate_utterance", f"utterance {message.utterance} exists; number each one anew")
        finished = [utterance.number for utterance in self._all.values() if utterance.heard]
        for number in finished[: max(0, len(self._all) + 1 - MAX_HEARD)]:
            self._dictation.give_up(number)
            self.drop(number)
        if len(self._all) >= MAX_HEARD:
            raise RequestError("too_many_utterances", f"{MAX_HEARD} utterances are open; end or drop one first")
        self._dictation.give_way()
        conversation = Conversation(message.instructions, tuple(message.context), message.tools)
        last = next(reversed(self._all.values()), None)
        previous = last.listener if last and last.heard else None
        listener = self._model.listen(conversation, message.input_hz, message.output_hz, previous)
        unit_samples = FOLLOWED_SAMPLES if message.followed else UNIT_SAMPLES
        text = len(message.instructions) + sum(len(item.text) for item in message.context)
        opening_size = LEAST_POSITIONS + text // CHARACTERS_A_POSITION
        utterance = Utterance(message.utterance, listener, unit_samples, opening_size)
        utterance.due_at = self._clock()
        self._all[message.utterance] = utterance

    def audio(self, message: AudioIn) -> None:
        """Raises RequestError."""
        utterance = self._known(message.utterance)
        if utterance.ended:
            raise RequestError("utterance_ended", f"audio came after the end of utterance {message.utterance}")
        if len(message.pcm) % 2:
            raise RequestError("bad_audio", f"{len(message.pcm)} bytes are no whole number of 16-bit samples")
        if not message.pcm:
            return
        if utterance.samples + len(message.pcm) // 2 > MAX_UTTERANCE_SAMPLES:
            self.end(message.utterance, certain=True)
            seconds = MAX_UTTERANCE_SAMPLES // INPUT_SAMPLE_RATE
            raise RequestError("utterance_too_long", f"an utterance may last {seconds} s; the rest of it is not heard")
        if not utterance.due:
            utterance.due_at = self._clock()
        utterance.put(np.frombuffer(message.pcm, dtype="<i2").astype(np.float32) / 32768.0)

    def end(self, number: int, *, certain: bool) -> None:
        """Raises RequestError."""
        utterance = self._known(number)
        utterance.likely = True
        utterance.ended = utterance.ended or certain
        utterance.due_at = self._clock()

    def drop(self, number: int) -> None:
        utterance = self._all.pop(number, None)
        self._dictation.drop(number)
        if utterance is not None:
            utterance.listener.close()

    def lose_all(self, why: str) -> None:
        """Drops all, and says so."""
        for utterance in list(self._all.values()):
            self._lose(utterance, "internal", why)

    def close(self) -> None:
        """Drops all; nothing more is sent."""
        for number in list(self._all):
            self.drop(number)

    # --- what is there ---

    def get(self, number: int | None) -> Utterance | None:
        return self._all.get(number) if number is not None else None

    def answerable(self) -> dict[int, Listener]:
        """The finished ones, and those that are ready to be."""
        return {utterance.number: utterance.listener for utterance in self._all.values() if utterance.answerable}

    @property
    def all_heard(self) -> bool:
        return all(utterance.heard for utterance in self._all.values())

    def _known(self, number: int) -> Utterance:
        try:
            return self._all[number]
        except KeyError:
            raise RequestError("unknown_utterance", f"utterance {number} was never started or is dropped") from None

    # --- work ---

    def due(self) -> Utterance | None:
        """The oldest with something to do: to open it, to listen to what is waiting, or, where nothing is, to round it
        off."""
        return next((utterance for utterance in self._all.values() if utterance.due), None)

    def take_audio(self, most: int) -> tuple[Listener, Pcm]:
        """The listener whose audio is due and up to `most` samples of that. `did` or `fail` must follow."""
        utterance = self._begin()
        return utterance.listener, utterance.take(most)

    def take_up(self) -> Listener:
        """The listener that is to be opened or prepared for its end. `did` or `fail` must follow."""
        return self._begin().listener

    def did(self) -> None:
        """What was taken up is done. Never raises."""
        utterance = self._working
        assert utterance is not None
        utterance.due_at = self._clock()
        if self._stage != "ending":
            self._report(utterance, final=False)
            return
        try:
            if utterance.ended:
                self._finish(utterance)
            else:
                utterance.prepared = True
                self._report(utterance, final=False)
                self._judge(utterance)
        except Exception as error:
            log.exception("session %d: utterance %d failed", self._number, utterance.number)
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """It could not be done: the utterance is lost."""
        assert self._working is not None
        if isinstance(error, RequestError):
            self._lose(self._working, error.code, str(error))
        else:
            self._lose(self._working, "internal", f"listening failed: {error}")

    def _begin(self) -> Utterance:
        self._working = self.due()
        assert self._working is not None
        self._stage = self._working.stage
        return self._working

    def _judge(self, utterance: Utterance) -> None:
        listener = utterance.listener
        if listener.certainty is not None:
            judged = (listener.certainty, listener.backchannel)
            self._send(EndJudged(self._number, utterance.number, utterance.samples, *judged))

    def _finish(self, utterance: Utterance) -> None:
        encoded = utterance.listener.finish()
        utterance.heard = True
        if utterance.listener.transcribes:
            self._report(utterance, final=True)
        else:
            self._dictation.add(utterance.number, utterance.listener, encoded, self._clock())
        self._send(
            UtteranceEncoded(
                self._number,
                utterance.number,
                encoded.samples,
                encoded.frames,
                encoded.groups,
                encoded.realised_hz,
                encoded.encode_ms,
                list(encoded.group_ms),
            )
        )

    def _lose(self, utterance: Utterance, code: str, message: str) -> None:
        self.drop(utterance.number)
        self._send(WorkerError(self._number, code, message, utterance.number))

    def _report(self, utterance: Utterance, final: bool) -> None:
        text = utterance.listener.transcript
        if final or text != utterance.transcript:
            utterance.transcript = text
            self._send(Transcript(self._number, utterance.number, text, final))
