"""The service's end of the wire to one worker: a connection, the sessions that lease slots on it, and its death.

Bound: at most `MAX_UNSENT_BYTES` wait for a worker that reads too slowly; beyond that the worker counts as dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

import msgspec

from agent import wire
from agent.wire import CloseSession, FromWorker, Message, OpenSession, Pong, Ready, Refused, SessionOpened, WorkerError

log = logging.getLogger("agogic.link")

MAX_UNSENT_BYTES = 64 * 1024 * 1024
OPEN_TIMEOUT_S = 10.0


class LinkError(Exception):
    """The worker cannot be reached or speaks another language."""


class SlotRefused(Exception):
    """The worker has no slot to give."""


class LeaseHolder(Protocol):
    """A session as the link sees it. Neither call may block or raise."""

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

    def send(self, message: Message) -> None:
        self._link.send(message)

    def release(self) -> None:
        self._link.release(self)


class WorkerLink:
    """`run` reads until the worker is gone; then every holder is told once."""

    def __init__(self, ready: Ready, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ready = ready
        self.alive = True
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
    def has_room(self) -> bool:
        return self.alive and self.leased < self.ready.slots

    async def run(self) -> None:
        """Dispatches messages until the connection ends. Returns normally however it ends."""
        try:
            while (payload := await wire.read_frame(self._reader)) is not None:
                self._dispatch(wire.from_worker_decoder.decode(payload))
        except (OSError, wire.WireError, msgspec.DecodeError) as error:
            log.warning("worker link broke: %s", error)
        finally:
            self._die()

    async def open(self, session: int, holder: LeaseHolder) -> Lease:
        """Leases a slot. Raises `SlotRefused` if the worker has none, `LinkError` if it died or stays silent."""
        if not self.alive:
            raise LinkError("the worker is gone")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening[session] = answer
        self._holders[session] = holder
        try:
            self.send(OpenSession(session))
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
        self._writer.write(wire.encode(message))
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
            case Pong() | Ready():
                pass
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
