"""Worker processes: started, connected, replaced when they die or hang, and leased slot by slot to sessions.

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
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agent.config import ModelConfig
from agent.server.child import Child
from agent.server.link import STUCK_AFTER_S, Lease, LeaseHolder, LinkError, SlotRefused, WorkerLink
from agent.wire import Abilities

log = logging.getLogger("agogic.workers")

# The first replacement is started at once.
_FIRST_BACKOFF_S = 0.5
_LAST_BACKOFF_S = 30.0
_SHORTAGE_BACKOFF_S = 5.0
_HEALTHY_AFTER_S = 20.0
_CONNECT_RETRY_S = 0.05
_STOP_TIMEOUT_S = 3.0
_LINE_POLL_S = 0.25
# What the narrowest system takes as a socket's address, its end included.
_MAX_SOCKET_PATH_BYTES = 104
# The status of a worker that was told something impossible (a missing checkpoint, an unknown option).
_UNUSABLE_STATUS = 2


class NoWorker(Exception):
    """No live worker has a free slot; the message says why."""


def worker_command(model: ModelConfig, log_level: str, log_format: str = "text") -> list[str]:
    """The command that starts a worker, without its socket."""
    command = [sys.executable, "-m", "worker", "--model", model.spec, "--log-level", log_level, "--exit-with-parent"]
    if log_format != "text":
        command += ["--log-format", log_format]
    if model.voice:
        command += ["--voice", model.voice]
    if model.slots:
        command += ["--slots", str(model.slots)]
    if model.threads:
        command += ["--threads", str(model.threads)]
    return [*command, "--latency", model.latency]


class WorkerHung(LinkError):
    """A worker that was ready does nothing any more; finding that out took a while, and no further wait is needed."""


class WorkerUnusable(Exception):
    """The worker says that its model or its arguments cannot be used; another attempt would end the same way."""


class WorkerPool:
    """`run` keeps `count` processes of `command` alive until cancelled. Sessions lease slots from them.

    `stuck_after_s`: a worker that has been at one unit of work for so long is replaced.
    """

    def __init__(
        self, command: Sequence[str], count: int, start_timeout_s: float, *, stuck_after_s: float = STUCK_AFTER_S
    ) -> None:
        self.restarts = 0
        self.last_failure = ""
        self.pids: dict[int, int] = {}
        self.stuck_after_s = stuck_after_s
        self._command = list(command)
        self._count = count
        self._start_timeout_s = start_timeout_s
        self._links: dict[int, WorkerLink] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._line = asyncio.Lock()
        self._folder: Path | None = None

    @property
    def ready(self) -> bool:
        return any(link.responsive for link in self._links.values())

    @property
    def why_not_ready(self) -> str:
        if any(link.alive for link in self._links.values()):
            return "the worker does not answer; if it hangs, it is replaced"
        return self.last_failure or "the worker is loading the model"

    @property
    def model(self) -> str:
        return next((link.ready.model for link in self._links.values()), "agogic")

    @property
    def abilities(self) -> Abilities:
        return next((link.ready.abilities for link in self._links.values()), Abilities())

    @property
    def workers(self) -> int:
        """How many answer."""
        return sum(link.responsive for link in self._links.values())

    @property
    def slots(self) -> int:
        return sum(link.ready.slots for link in self._links.values() if link.responsive)

    @property
    def busy(self) -> float:
        """The busiest worker's share of the time."""
        return max((link.load.busy for link in self._links.values() if link.load is not None), default=0.0)

    @property
    def capacity(self) -> int:
        """How many sessions all workers together can carry, by what they expect."""
        return sum(link.capacity for link in self._links.values() if link.responsive)

    @property
    def leased(self) -> int:
        return sum(link.leased for link in self._links.values() if link.alive)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._count):
                    group.create_task(self._keep_alive(index))
        except* WorkerUnusable as unusable:
            raise unusable.exceptions[0] from None
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    async def lease(self, holder: LeaseHolder) -> Lease:
        """A slot of the live worker with the least load, or the one that has been of no use to its holder for longest.

        Raises `NoWorker` if there is none.
        """
        candidates = sorted((link for link in self._links.values() if link.has_room), key=lambda link: link.fullness)
        for link in candidates:
            with contextlib.suppress(LinkError, SlotRefused):
                return await link.open(next(self._numbers), holder)
        if not self.ready:
            raise NoWorker(self.why_not_ready)
        idle = [
            (last.idle_since_s, index)
            for index, link in self._links.items()
            if link.responsive and (last := link.longest_idle) is not None and last.idle_since_s is not None
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

    async def _keep_alive(self, index: int) -> None:
        backoff_s = 0.0
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            longest_s = _LAST_BACKOFF_S
            try:
                await self._live(index)
            except LinkError as error:
                self._failed(index, str(error))
                if isinstance(error, WorkerHung):
                    backoff_s = 0.0
            except OSError as error:
                longest_s = _SHORTAGE_BACKOFF_S
                self._failed(index, f"no worker process can be started now: {error.strerror or error}")
            self.restarts += 1
            if loop.time() - started_s > _HEALTHY_AFTER_S:
                backoff_s = 0.0
            log.warning("worker %d ended; another is started in %.1f s", index, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(max(2 * backoff_s, _FIRST_BACKOFF_S), longest_s)

    def _failed(self, index: int, why: str) -> None:
        self.last_failure = why
        log.error("worker %d: %s", index, why)

    def _socket_path(self, index: int) -> Path:
        """Where the next process is to listen: the folder is made anew if somebody has swept it away."""
        if self._folder is None or not self._folder.is_dir():
            self._folder = _short_folder()
        return self._folder / f"{index}-{self.restarts}"

    async def _live(self, index: int) -> None:
        """One process from start to end. Raises `LinkError` if it was no good one, OSError if there can be none."""
        socket = self._socket_path(index)
        if shutil.which(self._command[0]) is None:
            raise WorkerUnusable(f"there is no program {self._command[0]!r} to start a worker with")
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        process = await Child.start([*self._command, "--socket", str(socket)], environment)
        self.pids[index] = process.pid
        link: WorkerLink | None = None
        try:
            link = await self._connect(process, socket)
            self._links[index] = link
            self.last_failure = ""
            log.info("worker %d is ready: %s, %d slots", index, link.ready.model, link.ready.slots)
            self._announce()
            await link.run(self.stuck_after_s)
            if link.failure:
                raise WorkerHung(link.failure)
        finally:
            self._links.pop(index, None)
            self.pids.pop(index, None)
            self._announce()
            await _stop(process, at_once=link is not None and link.hangs)
            with contextlib.suppress(OSError):
                socket.unlink(missing_ok=True)

    async def _connect(self, process: Child, socket: Path) -> WorkerLink:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._start_timeout_s
        while not socket.exists():  # noqa: ASYNC240 as above
            if process.returncode is not None:
                raise _ended_early(process.returncode)
            if not socket.parent.is_dir():
                raise LinkError("the folder of the worker's socket was removed")
            if loop.time() > deadline_s:
                raise LinkError(f"the worker process was not ready within {self._start_timeout_s:g} s")
            await asyncio.sleep(_CONNECT_RETRY_S)
        ended = asyncio.create_task(process.wait())
        connecting = asyncio.create_task(WorkerLink.connect(socket, deadline_s - loop.time()))
        try:
            await asyncio.wait({ended, connecting}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise _ended_early(ended.result())
            return connecting.result()
        finally:
            ended.cancel()
            connecting.cancel()


def _ended_early(status: int) -> Exception:
    if status == _UNUSABLE_STATUS:
        return WorkerUnusable("the worker refused to start; its message above says why")
    return LinkError(f"the worker process ended with status {status} before it was ready")


def _short_folder() -> Path:
    """A new folder of our own whose sockets have addresses that a system takes, also where TMPDIR is a long path."""
    places = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp"]
    longest = len("/agogic-xxxxxxxx/63-9999999")
    problem = OSError(f"no folder for the workers' sockets can be made in any of {', '.join(filter(None, places))}")
    for place in filter(None, places):
        if len(os.fsencode(place)) + longest < _MAX_SOCKET_PATH_BYTES:
            try:
                return Path(tempfile.mkdtemp(prefix="agogic-", dir=place))
            except OSError as error:
                problem = error
    raise problem


async def _stop(process: Child, *, at_once: bool) -> None:
    """A process that hangs does not listen to a request either."""
    if process.returncode is not None:
        return
    if at_once:
        process.kill()
    else:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
