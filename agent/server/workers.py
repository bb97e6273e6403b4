"""Worker processes: started, connected, restarted when they die, and leased slot by slot to sessions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agent.config import ModelConfig
from agent.server.link import Lease, LeaseHolder, LinkError, SlotRefused, WorkerLink

log = logging.getLogger("agogic.workers")

_FIRST_BACKOFF_S = 0.5
_LAST_BACKOFF_S = 30.0
_HEALTHY_AFTER_S = 20.0
_CONNECT_RETRY_S = 0.05
_STOP_TIMEOUT_S = 3.0
# The status of a worker that was told something impossible (a missing checkpoint, an unknown option).
_UNUSABLE_STATUS = 2


class NoWorker(Exception):
    """No live worker has a free slot."""


def worker_command(model: ModelConfig, log_level: str) -> list[str]:
    """The command that starts a worker, without its socket."""
    command = [sys.executable, "-m", "worker", "--model", model.spec, "--log-level", log_level, "--exit-with-parent"]
    if model.voice:
        command += ["--voice", model.voice]
    if model.slots:
        command += ["--slots", str(model.slots)]
    if model.threads:
        command += ["--threads", str(model.threads)]
    return [*command, "--latency", model.latency]


class WorkerUnusable(Exception):
    """The worker says that its model or its arguments cannot be used; another attempt would end the same way."""


class WorkerPool:
    """`run` keeps `count` processes of `command` alive until cancelled. Sessions lease slots from them."""

    def __init__(self, command: Sequence[str], count: int, start_timeout_s: float) -> None:
        self.restarts = 0
        self.last_failure = ""
        self.pids: dict[int, int] = {}
        self._command = list(command)
        self._count = count
        self._start_timeout_s = start_timeout_s
        self._links: dict[int, WorkerLink] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        return any(link.alive for link in self._links.values())

    @property
    def model(self) -> str:
        return next((link.ready.model for link in self._links.values()), "agogic")

    @property
    def slots(self) -> int:
        return sum(link.ready.slots for link in self._links.values() if link.alive)

    @property
    def leased(self) -> int:
        return sum(link.leased for link in self._links.values() if link.alive)

    async def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="agogic-") as folder:
            try:
                async with asyncio.TaskGroup() as group:
                    for index in range(self._count):
                        group.create_task(self._keep_alive(index, Path(folder)))
            except* WorkerUnusable as unusable:
                raise unusable.exceptions[0] from None

    async def lease(self, holder: LeaseHolder) -> Lease:
        """A slot of the emptiest live worker. Raises `NoWorker` if there is none."""
        candidates = sorted(
            (link for link in self._links.values() if link.has_room), key=lambda link: link.leased / link.ready.slots
        )
        for link in candidates:
            with contextlib.suppress(LinkError, SlotRefused):
                return await link.open(next(self._numbers), holder)
        if self.ready:
            raise NoWorker("all slots are taken")
        raise NoWorker("no worker is ready" + (f": {self.last_failure}" if self.last_failure else ""))

    async def lease_when_possible(self, holder: LeaseHolder) -> Lease:
        """Like `lease`, but waits until there is one."""
        while True:
            try:
                return await self.lease(holder)
            except NoWorker:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._changed.wait()

    async def wait_ready(self) -> None:
        while not self.ready:
            await self._changed.wait()

    def _announce(self) -> None:
        """Wakes everybody who waits for a change, then waits for the next one."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _keep_alive(self, index: int, folder: Path) -> None:
        backoff_s = _FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            try:
                await self._live(index, folder / f"worker-{index}-{self.restarts}.sock")
            except LinkError as error:
                self.last_failure = str(error)
                log.error("worker %d: %s", index, error)
            self.restarts += 1
            if loop.time() - started_s > _HEALTHY_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            log.warning("worker %d ended; starting another in %.1f s", index, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LAST_BACKOFF_S)

    async def _live(self, index: int, socket: Path) -> None:
        """One process from start to end."""
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        process = await asyncio.create_subprocess_exec(
            *self._command, "--socket", str(socket), env=environment, stdin=asyncio.subprocess.DEVNULL
        )
        self.pids[index] = process.pid
        try:
            link = await self._connect(process, socket)
            self._links[index] = link
            log.info("worker %d is ready: %s, %d slots", index, link.ready.model, link.ready.slots)
            self._announce()
            await link.run()
        finally:
            self._links.pop(index, None)
            self.pids.pop(index, None)
            self._announce()
            await _stop(process)
            socket.unlink(missing_ok=True)  # noqa: ASYNC240 a local socket, no disk is asked

    async def _connect(self, process: asyncio.subprocess.Process, socket: Path) -> WorkerLink:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._start_timeout_s
        while not socket.exists():  # noqa: ASYNC240 as above
            if process.returncode is not None:
                raise _ended_early(process.returncode)
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


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
