"""A telephone call as the session sees it: the `Transport` that all kinds of calls share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

from agent.audio import Samples
from agent.dialogue.session import Speech
from agent.server.runner import SessionRunner
from agent.server.service import Service
from agent.telephony.sound.incoming import SESSION_HZ, IncomingVoice
from agent.telephony.sound.outgoing import Position
from agent.transports.base import TransportKind

log = logging.getLogger("agogic.telephony")

_GREETING = b'{"type":"response.create"}'


class PhoneLine(ABC):
    """Nobody reads events at the other end, so they go to side-band connections only.

    The session's end (`close`) ends the call, because whoever runs it waits for `SessionRunner.run`.
    """

    kind: TransportKind = "telephone"
    input_rate_hz: int | None = SESSION_HZ

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
            await runner.feed_event(_GREETING)

    def hear(self, samples: Samples, line_hz: int) -> None:
        """The caller, at the line's rate."""
        if self.runner is not None:
            self.runner.feed_audio(self._incoming.push(samples, line_hz).tobytes())

    def press(self, key: str) -> None:
        if self.runner is not None:
            self.runner.press(key)

    def pull(self, samples: int) -> Speech | None:
        return self.runner.pull_speech(samples) if self.runner is not None else None

    def heard(self, upto: Position | None) -> None:
        """The caller has heard the answer up to there."""
        if upto is not None and self.runner is not None:
            self.runner.played(upto.generation, upto.end_sample)


def registered(service: Service, call_id: str, runner: SessionRunner, fresh: str) -> str:
    """Makes the call known under `call_id`, or under `fresh` where that is taken or no id; returns the id in use."""
    chosen = call_id if 0 < len(call_id) <= 128 and call_id not in service.calls else fresh
    service.calls[chosen] = runner
    return chosen
