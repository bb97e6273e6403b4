"""The workers of a cluster as a service uses them: found by name, connected directly, leased slot by slot as if they
were its own. They are started and ended by others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from agent.cluster.direct import DirectLink
from agent.cluster.messages import Beat, ClusterOrder, ControlError, HostReport, Told
from agent.server.link import Lease, LeaseHolder, LinkError
from agent.server.workers import NoWorker, WorkerPool

log = logging.getLogger("agogic.cluster")

LOOK_EVERY_S = 0.5
AGAIN_S = 0.25


class Control(Protocol):
    """What the pool needs of the control plane. All raise `ControlError`."""

    async def worker_names(self) -> list[str]: ...

    async def report(self, name: str, *, with_ticket: bool = False) -> HostReport: ...

    async def beat(self, beat: Beat) -> Told: ...

    async def start_services(self, order: ClusterOrder, keep_s: float, max_bytes: int) -> None: ...


class ClusterPool(WorkerPool):
    """`run` keeps a link to every worker there is until cancelled. `service` names us; `keep_s` and `max_bytes` are the
    store's, if we are the first who needs one."""

    def __init__(self, control: Control, service: str, order: ClusterOrder, keep_s: float, max_bytes: int) -> None:
        worker = order.worker
        super().__init__([], 0, worker.start_timeout_s, stuck_after_s=worker.stuck_after_s, drain_s=worker.drain_s)
        self._control = control
        self._service = service
        self._order = order
        self._store = (keep_s, max_bytes)
        self._indices: dict[str, int] = {}
        self._linking: dict[str, asyncio.Task[None]] = {}
        self._refused = 0

    @property
    def slots(self) -> int:
        """Places of ours and those that nobody has."""
        return sum(max(0, link.ready.slots - link.others) for link in self._direct_links() if link.accepts)

    async def lease(self, holder: LeaseHolder) -> Lease:
        try:
            return await super().lease(holder)
        except NoWorker:
            self._refused += 1
            raise

    async def run(self) -> None:
        started = False
        try:
            while True:
                try:
                    if not started:
                        await self._control.start_services(self._order, *self._store)
                        started = True
                    await self._look()
                except ControlError as error:
                    # Whoever has a worker keeps it: sound does not need the control plane.
                    if not self.ready:
                        self.last_failure = str(error)
                    log.warning("the control plane is away: %s", error)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for task in self._linking.values():
                task.cancel()
            await asyncio.gather(*self._linking.values(), return_exceptions=True)

    async def _look(self) -> None:
        names = await self._control.worker_names()
        for name in names:
            if name not in self._linking or self._linking[name].done():
                self._linking[name] = asyncio.create_task(self._keep_linked(name), name=f"link to {name}")
        for name in self._linking.keys() - set(names):
            if self._indices.get(name) not in self._links:
                self._linking.pop(name).cancel()
        refused, self._refused = self._refused, 0
        leased = {name: self._links[index].leased for name, index in self._indices.items() if index in self._links}
        told = await self._control.beat(Beat(self._service, self._order, leased, refused))
        for name, index in self._indices.items():
            if isinstance(link := self._links.get(index), DirectLink):
                link.leaving = name in told.leaving

    async def _keep_linked(self, name: str) -> None:
        """One connection after the other, until cancelled."""
        index = self._indices.setdefault(name, len(self._indices))
        while True:
            try:
                report = await self._control.report(name, with_ticket=True)
                if report.ticket is None:
                    raise LinkError(report.why or "it is not ready")
                link = await DirectLink.enter(report.ticket)
            except (ControlError, LinkError) as error:
                self.last_failure = f"{name}: {error}"
                log.info("%s is not linked: %s", name, error)
                await asyncio.sleep(AGAIN_S)
                continue
            try:
                await self._use(index, name, link, report)
            finally:
                self._links.pop(index, None)
                self.pids.pop(index, None)
                self._announce()
                with contextlib.suppress(OSError):
                    await link.close()
            self.restarts += 1
            log.warning("%s is lost: %s", name, link.failure or "the connection ended")

    async def _use(self, index: int, name: str, link: DirectLink, report: HostReport) -> None:
        self._links[index] = link
        if report.worker_pid is not None:
            self.pids[index] = report.worker_pid
        self.last_failure = ""
        log.info("%s is linked: %s, %d slots", name, link.ready.model, link.ready.slots)
        self._announce()
        leaving = asyncio.create_task(self._leave_when_told(link))
        try:
            await link.run(self.stuck_after_s)
        finally:
            leaving.cancel()

    async def _leave_when_told(self, link: DirectLink) -> None:
        """The worker goes; its owner has started another, which is linked when no session of ours is left here."""
        await link.told_to_go.wait()
        await self._empty(link)

    def _direct_links(self) -> list[DirectLink]:
        return [link for link in self._links.values() if isinstance(link, DirectLink)]
