"""The newest events that were sent, so that a client whose connection was lost gets those that it missed.

Beside each event stands how far it brought the listener in the sound of an answer: who has the event has the sound.

Bound: `MAX_EVENTS` and `MAX_BYTES`, the oldest leave first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.dialogue.conversation import AssistantMessage

MAX_EVENTS = 2000
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Mark:
    """So many samples of the item's sound were with the listener; None: there was no answer yet."""

    item: AssistantMessage | None = None
    samples: int = 0


@dataclass(frozen=True)
class Sent:
    """`data` is its JSON, or what makes it. `is_sound`: it carries sound, which is no use where sound does not travel
    in events. `repeats` is False for what only says how a connection began."""

    event_id: str
    data: bytes | Callable[[], bytes]
    size: int
    mark: Mark
    is_sound: bool = False
    repeats: bool = True


class SentEvents:
    """In the order in which they were sent. `edits` counts changes of what was there already."""

    def __init__(self) -> None:
        self._events: deque[Sent] = deque()
        self.held_bytes = 0
        self.edits = 0

    def append(self, sent: Sent) -> None:
        self._events.append(sent)
        self.held_bytes += sent.size
        while self.held_bytes > MAX_BYTES or len(self._events) > MAX_EVENTS:
            self.held_bytes -= self._events.popleft().size
        if not self._events:  # too long to be sent again, but whoever received it can go on from here
            self._events.append(replace(sent, data=b"", size=0, repeats=False))

    def has(self, event_id: str) -> bool:
        return any(sent.event_id == event_id for sent in reversed(self._events))

    def mark_of(self, event_id: str) -> Mark:
        """Where the listener was who had received this event and none after it."""
        return self._events[self._index(event_id)].mark

    def after(self, event_id: str) -> list[Sent]:
        """What was sent after it. Raises KeyError where it is not known any more."""
        return list(self._events)[self._index(event_id) + 1 :]

    def since(self, sent: Sent | None) -> list[Sent] | None:
        """What was sent after it, all for None; None where it has left."""
        newer: list[Sent] = []
        for event in reversed(self._events):
            if event is sent:
                return newer[::-1]
            newer.append(event)
        return newer[::-1] if sent is None else None

    def insert_after(self, event_id: str, sent: Sent) -> None:
        """As if it had been sent right after that event."""
        self.edits += 1
        self._events.insert(self._index(event_id) + 1, sent)
        self.held_bytes += sent.size

    def forget_sound(self) -> None:
        """The sound of what was sent so far is released once more, or never again: it is not to be repeated."""
        self.edits += 1
        for index, sent in enumerate(self._events):
            if sent.is_sound and sent.repeats:
                self.held_bytes -= sent.size
                self._events[index] = replace(sent, data=b"", size=0, repeats=False)

    def clear(self) -> None:
        self.edits += 1
        self._events.clear()
        self.held_bytes = 0

    def _index(self, event_id: str) -> int:
        for index in range(len(self._events) - 1, -1, -1):
            if self._events[index].event_id == event_id:
                return index
        raise KeyError(event_id)
