"""What a client is told of its session does not leave before the copy that has it was stored: a client that knows of an
item, or that something it sent was taken, can count on the next service for it (an output commit).

    send ──► out at once, if it acknowledges nothing and nothing waits
      └────► waits ──(copied)──► out, in order, with what came behind it
               └──(HELD_S or MAX_HELD_BYTES)──► out, and nothing waits any more until the store answers again

Knows no time but what it is told, and no sockets.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from agent.clock import Clock
from agent.dialogue.effects import SendEvent

HELD_S = 0.5
MAX_HELD_BYTES = 1024 * 1024

log = logging.getLogger("agogic.cluster")


class Receiver(Protocol):
    def send_event(self, event: bytes) -> None: ...


class Outgoing:
    """The events of one session. `held`: whether it is copied; if not, nothing ever waits."""

    def __init__(self, session_id: str, clock: Clock, *, held: bool) -> None:
        self._session_id = session_id
        self._clock = clock
        self._is_copied = held
        self._is_answered = True
        self._queue: deque[tuple[float, SendEvent, list[Receiver]]] = deque()
        self._bytes = 0
        self._covered = 0

    @property
    def due_s(self) -> float | None:
        """When `look` has something to do."""
        return self._queue[0][0] + HELD_S if self._queue else None

    @property
    def hides_an_answer(self) -> bool:
        """Whether the client is still to be told that an answer begins: it must not hear it yet."""
        return any(event.begins_answer for _, event, _ in self._queue)

    def send(self, event: SendEvent, to: Iterable[Receiver]) -> None:
        if self._queue or (event.acknowledges and self._is_copied and self._is_answered):
            self._queue.append((self._clock.now_s(), event, list(to)))
            self._bytes += len(event.data)
            if self._bytes > MAX_HELD_BYTES:
                self._give_up("too much of it")
        else:
            _deliver(event, to)

    def forget(self, receiver: Receiver | None) -> None:
        """What waits does not go there: its connection is over, and whoever comes back is told what it missed."""
        for _, _, to in self._queue:
            to[:] = [other for other in to if other is not receiver]

    def look(self) -> None:
        """Nobody waits for the store for longer than `HELD_S`."""
        if self.due_s is not None and self._clock.now_s() >= self.due_s:
            self._give_up(f"{HELD_S:g} s")

    def copying(self) -> None:
        """A copy was made that has all that was sent so far."""
        self._covered = len(self._queue)

    def copied(self) -> None:
        """That copy was stored."""
        self._is_answered = True
        self._release(self._covered)
        while self._queue and not self._queue[0][1].acknowledges:
            self._release(1)

    def let_go(self) -> None:
        """The session is over, or is not copied any more: everything leaves, and nothing waits from now on."""
        self._is_copied = False
        self._release(len(self._queue))

    def drop(self) -> None:
        """Another service has the session, and tells its client what waited here."""
        self._queue.clear()
        self.let_go()

    def _give_up(self, why: str) -> None:
        log.warning("%s: its client was told what the store does not know yet (%s waited)", self._session_id, why)
        self._is_answered = False
        self._release(len(self._queue))

    def _release(self, count: int) -> None:
        self._covered = max(0, self._covered - count)
        for _ in range(count):
            _, event, to = self._queue.popleft()
            self._bytes -= len(event.data)
            _deliver(event, to)


def _deliver(event: SendEvent, to: Iterable[Receiver]) -> None:
    for receiver in to:
        receiver.send_event(event.data)
