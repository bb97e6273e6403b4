"""Worker processes: started, connected, replaced when they die or hang, and leased slot by slot to sessions.

    starting ──► ready ──(drain, replace, or it was told to go)──► draining ──(no session left, or time is up)──► gone
       ▲           │
       └───────────┘ died, hung

A worker is replaced by starting another beside it; only when that one is ready is the old one drained.
No shortage of the machine ends the service: what cannot be started now is tried again, more and more seldom. Only a
worker that says its model or arguments cannot be used does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from agent.server.child import Child
from agent.server.draining import drained
from agent.server.link import STUCK_AFTER_S, Lease, LeaseHolder, LinkError, SlotRefused, WorkerLink
from agent.server.worker_process import WorkerUnusable, connect, short_folder, stop
from agent.wire import Abilities

log = logging.getLogger("agogic.workers")

# The first replacement is started at once.
_FIRST_BACKOFF_S = 0.5
_LAST_BACKOFF_S = 30.0
_SHORTAGE_BACKOFF_S = 5.0
_HEALTHY_AFTER_S = 20.0
_LINE_POLL_S = 0.25


class NoWorker(Exception):
    """No live worker has a free slot; the message says why."""


class WorkerHung(LinkError):
    """A worker that was ready does nothing any more; finding that out took a while, and no further wait is needed."""


class NotDrained(Exception):
    """No such worker, or the one that is left; the message says which."""


class NotReplaced(Exception):
    """The new worker did not become ready, and the old one goes on; the message says why."""


class WorkerState(msgspec.Struct, frozen=True):
    """One worker as whoever runs the server sees it. busy: share of the time."""

    id: int
    pid: int | None
    state: Literal["starting", "ready", "unresponsive", "draining"]
    model: str = ""
    slots: int = 0
    leased: int = 0
    busy: float = 0.0


@dataclass(eq=False)
class _Replica:
    """A worker that is kept alive: where its process ends before it is `retired`, another is started. `on_trial`: it
    was never ready, and is given up instead. `settled`: it was ready once, or was given up."""

    number: int
    command: list[str]
    on_trial: bool = False
    retired: bool = False
    failure: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class WorkerPool:
    """`run` keeps `count` processes of `command` alive until cancelled. Sessions lease slots from them.

    `stuck_after_s`: a worker that has been at one unit of work for so long is replaced. `drain_s`: so long the sessions
    of a worker that is to go may take to leave it.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        start_timeout_s: float,
        *,
        stuck_after_s: float = STUCK_AFTER_S,
        drain_s: float = 60.0,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """`numbers` are given to workers in turn, where those of several pools are to be told apart."""
        self.restarts = 0
        self.last_failure = ""
        self.pids: dict[int, int] = {}
        self.stuck_after_s = stuck_after_s
        self.closing = False
        self._command = list(command)
        self._count = count
        self._start_timeout_s = start_timeout_s
        self._drain_s = drain_s
        self._links: dict[int, WorkerLink] = {}
        self._replicas: dict[int, _Replica] = {}
        self._replica_numbers = numbers or itertools.count()
        self._group: asyncio.TaskGroup | None = None
        self.runs = asyncio.Event()
        self._rolling = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._line = asyncio.Lock()
        self._folder: Path | None = None

    @property
    def ready(self) -> bool:
        return any(link.accepts for link in self._links.values())

    @property
    def why_not_ready(self) -> str:
        if any(link.draining for link in self._links.values()):
            return "the worker is about to go, and another is not ready yet"
        if any(link.alive for link in self._links.values()):
            return "the worker does not answer; if it hangs, it is replaced"
        return self.last_failure or "the worker is loading the model"

    @property
    def _newest(self) -> WorkerLink | None:
        """The one that newcomers meet."""
        links = tuple(self._links.values())
        return next((link for link in reversed(links) if not link.draining), links[-1] if links else None)

    @property
    def model(self) -> str:
        return self._newest.ready.model if self._newest is not None else "agogic"

    @property
    def abilities(self) -> Abilities:
        return self._newest.ready.abilities if self._newest is not None else Abilities()

    @property
    def slots(self) -> int:
        return sum(link.ready.slots for link in self._links.values() if link.accepts)

    @property
    def busy(self) -> float:
        """The busiest worker's share of the time."""
        return max((link.load.busy for link in self._links.values() if link.load is not None), default=0.0)

    @property
    def capacity(self) -> int:
        """How many sessions all workers together can carry, by what they expect."""
        return sum(link.capacity for link in self._links.values() if link.accepts)

    @property
    def leased(self) -> int:
        return sum(link.leased for link in self._links.values() if link.alive)

    @property
    def has_room(self) -> bool:
        """Whether a session could have a place now."""
        return any(link.has_room for link in self._links.values())

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._group:
                self.runs.set()
                for _ in range(self._count):
                    self._start(self._command)
                await asyncio.Event().wait()
        except* WorkerUnusable as unusable:
            raise unusable.exceptions[0] from None
        finally:
            self._group = None
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    # --- changing workers ---

    def workers(self, name: str = "") -> list[WorkerState]:
        """All that there are, oldest first; `name` in place of what they call their model."""
        return [self._state_of(replica, name) for replica in self._replicas.values()]

    async def drain(self, number: int) -> None:
        """That worker goes, and none comes in its place. Returns when it has gone. Raises `NotDrained`."""
        replica = self._replicas.get(number)
        if replica is None or replica.retired:
            raise NotDrained(f"there is no worker {number}, or it is being drained already")
        if sum(not other.retired for other in self._replicas.values()) == 1:
            raise NotDrained(f"worker {number} is the only one; replace it instead")
        await self._retire(replica)
        self._count -= 1

    async def replace(self, number: int) -> int:
        """That worker goes once another is ready, whose number is returned when it has gone. Raises `NotDrained` where
        there is no such worker, and `NotReplaced`."""
        async with self._rolling:
            replica = self._replicas.get(number)
            if replica is None or replica.retired:
                raise NotDrained(f"there is no worker {number}, or it is being drained already")
            successor = await self._successor(self._command)
            await self._retire(replica)
            return successor.number

    async def roll(self, command: Sequence[str] | None = None, count: int | None = None) -> None:
        """All workers go, one after the other, each once another is ready that `command` (the same, unless given) has
        started; afterwards there are `count`. Returns when all have gone. Raises `NotReplaced`: those that have not
        been replaced by then go on."""
        async with self._rolling:
            command = self._command if command is None else list(command)
            old = [replica for replica in self._replicas.values() if not replica.retired]
            for _ in range(self._count if count is None else count):
                await self._successor(command)
                self._command = command
                if old:
                    await self._retire(old.pop(0))
            for replica in old:
                await self._retire(replica)
            self._count = self._count if count is None else count

    async def empty(self, room_elsewhere: Callable[[], bool]) -> None:
        """All workers go, and none comes in their place: what they serve is served elsewhere now."""
        async with self._rolling:
            retiring = [self._retire(replica, room_elsewhere) for replica in self._replicas.values()]
            await asyncio.gather(*retiring)

    def _start(self, command: list[str], *, on_trial: bool = False) -> _Replica:
        assert self._group is not None, "the pool does not run"
        replica = _Replica(next(self._replica_numbers), command, on_trial)
        self._replicas[replica.number] = replica
        replica.task = self._group.create_task(self._keep_alive(replica))
        return replica

    async def _successor(self, command: list[str]) -> _Replica:
        """One that is ready. Raises `NotReplaced`."""
        if self._group is None:
            raise NotReplaced("the server is shutting down")
        replica = self._start(command, on_trial=True)
        try:
            await replica.settled.wait()
        except asyncio.CancelledError:
            if replica.task is not None:
                replica.task.cancel()
            raise
        if replica.failure:
            raise NotReplaced(f"the new worker did not become ready: {replica.failure}")
        return replica

    async def _retire(self, replica: _Replica, room_elsewhere: Callable[[], bool] | None = None) -> None:
        """Empties it and lets it end."""
        if replica.retired or replica.task is None:
            return
        replica.retired = True
        link = self._links.get(replica.number)
        if link is None:
            replica.task.cancel()
        else:
            await self._empty(link, room_elsewhere)
        await asyncio.wait([replica.task])

    async def _empty(self, link: WorkerLink, room_elsewhere: Callable[[], bool] | None = None) -> None:
        if not await drained(link, room_elsewhere or (lambda: self.has_room), self._drain_s):
            log.warning("%d sessions are still with a worker that goes", link.leased)
        await link.close()

    def _state_of(self, replica: _Replica, name: str) -> WorkerState:
        pid, link = self.pids.get(replica.number), self._links.get(replica.number)
        if link is None:
            return WorkerState(replica.number, pid, "draining" if replica.retired else "starting", name)
        state: Literal["ready", "unresponsive", "draining"] = "ready" if link.responsive else "unresponsive"
        if link.draining:
            state = "draining"
        busy = link.load.busy if link.load is not None else 0.0
        return WorkerState(replica.number, pid, state, name or link.ready.model, link.ready.slots, link.leased, busy)

    # --- places ---

    async def lease(self, holder: LeaseHolder) -> Lease:
        """A slot of the live worker with the least load, or the one that has been of no use to its holder for longest.

        Raises `NoWorker` if there is none.
        """
        candidates = sorted((link for link in self._links.values() if link.has_room), key=lambda link: link.rank)
        for link in candidates:
            with contextlib.suppress(LinkError, SlotRefused):
                return await link.open(next(self._numbers), holder)
        if not self.ready:
            raise NoWorker(self.why_not_ready)
        idle = [
            (last.idle_since_s, index)
            for index, link in self._links.items()
            if link.accepts and (last := link.longest_idle) is not None and last.idle_since_s is not None
        ]
        if idle:
            link = self._links[min(idle)[1]]
            last = link.longest_idle
            assert last is not None
            last.give_way()
            with contextlib.suppress(LinkError, SlotRefused):
                return await link.open(next(self._numbers), holder)
        raise NoWorker("all places are taken")

    async def lease_when_possible(self, holder: LeaseHolder) -> Lease:
        """Like `lease`, but waits until there is one: who came first gets the first."""
        if not self._line.locked():
            with contextlib.suppress(NoWorker):
                return await self.lease(holder)
        async with self._line:
            while True:
                try:
                    return await self.lease(holder)
                except NoWorker:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LINE_POLL_S):
                            await self._changed.wait()

    async def wait_ready(self) -> None:
        while not self.ready:
            await self._changed.wait()

    def _announce(self) -> None:
        """Wakes everybody who waits for a change, then waits for the next one."""
        self._changed.set()
        self._changed = asyncio.Event()

    # --- processes ---

    async def _keep_alive(self, replica: _Replica) -> None:
        backoff_s = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                started_s = loop.time()
                longest_s = _LAST_BACKOFF_S
                try:
                    await self._live(replica)
                except LinkError as error:
                    self._failed(replica, str(error))
                    if isinstance(error, WorkerHung):
                        backoff_s = 0.0
                except OSError as error:
                    longest_s = _SHORTAGE_BACKOFF_S
                    self._failed(replica, f"no worker process can be started now: {error.strerror or error}")
                except WorkerUnusable as error:
                    if not replica.on_trial:
                        raise
                    self._failed(replica, str(error))
                if replica.retired or replica.on_trial:
                    return
                self.restarts += 1
                if loop.time() - started_s > _HEALTHY_AFTER_S:
                    backoff_s = 0.0
                log.warning("worker %d ended; another is started in %.1f s", replica.number, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(max(2 * backoff_s, _FIRST_BACKOFF_S), longest_s)
        finally:
            replica.failure = replica.failure or "it was stopped"
            replica.settled.set()
            del self._replicas[replica.number]

    def _failed(self, replica: _Replica, why: str) -> None:
        log.error("worker %d: %s", replica.number, why)
        replica.failure = why
        if not replica.on_trial:
            self.last_failure = why

    async def _relieve(self, replica: _Replica, link: WorkerLink) -> None:
        """Once somebody else has told the worker to go, another takes its place."""
        await link.told_to_go.wait()
        if replica.retired:
            return
        log.info("worker %d was told to go", replica.number)
        replica.retired = True
        if not self.closing:
            self._start(self._command)
        await self._empty(link)

    def _socket_path(self, number: int) -> Path:
        """Where the next process is to listen: the folder is made anew if somebody has swept it away."""
        if self._folder is None or not self._folder.is_dir():
            self._folder = short_folder()
        return self._folder / f"{number}-{self.restarts}"

    async def _live(self, replica: _Replica) -> None:
        """One process from start to end. Raises `LinkError` if it was no good one, OSError if there can be none."""
        number, command = replica.number, replica.command
        socket = self._socket_path(number)
        if shutil.which(command[0]) is None:
            raise WorkerUnusable(f"there is no program {command[0]!r} to start a worker with")
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        process = await Child.start([*command, "--socket", str(socket)], environment)
        self.pids[number] = process.pid
        link: WorkerLink | None = None
        relieving: asyncio.Task[None] | None = None
        try:
            link = await connect(process, socket, self._start_timeout_s)
            self._links[number] = link
            self.last_failure = replica.failure = ""
            replica.on_trial = False
            replica.settled.set()
            log.info("worker %d is ready: %s, %d slots", number, link.ready.model, link.ready.slots)
            self._announce()
            relieving = asyncio.create_task(self._relieve(replica, link))
            await link.run(self.stuck_after_s)
            if link.failure:
                raise WorkerHung(link.failure)
        finally:
            if relieving is not None:
                relieving.cancel()
            self._links.pop(number, None)
            self.pids.pop(number, None)
            self._announce()
            await stop(process, at_once=link is not None and link.hangs)
            with contextlib.suppress(OSError):
                socket.unlink(missing_ok=True)
