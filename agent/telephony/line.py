"""A telephone call as the session sees it: the `Transport` that all kinds of calls share."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from agent.audio import Samples
from agent.dialogue.speaking import Speech
from agent.server.runner import SessionRunner
from agent.server.service import Service
from agent.telephony.sound.incoming import SESSION_HZ, IncomingVoice
from agent.telephony.sound.outgoing import Frame, OutgoingVoice, Position
from agent.telephony.sound.pacing import FRAME_S, FramePacer
from agent.transports.base import TransportKind

log = logging.getLogger("agogic.telephony")

_GREETING = b'{"type":"response.create"}'


class PhoneLine(ABC):
    """Nobody reads events at the other end, so they go to side-band connections only.

    The session's end (`close`) ends the call, because whoever runs it waits for `SessionRunner.run`.
    """

    kind: TransportKind = "telephone"
    input_rate_hz: int | None = SESSION_HZ
    reports_every_s = 0.0

    def __init__(self) -> None:
        self.runner: SessionRunner | None = None
        self._incoming = IncomingVoice()

    # --- Transport ---

    def send_event(self, event: bytes) -> None:  # noqa: B027
        """A telephone cannot read."""

    def close(self, code: int, reason: str) -> None:
        log.info("call ends with %d: %s", code, reason)

    @abstractmethod
    def clear_playback(self) -> None: ...

    # --- the call ---

    async def begin(self, runner: SessionRunner, *, greet: bool) -> None:
        """The line is up; with `greet` the agent speaks first."""
        self.runner = runner
        runner.start()
        if greet:
            await runner.feed_event(_GREETING, self)

    def hear(self, samples: Samples, line_hz: int) -> None:
        """The caller, at the line's rate."""
        if self.runner is not None:
            self.runner.feed_audio(self._incoming.push(samples, line_hz).tobytes())

    def network(self, loss: float | None) -> None:
        """The share of the last second's packets that did not arrive; None where there were none."""
        if self.runner is not None:
            self.runner.network(loss, None)

    def press(self, key: str) -> None:
        if self.runner is not None:
            self.runner.press(key)

    def pull(self, samples: int) -> Speech | None:
        return self.runner.pull_speech(samples) if self.runner is not None else None

    def heard(self, upto: Position | None) -> None:
        """The caller has heard the answer up to there."""
        if upto is not None and self.runner is not None:
            self.runner.played(upto.generation, upto.end_sample)


class FramedLine(PhoneLine):
    """A line that plays at once what it gets, 20 ms at a time: nothing waits anywhere but here."""

    def __init__(self) -> None:
        super().__init__()
        self._voice: OutgoingVoice | None = None
        self._reported: Position | None = None

    def clear_playback(self) -> None:
        if self._voice is not None:
            self._voice.clear()

    def next_frame(self, line_hz: int) -> Frame:
        """20 ms at the line's rate. It counts as heard: there is nothing behind us that could still drop it."""
        if self._voice is None or self._voice.line_hz != line_hz:
            self._voice = OutgoingVoice(self.runner.output_rate_hz if self.runner is not None else line_hz, line_hz)
        frame = self._voice.frame(round(line_hz * FRAME_S), self.pull)
        if frame.upto != self._reported:
            self._reported = frame.upto
            self.heard(frame.upto)
        return frame


async def paced(tick: Callable[[], None]) -> None:
    """Calls `tick` every 20 ms by the loop's monotonic clock, until cancelled."""
    loop = asyncio.get_running_loop()
    pacer = FramePacer(loop.time())
    while True:
        for _ in range(pacer.due(loop.time())):
            tick()
        await asyncio.sleep(max(0.0, pacer.next_s - loop.time()))


def registered(service: Service, call_id: str, runner: SessionRunner, fresh: str) -> str:
    """Makes the call known under `call_id`, or under `fresh` where that is taken or no id; returns the id in use."""
    chosen = call_id if 0 < len(call_id) <= 128 and call_id not in service.calls else fresh
    service.calls[chosen] = runner
    return chosen
