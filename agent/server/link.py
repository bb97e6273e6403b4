"""The service's end of the wire to one worker: a connection, the sessions that lease slots on it, and its death.

Bound: at most `MAX_UNSENT_BYTES` wait for a worker that reads too slowly; beyond that the worker counts as dead.

A worker that hangs looks like one that is busy, so it is asked every `PING_INTERVAL_S`. Its socket's thread answers
whatever the engine does: `HUNG_AFTER` pings without an answer mean a process that does nothing any more. The answer
tells how long the engine has been at one unit of work: `stuck_after_s` of that mean an engine that will not come back.
Pings are counted instead of seconds, so that a pause of our own process is not blamed on the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from pathlib import Path
from typing import Protocol

import msgspec

from agent import sockets, wire
from agent.wire import (
    CloseSession,
    Draining,
    FromWorker,
    Message,
    OpenSession,
    Ping,
    Pong,
    Ready,
    Refused,
    SessionOpened,
    WorkerError,
    WorkerLoad,
)

log = logging.getLogger("agogic.link")

MAX_UNSENT_BYTES = 64 * 1024 * 1024
OPEN_TIMEOUT_S = 10.0
PING_INTERVAL_S = 0.25
SUSPECT_AFTER, HUNG_AFTER = 3, 4
STUCK_AFTER_S = 10.0


class LinkError(Exception):
    """The worker cannot be reached or speaks another language."""


class SlotRefused(Exception):
    """The worker has no slot to give."""


class LeaseHolder(Protocol):
    """A session as the link sees it. No call may block or raise."""

    @property
    def coarsest_hz(self) -> float:
        """Its answers may be made as coarse as that, where the worker is full."""
        ...

    @property
    def idle_since_s(self) -> float | None:
        """Since when (any clock, the same for all) its place has been of no use; None while it is used."""
        ...

    @property
    def at_rest(self) -> bool:
        """Whether the worker is at nothing of its own: it may leave now and lose nothing."""
        ...

    def give_way(self) -> None:
        """Another session needs the place: release it."""
        ...

    def move(self) -> None:
        """The worker is about to go: release the place, and take one elsewhere when one is needed."""
        ...

    def worker_message(self, message: FromWorker) -> None: ...

    def worker_lost(self) -> None: ...


class Lease:
    """A slot of one worker, held by one session until released or lost."""

    def __init__(self, link: WorkerLink, session: int) -> None:
        self.session = session
        self._link = link

    @property
    def ready(self) -> Ready:
        return self._link.ready

    @property
    def alive(self) -> bool:
        return self._link.alive

    def send(self, message: Message) -> None:
        self._link.send(message)

    def release(self) -> None:
        self._link.release(self)


class WorkerLink:
    """`run` reads until the worker is gone; then every holder is told once. `failure`: what was wrong with it.

    `draining`: it takes no more sessions, because we want none there or because it says so itself (`told_to_go`).
    """

    def __init__(self, ready: Ready, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ready = ready
        self.alive = True
        self.draining = False
        self.told_to_go = asyncio.Event()
        self.failure = ""
        self._unanswered = 0
        self._unit_s = 0.0
        self.load: WorkerLoad | None = None
        self._reader = reader
        self._writer = writer
        self._holders: dict[int, LeaseHolder] = {}
        self._opening: dict[int, asyncio.Future[None]] = {}

    @classmethod
    async def connect(cls, socket: Path, timeout_s: float) -> WorkerLink:
        """Raises `LinkError` if nobody answers, or answers with another wire version."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(str(socket))
                payload = await wire.read_frame(reader)
        except (OSError, TimeoutError, wire.WireError) as error:
            raise LinkError(f"no worker answers at {socket}: {error}") from error
        try:
            ready = wire.from_worker_decoder.decode(payload or b"")
        except msgspec.DecodeError as error:
            writer.close()
            raise LinkError(f"the worker at {socket} does not speak this wire: {error}") from error
        if not isinstance(ready, Ready) or ready.version != wire.WIRE_VERSION:
            writer.close()
            raise LinkError(
                f"the worker at {socket} speaks another wire version; start worker and service from one release"
            )
        return cls(ready, reader, writer)

    @property
    def leased(self) -> int:
        return len(self._holders)

    @property
    def responsive(self) -> bool:
        """Whether it answers, as far as is known."""
        return self.alive and self._unanswered < SUSPECT_AFTER

    @property
    def accepts(self) -> bool:
        """Whether sessions may be opened with it, as long as there is room."""
        return self.responsive and not self.draining

    @property
    def hangs(self) -> bool:
        """Whether there is no use in asking it to end."""
        return bool(self.failure) or self._unanswered >= SUSPECT_AFTER

    @property
    def has_room(self) -> bool:
        return self.accepts and self.leased < self.ready.slots

    @property
    def capacity(self) -> int:
        """How many sessions it can carry: by its own forecast, and never more than it has places."""
        return min(self.ready.slots, self.load.capacity) if self.load is not None else self.ready.slots

    @property
    def fullness(self) -> float:
        """Share of that which is taken."""
        return self.leased / max(1, self.capacity)

    @property
    def rank(self) -> tuple[bool, float]:
        """Of those that have room, the one with the least gets the next session."""
        return False, self.fullness

    @property
    def longest_idle(self) -> LeaseHolder | None:
        """The holder whose place has been of no use for the longest time."""
        idle = [(since, key) for key, holder in self._holders.items() if (since := holder.idle_since_s) is not None]
        return self._holders[min(idle)[1]] if idle else None

    @property
    def holders(self) -> tuple[LeaseHolder, ...]:
        return tuple(self._holders.values())

    async def run(self, stuck_after_s: float = STUCK_AFTER_S) -> None:
        """Dispatches messages until the connection ends, or the worker proves to hang. Returns however it ends."""
        pulse = asyncio.create_task(self._pulse(stuck_after_s))
        try:
            while (payload := await wire.read_frame(self._reader)) is not None:
                self._dispatch(wire.from_worker_decoder.decode(payload))
        except (OSError, wire.WireError, msgspec.DecodeError) as error:
            log.warning("worker link broke: %s", error)
        finally:
            pulse.cancel()
            self._die()

    async def _pulse(self, stuck_after_s: float) -> None:
        for number in itertools.count(1):
            self._unanswered += 1
            self.send(Ping(number))
            await asyncio.sleep(PING_INTERVAL_S)
            if self._unanswered >= HUNG_AFTER:
                self.failure = f"the worker has not answered for {HUNG_AFTER * PING_INTERVAL_S:g} s"
            elif self._unit_s >= stuck_after_s:
                self.failure = f"the worker's engine has been at one unit of work for {self._unit_s:.0f} s"
            if self.failure:
                self._writer.transport.abort()
                return

    async def open(self, session: int, holder: LeaseHolder) -> Lease:
        """Leases a slot. Raises `SlotRefused` if the worker has none, `LinkError` if it died or stays silent."""
        if not self.alive:
            raise LinkError("the worker is gone")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening[session] = answer
        self._holders[session] = holder
        try:
            self.send(OpenSession(session, holder.coarsest_hz))
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await answer
        except BaseException as error:
            self._holders.pop(session, None)
            if not isinstance(error, (SlotRefused, LinkError)):
                # Nobody waits any more, but the worker may have opened it all the same.
                self.send(CloseSession(session))
            if isinstance(error, TimeoutError):
                raise LinkError(f"the worker did not open a session within {OPEN_TIMEOUT_S:g} s") from error
            raise
        finally:
            self._opening.pop(session, None)
        return Lease(self, session)

    def release(self, lease: Lease) -> None:
        if self._holders.pop(lease.session, None) is not None:
            self.send(CloseSession(lease.session))

    def send(self, message: Message) -> None:
        """Never blocks. What is sent to a dead worker is dropped: its holders have been told."""
        if not self.alive:
            return
        if not sockets.write(self._writer, wire.encode(message)):
            return
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.error("worker does not read; dropping the connection")
            self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _dispatch(self, message: FromWorker) -> None:
        match message:
            case SessionOpened():
                self._resolve(message.session, None)
            case Refused():
                self._resolve(message.session, SlotRefused(message.message))
            case Pong():
                self._unanswered, self._unit_s = 0, message.unit_s
            case Ready():
                pass
            case Draining():
                self.draining = True
                self.told_to_go.set()
            case WorkerLoad():
                self.load = message
                for each in tuple(self._holders.values()):
                    each.worker_message(message)
            case WorkerError(session=0):
                log.error("worker: %s: %s", message.code, message.message)
            case _:
                holder = self._holders.get(message.session)
                if holder is not None:
                    holder.worker_message(message)

    def _resolve(self, session: int, error: Exception | None) -> None:
        answer = self._opening.get(session)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def _die(self) -> None:
        self.alive = False
        self._writer.close()
        for answer in self._opening.values():
            if not answer.done():
                answer.set_exception(LinkError("the worker died"))
        holders, self._holders = list(self._holders.values()), {}
        for holder in holders:
            holder.worker_lost()
