"""A caller, a worker and the lines to both, around one sans-I/O session: everything late, lost or cut as it is told.

What the caller has received is checked event by event: event ids, the SDK's types, the protocol's order. So is what the
worker is told: no sound for an utterance that was not begun or is over, no generation twice.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter, deque
from typing import Any

import msgspec
import numpy as np

from agent import wire
from agent.clock import ManualClock
from agent.config import ServerConfig
from agent.dialogue.effects import ClearPlayback, Close, Effect, SendEvent, SendLarge, ToWorker
from agent.dialogue.session import Session, Transport
from agent.dialogue.speaking import WorkerSlot
from agent.ids import Ids
from agent.protocol.session_object import default_settings
from tests.support.conformance import Conformance
from tests.support.session_driver import READY, LoudnessVad, answer

STEP_S = 0.02
INPUT_HZ: dict[Transport, int | None] = {"websocket": None, "webrtc": 48_000, "telephone": 16_000}
# More than what the limits let a session hold, by far less than what would not be noticed.
MOST_HELD_BYTES = 64 * 1024 * 1024
_loop = asyncio.new_event_loop()


class WorkerOrder:
    """What a worker may be told, of one lease."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._open: set[int] = set()
        self._known: set[int] = set()
        self._generation = 0

    def take(self, message: Any) -> None:
        assert message.session == self._session, "a message for another lease"
        if isinstance(message, wire.StartUtterance):
            assert message.utterance not in self._known, "an utterance begun twice"
            self._open.add(message.utterance)
            self._known.add(message.utterance)
        elif isinstance(message, wire.AudioIn | wire.LikelyEnd | wire.EndUtterance):
            assert message.utterance in self._open, f"{type(message).__name__} of an utterance that is not open"
            if isinstance(message, wire.EndUtterance):
                self._open.discard(message.utterance)
            elif isinstance(message, wire.AudioIn):
                assert message.pcm and len(message.pcm) % 2 == 0
        elif isinstance(message, wire.DropUtterance):
            self._open.discard(message.utterance)
            self._known.discard(message.utterance)
        elif isinstance(message, wire.Respond):
            assert message.generation > self._generation, "a generation twice"
            self._generation = message.generation


class Caller:
    """`late`: so many of the newest events are still on their way to the client."""

    def __init__(self, transport: Transport, counts: Counter[str]) -> None:
        self.counts = counts
        self.transport: Transport = transport
        self.clock = ManualClock()
        self.closed: Close | None = None
        self.connected = True
        self.late = 0
        self.reply = "Yes, of course."
        self.calls = False
        self.fails = False
        self.certainty: float | None = None
        self.each_step = 100
        self.received: list[dict[str, Any]] = []
        self.conformance = Conformance()
        self._coming: deque[dict[str, Any]] = deque()
        self._from_worker: deque[wire.Message] = deque()
        self._sound: dict[int, int] = {}
        self._lease = 0
        self._worker_order: WorkerOrder | None = None
        self._heard: deque[tuple[int, int]] = deque()
        config = ServerConfig()
        self.session = Session(
            config,
            default_settings(config),
            transport=transport,
            clock=self.clock,
            ids=Ids("f"),
            vad=LoudnessVad(),
            model="fake",
            input_hz=INPUT_HZ[transport],
            reports_every_s=0.02 if transport == "telephone" else None,
        )
        self.place()
        self.do(self.session.start())
        self.deliver()

    # --- effects ---

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendEvent | SendLarge):
                self.counts["out"] += 1
                if self.connected:
                    self._coming.append(json.loads(effect.data if isinstance(effect, SendEvent) else effect.make()))
            elif isinstance(effect, Close):
                self.closed = effect
            elif isinstance(effect, ClearPlayback):
                self._heard.clear()
            elif isinstance(effect, ToWorker):
                self._tell_worker(effect.message)

    def deliver(self, *, late: int = 0) -> None:
        """All but the newest `late` events reach the client."""
        while len(self._coming) > late:
            event = self._coming.popleft()
            assert event["type"] != "error" or event["error"]["code"] != "internal_error", event
            self.conformance.take(event)
            self.received.append(event)

    # --- the client ---

    def send(self, data: str | bytes, *, of_others: bool = False) -> int:
        """One message; how many events it caused at once."""
        self.counts["client"] += 1
        effects = self.session.take(self.session.read(data), of_others=of_others)
        self.do(effects)
        while self.session.has_pending_audio:
            self.do(self.session.process_audio())
        return len(effects)

    def sound(self, seconds: float, amplitude: int, piece_s: float = STEP_S) -> None:
        """Microphone for so long in real time, in pieces of so long."""
        for _ in range(max(1, round(seconds / piece_s))):
            self.append(piece_s, amplitude)
            self.advance(piece_s)

    def append(self, seconds: float, amplitude: int) -> None:
        input_hz = INPUT_HZ[self.transport]
        rate = input_hz or (24_000 if self._is_pcm else 8_000)
        tone = (amplitude * np.sin(2 * np.pi * 220 * np.arange(round(rate * seconds)) / rate)).astype("<i2")
        if input_hz is None:
            data = tone.tobytes() if self._is_pcm else (tone >> 8).astype(np.uint8).tobytes()
            self.send(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}))
            return
        self.counts["sound"] += 1
        self.session.microphone(tone)
        while self.session.has_pending_audio:
            self.do(self.session.process_audio())

    @property
    def _is_pcm(self) -> bool:
        return type(self.session.settings.audio.input.format).__name__ == "PcmFormat"

    def lose(self) -> None:
        """The connection is gone, and with it what was on its way."""
        self.deliver(late=self.late)
        self._coming.clear()
        self.connected = False
        self.counts["faults"] += 1
        self.do(self.session.leave())

    def return_by(self, transport: Transport) -> bool:
        """False where what was missed is not kept any more: such a client begins anew."""
        after = self.received[-1]["event_id"]
        if not self.session.can_resume(after):
            return False
        self.connected, self.transport = True, transport
        self.counts["faults"] += 1
        self.do(self.session.resume(transport, after, {}, input_hz=INPUT_HZ[transport]))
        return True

    # --- the worker ---

    @property
    def placed(self) -> bool:
        return self._worker_order is not None

    def place(self) -> None:
        self._lease += 1
        self._worker_order = WorkerOrder(self._lease)
        self.counts["worker"] += 1
        ready = msgspec.structs.replace(READY, judges_ends=self.certainty is not None)
        self.do(self.session.worker_ready(WorkerSlot(self._lease, ready)))

    def unplace(self) -> None:
        self._worker_order = None
        self._from_worker.clear()
        self.counts["faults"] += 1
        self.do(self.session.worker_lost())

    def cut_frame(self, at: int) -> None:
        """The next message of the worker breaks off within its frame: its link reports a dead worker."""
        message = self._from_worker[0] if self._from_worker else wire.TextDelta(self._lease, 1, "never")
        frame = wire.encode(message)
        self._read(frame[: 1 + at % (len(frame) - 1)])

    def garble_frame(self, at: int, value: int) -> None:
        """A byte of it is another: it is refused, or means something else."""
        message = self._from_worker[0] if self._from_worker else wire.TextDelta(self._lease, 1, "never")
        frame = bytearray(wire.encode(message))
        frame[at % len(frame)] = value
        self._read(bytes(frame))

    def _read(self, data: bytes) -> None:
        """As the link reads it."""
        try:
            for payload in _loop.run_until_complete(_frames(data)):
                message = wire.from_worker_decoder.decode(payload)
                if getattr(message, "session", 0) == self._lease:
                    self.worker_says(message)
        except (wire.WireError, msgspec.DecodeError):
            self.unplace()

    def worker_says(self, message: Any) -> None:
        self.counts["worker"] += 1
        self.do(self.session.worker_message(message))

    @property
    def lease(self) -> int:
        return self._lease

    def _tell_worker(self, message: Any) -> None:
        self.counts["told"] += 1
        if self._worker_order is None:
            return
        self._worker_order.take(message)
        if isinstance(message, wire.Respond):
            self._from_worker.extend(self._answer_to(message))
        elif isinstance(message, wire.StartUtterance):
            self._sound[message.utterance] = 0
        elif isinstance(message, wire.AudioIn):
            self._sound[message.utterance] += len(message.pcm) // 2
        elif isinstance(message, wire.LikelyEnd) and self.certainty is not None:
            heard = self._sound[message.utterance]
            self._from_worker.append(wire.EndJudged(message.session, message.utterance, heard, self.certainty))
        elif isinstance(message, wire.EndUtterance):
            said, sound = "What time is it?", self._sound[message.utterance]
            self._from_worker.append(wire.Transcript(message.session, message.utterance, said, final=True))
            encoded = wire.UtteranceEncoded(message.session, message.utterance, sound, 9, 4, 6.25, 3.0, [80, 160])
            self._from_worker.append(encoded)

    def _answer_to(self, ask: wire.Respond) -> list[wire.Message]:
        if self.fails:
            stats = wire.ResponseStats()
            return [wire.ResponseDone(ask.session, ask.generation, "failed", "", stats, "no", "context_too_long")]
        messages = answer(ask, self.reply)
        if self.calls and ask.tools.definitions:
            messages.insert(-1, wire.ToolCall(ask.session, ask.generation, "f", "{}"))
        return messages

    # --- time ---

    def advance(self, seconds: float) -> None:
        """The worker says so much in each 20 ms, the player takes its sound, and the session ticks when it wants to.
        Where nothing is due for long, time runs in longer steps."""
        end_s = self.clock.now_s() + seconds
        while self.closed is None:
            for _ in range(self.each_step):
                if not self._from_worker:
                    break
                self.worker_says(self._from_worker.popleft())
            left_s = end_s - self.clock.now_s()
            if left_s <= 1e-9:
                break
            self.clock.advance(min(STEP_S, left_s))
            if self.connected:
                self._play(min(STEP_S, left_s))
            self._tick()

    def _tick(self) -> None:
        for _ in range(50):
            if self.session.next_deadline_s() > self.clock.now_s():
                break
            self.do(self.session.tick())
            if self.closed is not None:
                break
        else:
            raise AssertionError("the session's deadline stays in the past: its timer would never rest")
        assert 0 <= self.session.held_bytes() < MOST_HELD_BYTES

    def _play(self, seconds: float) -> None:
        count = round(READY.output_sample_rate * seconds)
        if self.transport == "webrtc":
            _, effects = self.session.pull_audio(count)
            self.do(effects)
        elif self.transport == "telephone":
            speech, effects = self.session.pull_speech(count)
            if speech is not None:
                self._heard.append((speech.generation, speech.end_sample))
            self.do(effects)
            if self._heard and (speech is None or len(self._heard) > 5):
                self.do(self.session.played(*self._heard.popleft()))


async def _frames(data: bytes) -> list[bytes]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while (payload := await wire.read_frame(reader)) is not None:
        found.append(payload)
    return found
