"""One timer for a deadline that is always in motion."""

from __future__ import annotations

import asyncio
from typing import Protocol

from agent.clock import Clock
from agent.server.guard import Failing, Guard


class HasDeadline(Failing, Protocol):
    def due_s(self) -> float:
        """The deadline, on the timer's clock."""
        ...

    def when_due(self) -> None: ...


class DeadlineTimer:
    """Calls `when_due` of a session once its deadline has come; what either of its methods raises stays in it.

    A deadline that moved away, as it does with every piece of sound, is found when the timer fires; it costs none.
    """

    def __init__(self, clock: Clock, session: HasDeadline) -> None:
        self._clock = clock
        self._session: HasDeadline | None = session
        self._handle: asyncio.TimerHandle | None = None
        self._set_for_s = 0.0

    def look(self) -> None:
        """The deadline may have moved."""
        if self._session is None:
            return
        due_s = self._session.due_s()
        if self._handle is not None:
            if self._set_for_s <= due_s:
                return
            self._handle.cancel()
        self._set_for_s = due_s
        delay_s = max(0.0, due_s - self._clock.now_s())
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def stop(self) -> None:
        """For good; the session is let go of, so that it goes with its last user and not by the collector."""
        self._session = None
        if self._handle is not None:
            self._handle.cancel()

    def _fire(self) -> None:
        self._handle = None
        if (session := self._session) is None:
            return
        with Guard(session):
            if session.due_s() > self._clock.now_s():
                self.look()
            else:
                session.when_due()
