"""Keeps as many workers as the cluster needs: one actor, which every service tells that it lives and what it uses."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Protocol

import msgspec

from agent.cluster.messages import Beat, ClusterOrder, ControlError, HostReport, Told
from agent.cluster.scaling import Bounds, Scaling, Seen

log = logging.getLogger("agogic.cluster")

LOOK_EVERY_S = 1.0
SILENT_S = 10.0
"""A service that has said nothing for so long is gone, and uses nothing."""


class Workers(Protocol):
    """What the supervisor needs of the control plane. All raise `ControlError`."""

    async def worker_names(self) -> list[str]: ...

    async def report(self, name: str) -> HostReport: ...

    async def start_worker(self, number: int, order: ClusterOrder) -> None: ...

    async def drain_worker(self, name: str) -> None: ...

    async def stop_worker(self, name: str) -> None: ...


class Supervising:
    """One look after the other; knows no Ray."""

    def __init__(self, order: ClusterOrder, workers: Workers) -> None:
        self._order = order
        self._workers = workers
        self._scaling = Scaling(_bounds(order))
        self._beats: dict[str, tuple[float, Beat]] = {}
        self._refused = 0

    def beat(self, beat: Beat, now_s: float) -> Told:
        is_new = beat.service not in self._beats
        self._beats[beat.service] = (now_s, beat)
        self._refused += beat.refused
        if is_new and beat.order != self._order:  # the service that came last knows best
            log.info("the bounds or the model are set anew by %s", beat.service)
            self._order = beat.order
            self._scaling = Scaling(_bounds(beat.order))
        return Told(list(self._scaling.leaving))

    async def look(self, now_s: float) -> None:
        """Raises `ControlError`; the next look may do better."""
        names = await self._workers.worker_names()
        reports = dict(zip(names, await asyncio.gather(*(self._report(name) for name in names)), strict=True))
        refused, self._refused = self._refused, 0
        self._beats = {name: (at_s, beat) for name, (at_s, beat) in self._beats.items() if now_s - at_s < SILENT_S}
        steps = self._scaling.look([self._seen(name, report) for name, report in reports.items()], refused, now_s)
        numbers = (number for number in itertools.count(1) if f"worker-{number}" not in names)
        for number in itertools.islice(numbers, steps.start):
            log.info("worker-%d is placed", number)
            await self._workers.start_worker(number, self._order)
        for name in steps.stop:
            log.info("%s is not needed any more", name)
            await self._workers.drain_worker(name)
        for name, report in reports.items():
            if report is not None and report.going and report.worker_pid is None:
                log.info("%s has gone", name)
                await self._workers.stop_worker(name)

    async def _report(self, name: str) -> HostReport | None:
        try:
            return await self._workers.report(name)
        except ControlError:
            return None

    def _seen(self, name: str, report: HostReport | None) -> Seen:
        sessions = sum(beat.leased.get(name, 0) for _, beat in self._beats.values())
        if report is None:
            return Seen(name, ready=False, sessions=sessions)
        return Seen(name, report.ready, sessions, report.capacity, report.going)


def _bounds(order: ClusterOrder) -> Bounds:
    return Bounds(order.least, order.most, order.idle_s, order.leave_s, order.worker.start_timeout_s)


class Supervisor:
    """The actor. Its looks begin with the first beat, also after it was restarted."""

    def __init__(self, order: bytes, name: str) -> None:
        from agent.cluster.control import RayControl

        self._supervising = Supervising(msgspec.msgpack.decode(order, type=ClusterOrder), RayControl(name))
        self._looking: asyncio.Task[None] | None = None

    async def beat(self, data: bytes) -> bytes:
        """`Beat` to `Told`."""
        told = self._supervising.beat(msgspec.msgpack.decode(data, type=Beat), time.monotonic())
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
        return msgspec.msgpack.encode(told)

    async def _look(self) -> None:
        while True:
            try:
                await self._supervising.look(time.monotonic())
            except ControlError as error:
                log.warning("the workers cannot be looked at: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)
