"""One caller over the Realtime protocol: a microphone that never stops, orders with pauses, a barge-in now and then.

    connect ─► order ─► answer heard ─► pause ─► order …            microphone and ear are two tasks of one group
                          └─ barge-in: the next order while it is being given

Only events of the published protocol are needed; what `x_agogic` adds is used where it is there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from aiohttp import WSMsgType

from benchmarks.load.hearing import Gap, Lateness, Playback
from benchmarks.load.orders import CHUNK_MS, SILENCE, SpokenOrder
from models.orders import parse_order

CHUNK_S = CHUNK_MS / 1000
OUTPUT_HZ = 24_000
PAUSE_S = (0.4, 2.0)
BARGE_IN_S = (1.0, 2.5)
"""After so much of an answer was heard, who interrupts begins to speak."""
PATIENCE_S = 15.0
"""An order that is not answered within this time after its end counts as unanswered, and the caller goes on."""
LONGEST_ANSWER_S = 60.0
CONNECT_TIMEOUT_S = 20.0


class _Event(msgspec.Struct, frozen=True):
    """The fields that a caller reads, of any event."""

    type: str
    delta: str = ""
    response_id: str = ""
    transcript: str = ""
    audio_end_ms: int = 0
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_Event)


@dataclass(slots=True)
class Answer:
    """One response. asked_at_s: when the last sound before the decision to answer was sent, 0 where nobody said it;
    order: what was asked last when it began."""

    asked_at_s: float
    order: SpokenOrder | None
    playback: Playback
    report: dict[str, Any] = field(default_factory=dict)
    transcript: str = ""
    status: str = ""
    reason: str = ""


@dataclass(slots=True)
class Record:
    """What became of one caller; times on the event loop's clock. refused_ms: how long a refusal took, if it came;
    judged: orders answered to the end, restated: with every slot; stop_ms: from the voice of who interrupts to the
    server's word that it stops."""

    arrived_at_s: float = 0.0
    connected_ms: float | None = None
    refused_ms: float | None = None
    refusal: str = ""
    left_at_s: float = 0.0
    lost: str = ""
    errors: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    orders: int = 0
    judged: int = 0
    restated: int = 0
    unanswered: int = 0
    barge_ins: int = 0
    late_sound_events: int = 0
    stop_ms: list[float] = field(default_factory=list)

    @property
    def gaps(self) -> Iterator[Gap]:
        for answer in self.answers:
            yield from answer.playback.gaps


@dataclass(frozen=True, slots=True)
class Manners:
    """session: fields of the first `session.update`, None to send none; barge_in: share of answers interrupted."""

    orders: list[SpokenOrder]
    barge_in: float
    session: dict[str, object] | None


class Caller:
    """leaving: when it turns true the caller hangs up, once the answer at hand is heard or the order at hand spoken."""

    def __init__(self, number: int, manners: Manners, lateness: Lateness, leaving: Callable[[], bool]) -> None:
        self.record = Record()
        self._manners = manners
        self._lateness = lateness
        self._leaving = leaving
        self._random = random.Random(number)
        self._next_order = number % len(manners.orders)
        self._sent_at_s: list[float] = []
        self._speaking: list[bytes] = []
        self._order: SpokenOrder | None = None
        self._order_ended_s = 0.0
        self._quiet_until_s = 0.0
        self._interrupt_at_s: float | None = None
        self._answer: Answer | None = None
        self._answered = True
        self._asked_at_s = 0.0
        self._barging = False
        self._barged_at_s: float | None = None
        self._expected: SpokenOrder | None = None

    async def call(self, http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> None:
        """The whole call; never raises for what the server does."""
        loop, record = asyncio.get_running_loop(), self.record
        record.arrived_at_s = loop.time()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                socket = await http.ws_connect(url, headers=headers, max_msg_size=0, autoping=True)
        except aiohttp.WSServerHandshakeError as error:
            record.refused_ms = (loop.time() - record.arrived_at_s) * 1e3
            record.refusal = f"HTTP {error.status}"
            return
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            record.lost = f"could not connect: {error or type(error).__name__}"
            return
        record.connected_ms = (loop.time() - record.arrived_at_s) * 1e3
        try:
            if self._manners.session is not None:
                await socket.send_json({"type": "session.update", "session": self._manners.session})
            self._quiet_until_s = loop.time() + self._random.uniform(*PAUSE_S)
            listening = asyncio.create_task(self._listen(socket))
            try:
                await self._talk(socket)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
        except (ConnectionError, aiohttp.ClientError) as error:
            record.lost = record.lost or f"the connection broke: {error}"
        finally:
            record.left_at_s = loop.time()
            await socket.close()

    # --- speaking ---

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """A chunk every CHUNK_MS, as its last sample is spoken, until the call is over."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        while not self.record.lost:
            due_s = start_s + (len(self._sent_at_s) + 1) * CHUNK_S
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
                self._lateness.note(loop.time(), loop.time() - due_s)
            if self._decide(loop.time()):
                return
            chunk = self._speaking.pop() if self._speaking else SILENCE
            self._sent_at_s.append(loop.time())
            await socket.send_frame(chunk, WSMsgType.TEXT)

    def _decide(self, now_s: float) -> bool:
        """What to do with the next chunk; true where the call ends here."""
        if self._speaking:
            return False
        if self._order is not None:  # its last chunk has just been sent
            self._order_ended_s, self._order = now_s, None
        waiting = not self._answered
        patience_s = PATIENCE_S if self._answer is None else LONGEST_ANSWER_S
        if waiting and now_s - self._order_ended_s > patience_s:
            self.record.unanswered += 1
            self._answered, waiting = True, False
        interrupting = self._interrupt_at_s is not None and now_s >= self._interrupt_at_s
        if interrupting and self._answer is not None:
            self._barging = True
            self.record.barge_ins += 1
        elif waiting or now_s < self._quiet_until_s:
            return False
        if self._leaving():
            return True
        self._interrupt_at_s = None
        self._order = self._expected = self._manners.orders[self._next_order % len(self._manners.orders)]
        self._next_order += 1
        self._speaking = list(reversed(self._order.chunks))
        if self._barging:
            self._barged_at_s, self._barging = now_s + self._order.onset_s, False
        self._answered = False
        self.record.orders += 1
        return False

    # --- hearing ---

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                self._take(_decoder.decode(message.data), loop.time())
        self.record.lost = self.record.lost or f"the server hung up ({socket.close_code})"

    def _take(self, event: _Event, now_s: float) -> None:
        match event.type:
            case "response.output_audio.delta":
                self._hear(event, now_s)
            case "input_audio_buffer.speech_started":
                if self._barged_at_s is not None:
                    self.record.stop_ms.append(max(0.0, (now_s - self._barged_at_s) * 1e3))
                    self._barged_at_s = None
                self._answer = None
            case "input_audio_buffer.speech_stopped":
                self._asked_at_s = self._when_sent(event.audio_end_ms, now_s)
            case "response.created":
                self._answer = Answer(self._asked_at_s, self._order or self._expected, Playback(OUTPUT_HZ))
                self.record.answers.append(self._answer)
            case "response.output_audio_transcript.done":
                if self._answer is not None:
                    self._answer.transcript = event.transcript
            case "response.done":
                self._done(event.response or {}, now_s)
            case "error":
                self.record.errors.append(str((event.error or {}).get("code")))

    def _when_sent(self, audio_end_ms: int, now_s: float) -> float:
        """When the sound up to there had been sent."""
        chunk = -(-audio_end_ms // CHUNK_MS) - 1
        return self._sent_at_s[chunk] if 0 <= chunk < len(self._sent_at_s) else now_s

    def _hear(self, event: _Event, now_s: float) -> None:
        answer = self._answer
        if answer is None:
            self.record.late_sound_events += 1
            return
        first = not answer.playback.samples
        answer.playback.take((len(event.delta) * 3 // 4 - event.delta[-2:].count("=")) // 2, now_s)
        if first and self._random.random() < self._manners.barge_in:
            self._interrupt_at_s = now_s + self._random.uniform(*BARGE_IN_S)

    def _done(self, response: dict[str, Any], now_s: float) -> None:
        answers = self.record.answers
        if not answers:
            return
        answer = answers[-1]
        answer.status, answer.report = str(response.get("status")), response.get("x_agogic") or {}
        answer.reason = str((response.get("status_details") or {}).get("reason", ""))
        if answer is not self._answer or answer.order is not self._expected:
            return
        if answer.status not in ("completed", "incomplete"):
            self._answer = None  # another one will come, or patience ends
            return
        assert answer.order is not None
        self.record.judged += 1
        self.record.restated += parse_order(answer.transcript) == answer.order.slots
        self._answered = True
        heard_s = max(answer.playback.ends_at_s, now_s)
        self._quiet_until_s = heard_s + self._random.uniform(*PAUSE_S)
        if self._interrupt_at_s is not None and self._interrupt_at_s >= heard_s:
            self._interrupt_at_s = None
