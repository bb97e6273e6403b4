"""The event loop's time, shared among connections: nobody's flood of messages is everybody's silence.

The loop also paces sound and answers the outside world, so all client messages together get `TURN_S` of each of its
turns. Beyond that they stand in line; the connection that has used least of late comes first, so who sends now and
then does not wait behind those that flood.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

TURN_S = 0.003
# What a message costs besides the work that is measured: it was taken out of a buffer, and its answer will be sent.
_HANDLING_S = 0.00005
T = TypeVar("T")


class LoopShare:
    """One for all connections of a loop."""

    def __init__(self, turn_s: float = TURN_S) -> None:
        self.used_s = 0.0
        self._turn_s = turn_s
        # Start-time fair queueing: each place has a clock that runs while it works, and the line goes by it.
        self.virtual_s = 0.0
        self._line: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._arranged = False
        # One thread: each more would be one more that the loop waits for to get the interpreter back.
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")

    def place(self) -> Place:
        return Place(self)

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        """Does it in a thread, for what takes longer than a turn and touches nothing of the loop's."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work, *arguments)

    async def enter(self, clock_s: float) -> None:
        """Returns when there is time left in this turn of the loop, and nobody comes before."""
        if not self._line and self.used_s < self._turn_s:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (clock_s, next(self._numbers), turn))
        self._arrange()
        await turn

    def charge(self, spent_s: float) -> None:
        self.used_s += spent_s
        self._arrange()

    def _arrange(self) -> None:
        if not self._arranged:
            self._arranged = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._arranged = False
        self.used_s = 0.0
        while self._line:
            clock_s, _, turn = heapq.heappop(self._line)
            if not turn.done():
                self.virtual_s = max(self.virtual_s, clock_s)
                turn.set_result(None)
                self._arrange()
                return


class Place:
    """One connection's. Who was away does not bring saved-up time along."""

    def __init__(self, share: LoopShare) -> None:
        self._share = share
        self._clock_s = 0.0

    async def turn(self) -> None:
        """To be awaited before each piece of work; the work itself stands in a `with` of `working`."""
        self._clock_s = max(self._clock_s, self._share.virtual_s)
        await self._share.enter(self._clock_s)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            spent_s = time.perf_counter() - started_s + _HANDLING_S
            self._clock_s += spent_s
            self._share.charge(spent_s)
