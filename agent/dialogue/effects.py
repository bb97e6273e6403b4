"""What a session wants done: it never touches a socket itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.dialogue.sent import Mark, Sent, SentEvents
from agent.ids import Ids
from agent.protocol import server_events
from agent.protocol.server_events import AudioDelta, ResponseCreated, ServerEvent, SessionCreated
from agent.wire import Message


@dataclass(frozen=True)
class SendEvent:
    """JSON for the client. `private`: for the connection whose message it answers, not for those that look on.
    `acknowledges`: whoever has it counts on our knowing what it says; `begins_answer`: its sound comes after it."""

    data: bytes
    private: bool = False
    acknowledges: bool = False
    begins_answer: bool = False


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


_ACKNOWLEDGING = (
    SessionCreated,
    server_events.SessionResumed,
    server_events.SessionUpdated,
    server_events.ItemAdded,
    server_events.ItemDone,
    server_events.ItemDeleted,
    server_events.ItemTruncated,
    server_events.InputCommitted,
    server_events.InputCleared,
    ResponseCreated,
    server_events.OutputItemAdded,
    server_events.ResponseDone,
)
"""Whoever has one of these counts on our knowing what it says."""


class Outbox:
    """Collects effects in order; the shell takes them after every call into the session.

    `sent` remembers the events, None where nobody can ask for them again; `mark` is how far the listener is in the
    sound that he was sent.
    """

    def __init__(self, ids: Ids, sent: SentEvents | None = None) -> None:
        self.ids = ids
        self.mark = Mark()
        self._sent = sent
        self._effects: list[Effect] = []

    def send(self, event: ServerEvent, *, private: bool = False, of_others: bool = False) -> None:
        """`of_others`: it answers another connection than the client's."""
        event_id = self.ids.new("event")
        data = server_events.encode(event, event_id)
        if self._sent is not None and not of_others:
            sound = isinstance(event, AudioDelta)
            # Whoever comes back has had it: there is the token by which he comes, which is kept nowhere.
            kept = b"" if isinstance(event, SessionCreated) else data
            self._sent.append(Sent(event_id, kept, len(kept), self.mark, sound, repeats=bool(kept)))
        self._effects.append(
            SendEvent(data, private, isinstance(event, _ACKNOWLEDGING), isinstance(event, ResponseCreated))
        )

    def send_large(self, make: Callable[[], ServerEvent], size: int) -> None:
        """`size`: about how many bytes it will have."""
        event_id = self.ids.new("event")

        def encoded() -> bytes:
            return server_events.encode(make(), event_id)

        if self._sent is not None:
            self._sent.append(Sent(event_id, encoded, size, self.mark))
        self._effects.append(SendLarge(encoded))

    def send_first(self, event: ServerEvent, after: str) -> None:
        """How a connection goes on that had received that event and none after it. Not for any other connection."""
        event_id = self.ids.new("event")
        data = server_events.encode(event, event_id)
        if self._sent is not None:
            mark = self._sent.mark_of(after)
            self._sent.insert_after(after, Sent(event_id, b"", len(event_id), mark, repeats=False))
        self._effects.append(SendEvent(data, private=True, acknowledges=isinstance(event, _ACKNOWLEDGING)))

    def again(self, sent: Sent) -> None:
        """Sends it once more, as it was, to the client alone."""
        self._effects.append(SendEvent(sent.data if isinstance(sent.data, bytes) else sent.data(), private=True))

    def worker(self, message: Message) -> None:
        self._effects.append(ToWorker(message))

    def clear_playback(self) -> None:
        self._effects.append(ClearPlayback())

    def close(self, code: int, reason: str) -> None:
        self._effects.append(Close(code, reason))

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
