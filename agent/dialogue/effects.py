"""What a session wants done: it never touches a socket itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.ids import Ids
from agent.protocol import server_events
from agent.protocol.server_events import ServerEvent
from agent.wire import Message


@dataclass(frozen=True)
class SendEvent:
    """JSON for the client. `private`: for the connection whose message it answers, not for those that look on."""

    data: bytes
    private: bool = False


@dataclass(frozen=True)
class SendLarge:
    """JSON for the client that takes long to make. `make` may run in any thread; what follows waits for it."""

    make: Callable[[], bytes]


@dataclass(frozen=True)
class ToWorker:
    message: Message


@dataclass(frozen=True)
class ClearPlayback:
    """Whatever was pulled and has not been played yet is to be forgotten."""


@dataclass(frozen=True)
class Close:
    """End the session with this WebSocket close code."""

    code: int
    reason: str


Effect = SendEvent | SendLarge | ToWorker | ClearPlayback | Close


class Outbox:
    """Collects effects in order; the shell takes them after every call into the session."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self._effects: list[Effect] = []

    def send(self, event: ServerEvent, *, private: bool = False) -> None:
        self._effects.append(SendEvent(server_events.encode(event, self.ids.new("event")), private))

    def send_large(self, make: Callable[[], ServerEvent]) -> None:
        event_id = self.ids.new("event")
        self._effects.append(SendLarge(lambda: server_events.encode(make(), event_id)))

    def worker(self, message: Message) -> None:
        self._effects.append(ToWorker(message))

    def clear_playback(self) -> None:
        self._effects.append(ClearPlayback())

    def close(self, code: int, reason: str) -> None:
        self._effects.append(Close(code, reason))

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
