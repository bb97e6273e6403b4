"""A watch on the event loop: what stands in it too long is counted, and named.

The loop beats every few milliseconds; a beat that comes late was held up by what ran in between. A thread looks at the
loop's stack once a beat is overdue, so the culprit is seen in the act and not only missed afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from prometheus_client import CollectorRegistry, Counter, Histogram

log = logging.getLogger("agogic.loop")

BEAT_S = 0.005
TOO_LONG_S = 0.020
_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_RUNS_THE_LOOP = ("asyncio", "uvloop")
_UNSEEN = "nothing that was seen; the machine may be busy"
# A busy machine stops the loop anywhere: each place would be a counter that is kept for good.
_MOST_PLACES, _ELSEWHERE = 50, "elsewhere"


class LoopWatch:
    """`running` watches the loop that it is entered on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "agogic_loop_lag_seconds", "How late the event loop was", buckets=_BUCKETS_S, registry=registry
        )
        self._computing = Histogram(
            "agogic_loop_computing_seconds",
            "What the event loop computed without a pause",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._stalls = Counter(
            "agogic_loop_stalls_total",
            f"Times the event loop stood still for more than {TOO_LONG_S * 1000:g} ms",
            ["where"],
            registry=registry,
        )
        self._places: set[str] = set()
        self._beaten_s = 0.0
        self._computed_s = 0.0
        self._culprit = ""
        self._handle: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        looking = threading.Thread(target=self._look, args=(threading.get_ident(),), name="loop watch", daemon=True)
        self._beaten_s, self._computed_s = time.perf_counter(), time.thread_time()
        self._beat(loop)
        looking.start()
        try:
            yield
        finally:
            self._stopped.set()
            if self._handle is not None:
                self._handle.cancel()
            looking.join()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s, computed_s = time.perf_counter(), time.thread_time()
        late_s = max(0.0, now_s - self._beaten_s - BEAT_S)
        spent_s = computed_s - self._computed_s
        self._lag.observe(late_s)
        self._computing.observe(spent_s)
        if late_s > TOO_LONG_S:
            where = self._culprit or _UNSEEN
            if len(self._places) < _MOST_PLACES:
                self._places.add(where)
            self._stalls.labels(where if where in self._places else _ELSEWHERE).inc()
            log.warning(
                "the event loop stood still for %.0f ms, %.0f ms of them computing: %s",
                late_s * 1000, spent_s * 1000, where,
            )  # fmt: skip
        self._culprit = ""
        self._beaten_s, self._computed_s = now_s, computed_s
        self._handle = loop.call_later(BEAT_S, self._beat, loop)

    def _look(self, thread: int) -> None:
        """In a thread of its own: awake only when a beat is overdue."""
        overdue_s = BEAT_S + TOO_LONG_S
        while not self._stopped.wait(max(BEAT_S, self._beaten_s + overdue_s - time.perf_counter())):
            if not self._culprit and time.perf_counter() - self._beaten_s >= overdue_s:
                self._culprit = _name(sys._current_frames().get(thread))


def _name(frame: FrameType | None) -> str:
    """The innermost function of ours on the stack, else of a library: places in the code, so there are only so many."""
    innermost = ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in _RUNS_THE_LOOP or module.startswith("agent.cli."):
            break
        named = f"{module}:{frame.f_code.co_qualname}"
        if module.startswith("agent.") and module != __name__:
            return named
        innermost, frame = innermost or named, frame.f_back
    return innermost
