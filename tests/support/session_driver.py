"""Plays client, microphone, worker and clock for one sans-I/O session, and keeps everything it said."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Any, Literal

import msgspec
import numpy as np

from agent import wire
from agent.clock import ManualClock
from agent.config import ServerConfig
from agent.dialogue.effects import Close, Effect, SendEvent, SendLarge
from agent.dialogue.session import Session
from agent.dialogue.speaking import WorkerSlot
from agent.ids import Ids
from agent.protocol.session_object import default_settings, updated
from tests.support.fake_worker import SAMPLE_RATE_HZ, WORD_FRAMES, WORD_SAMPLES

READY = wire.Ready(wire.WIRE_VERSION, "fake", 4, SAMPLE_RATE_HZ, 12.5)
STEP_S = 0.02


class LoudnessVad:
    """Speech is whatever is loud: turn detection without a network."""

    def probability(self, window: np.ndarray) -> float:
        return 0.95 if np.abs(window).mean() > 500 else 0.02

    def reset(self) -> None:
        pass


class SessionDriver:
    """`reply` is what the scripted worker answers, word by word, `transcript` what it understands; None: nothing.
    `certainty` is how finished it finds every pause that it is asked about; None: it is a worker that cannot tell.
    `abilities` are those of its model.
    `make` makes the session.
    """

    def __init__(
        self,
        *,
        transport: Literal["websocket", "webrtc"] = "websocket",
        reply: str | None = "It is noon.",
        transcript: str | None = "What time is it?",
        settings: dict[str, Any] | None = None,
        start: bool = True,
        worker: bool = True,
        config: ServerConfig | None = None,
        certainty: float | None = None,
        abilities: wire.Abilities | None = None,
        make: Callable[..., Session] = Session,
    ) -> None:
        self.config = config or ServerConfig()
        self.clock = ManualClock()
        self.events: list[dict[str, Any]] = []
        self.to_worker: list[wire.Message] = []
        self.closed: Close | None = None
        self.reply = reply
        self.transcript = transcript
        self.certainty = certainty
        self._asked: list[wire.Respond] = []
        self._sound: dict[int, int] = {}
        self._paused: list[wire.LikelyEnd] = []
        self._ended: list[wire.EndUtterance] = []
        self.session = make(
            self.config,
            updated(default_settings(self.config), settings or {}, "default"),
            transport=transport,
            clock=self.clock,
            ids=Ids("t"),
            vad=LoudnessVad(),
            model="fake",
            input_hz=48_000 if transport == "webrtc" else None,
            abilities=abilities,
        )
        self._pulls = transport == "webrtc"
        self.heard_samples = 0
        if worker:
            ready = msgspec.structs.replace(READY, judges_ends=certainty is not None)
            if abilities is not None:
                ready = msgspec.structs.replace(ready, abilities=abilities)
            self.do(self.session.worker_ready(WorkerSlot(1, ready)))
        if start:
            self.do(self.session.start())

    # --- inputs ---

    def returns(self, after: str, transport: Literal["websocket", "webrtc"] | None, extras: dict[str, object]) -> None:
        """The client is back, over another transport where one is named."""
        if transport is not None:
            self._pulls = transport == "webrtc"
        input_hz = 48_000 if self._pulls else None
        self.do(self.session.resume("webrtc" if self._pulls else "websocket", after, extras, input_hz=input_hz))

    def do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendEvent):
                self.events.append(json.loads(effect.data))
            elif isinstance(effect, SendLarge):
                self.events.append(json.loads(effect.make()))
            elif isinstance(effect, Close):
                self.closed = effect
            else:
                self.to_worker.append(effect.message)
                self._as_worker(effect.message)

    def send(self, **event: Any) -> list[dict[str, Any]]:
        """One client event; returns the events it caused at once."""
        return self.send_raw(json.dumps(event))

    def send_raw(self, data: str | bytes) -> list[dict[str, Any]]:
        before = len(self.events)
        self.do(self.session.take(self.session.read(data)))
        while self.session.has_pending_audio:
            self.do(self.session.process_audio())
        return self.events[before:]

    def worker(self, *messages: wire.Message) -> None:
        for message in messages:
            self.do(self.session.worker_message(message))

    def sound(self, seconds: float, amplitude: int) -> None:
        """Microphone for so long, in real time, 20 ms at a time; the scripted worker and the player go on beside it."""
        rate = 48_000 if self._pulls else 24_000
        count = int(rate * STEP_S)
        tone = (amplitude * np.sin(2 * np.pi * 220 * np.arange(count) / rate)).astype("<i2")
        for _ in range(round(seconds / STEP_S)):
            if self._pulls:
                self.session.microphone(tone)
                while self.session.has_pending_audio:
                    self.do(self.session.process_audio())
            else:
                self.send(type="input_audio_buffer.append", audio=base64.b64encode(tone.tobytes()).decode())
            self.advance(STEP_S)

    def speak(self, seconds: float) -> None:
        self.sound(seconds, 8000)

    def interrupt(self, seconds: float) -> None:
        """Speaks over the answer, and is soon understood to want the word."""
        before, spoken = len(self.asked(wire.StartUtterance)), 0.0
        while len(self.asked(wire.StartUtterance)) == before and spoken < seconds:
            self.speak(0.04)
            spoken += 0.04
        utterance = self.asked(wire.StartUtterance)[-1].utterance
        self.worker(wire.Transcript(1, utterance, "no wait please", final=False))
        self.speak(max(0.0, seconds - spoken))

    def hush(self, seconds: float) -> None:
        self.sound(seconds, 0)

    def advance(self, seconds: float) -> None:
        """Time passes: the worker answers what it was asked, the session ticks when it wanted to, the player pulls."""
        end_s = self.clock.now_s() + seconds
        while True:
            self._answer()
            step_s = min(STEP_S, end_s - self.clock.now_s())
            if step_s <= 1e-9:
                return
            self.clock.advance(step_s)
            if self._pulls:
                samples, effects = self.session.pull_audio(int(SAMPLE_RATE_HZ * step_s))
                self.heard_samples += samples.size if samples is not None else 0
                self.do(effects)
            if self.session.next_deadline_s() <= self.clock.now_s():
                self.do(self.session.tick())

    # --- outputs ---

    def types(self, start: int = 0) -> list[str]:
        return [event["type"] for event in self.events[start:]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def last(self, kind: str) -> dict[str, Any]:
        return self.of(kind)[-1]

    def asked(self, kind: type[wire.Message] | UnionType) -> list[Any]:
        return [message for message in self.to_worker if isinstance(message, kind)]

    # --- the scripted worker ---

    def _as_worker(self, message: wire.Message) -> None:
        if isinstance(message, wire.Respond) and self.reply is not None:
            self._asked.append(message)
        elif isinstance(message, wire.Cancel):
            self._asked = [ask for ask in self._asked if ask.generation != message.generation]
        elif isinstance(message, wire.EndUtterance) and self.transcript is not None:
            self._ended.append(message)
        elif isinstance(message, wire.StartUtterance):
            self._sound[message.utterance] = 0
        elif isinstance(message, wire.AudioIn):
            self._sound[message.utterance] += len(message.pcm) // 2
        elif isinstance(message, wire.LikelyEnd):
            self._paused.append(message)

    def _answer(self) -> None:
        while self._ended:
            ended = self._ended.pop(0)
            self.worker(wire.Transcript(ended.session, ended.utterance, self.transcript or "", final=True))
        while self._paused:
            paused = self._paused.pop(0)
            if self.certainty is not None:
                samples = self._sound[paused.utterance]
                self.worker(wire.EndJudged(paused.session, paused.utterance, samples, self.certainty))
        while self._asked:
            self.worker(*answer(self._asked.pop(0), self.reply or ""))


def answer(ask: wire.Respond, reply: str) -> list[wire.Message]:
    """All messages of one response: each word sounds for 0.4 s and is one token."""
    messages: list[wire.Message] = []
    for index, word in enumerate(reply.split()):
        messages.append(wire.TextDelta(ask.session, ask.generation, word if index == 0 else " " + word))
        if ask.speech:
            first = index * WORD_SAMPLES
            words = [wire.WordSpan(word, first, first + WORD_SAMPLES)]
            pcm = np.full(WORD_SAMPLES, 1000 + index, "<i2").tobytes()
            tokens = [wire.TokenSpan(100 + index, WORD_FRAMES)]
            messages.append(wire.AudioOut(ask.session, ask.generation, first, pcm, tokens, words))
    count = len(reply.split())
    stats = wire.ResponseStats(
        text_tokens=count,
        speech_tokens=count if ask.speech else 0,
        prompt_positions=20,
        input_groups=12,
        realised_input_hz=ask.input_hz,
        realised_output_hz=ask.output_hz if ask.speech else 0.0,
        thinker_ms=5.0,
    )
    messages.append(wire.ResponseDone(ask.session, ask.generation, "completed", reply, stats))
    return messages


def heard_ms(driver: SessionDriver, utterance: int) -> int:
    """What the worker was given of an utterance."""
    return sum(len(m.pcm) for m in driver.asked(wire.AudioIn) if m.utterance == utterance) // 32


def users(driver: SessionDriver) -> list[str]:
    """Ids of the user's items that the client has, in order."""
    ids = [e["item"]["id"] for e in driver.of("conversation.item.added") if e["item"]["role"] == "user"]
    gone = {e["item_id"] for e in driver.of("conversation.item.deleted")}
    return [identity for identity in ids if identity not in gone]
