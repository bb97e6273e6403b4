"""The owner of one worker on whichever machine it was placed: starts it, watches it, starts it again, and hands out
tickets to its door. An actor for Ray, which restarts it elsewhere when its machine is lost; a plain class for everybody
else. Sound never passes through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.cluster.messages import HostReport, WorkerOrder
from agent.handshake import Door, issue
from agent.server.link import WorkerLink
from agent.server.worker_process import WorkerUnusable
from agent.server.workers import WorkerPool

_LAST_WORDS_S = 5.0
_POLL_S = 0.05


class _Hosted(WorkerPool):
    """Its worker's sessions are those of services that have connections of their own."""

    def let_go(self) -> None:
        """The worker takes no sessions any more, ends when those that it has have left, and none comes in its place."""
        self.closing = True
        for replica in self._replicas.values():
            replica.retired = True
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    async def _empty(self, link: WorkerLink, room_elsewhere: Callable[[], bool] | None = None) -> None:
        """The worker ends by itself when they have left, or its own time is up: it is not to be told twice."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s + _LAST_WORDS_S):
                while link.alive:  # noqa: ASYNC110 - sessions of others announce nothing here
                    await asyncio.sleep(_POLL_S)
        await link.close()


class WorkerHost:
    """`order`: a `WorkerOrder` as msgpack. Everything begins with the first call."""

    def __init__(self, order: bytes) -> None:
        self._order = msgspec.msgpack.decode(order, type=WorkerOrder)
        self._folder: Path | None = None
        self._pool: _Hosted | None = None
        self._running: asyncio.Task[None] | None = None

    async def report(self, with_ticket: bool) -> bytes:
        """A `HostReport`."""
        pool = self._start()
        why = pool.why_not_ready
        if self._running is not None and self._running.done() and not self._running.cancelled():
            why = str(self._running.exception() or why)
        ticket = issue(self._door(), int(time.time())) if with_ticket and pool.ready else None
        report = HostReport(
            ready=pool.ready,
            pid=os.getpid(),
            worker_pid=next(iter(pool.pids.values()), None),
            why="" if pool.ready else why,
            model=pool.model,
            slots=pool.slots,
            capacity=pool.capacity,
            busy=pool.busy,
            restarts=pool.restarts,
            ticket=ticket,
            going=pool.closing,
        )
        return msgspec.msgpack.encode(report)

    async def drain(self) -> None:
        """The worker is to go: when there is no `worker_pid` in the report any more, it has gone."""
        self._start().let_go()

    async def stop(self) -> None:
        """Ends the worker. Whoever calls it ends this process too."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, WorkerUnusable):
                await self._running
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> _Hosted:
        if self._pool is not None:
            return self._pool
        self._folder = Path(tempfile.mkdtemp(prefix="agogic-door-"))
        host = self._order.host or _address_of_this_machine()
        shown = f"[{host}]" if ":" in host else host
        command = [*self._order.command, "--direct", f"{shown}:0", "--door", str(self._folder / "door")]
        order = self._order
        self._pool = _Hosted(
            command, 1, order.start_timeout_s, stuck_after_s=order.stuck_after_s, drain_s=order.drain_s
        )
        self._running = asyncio.ensure_future(self._pool.run())
        return self._pool

    def _door(self) -> Door:
        assert self._folder is not None
        return msgspec.msgpack.decode((self._folder / "door").read_bytes(), type=Door)


def _address_of_this_machine() -> str:
    import ray.util

    return str(ray.util.get_node_ip_address())
