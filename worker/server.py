"""The worker's socket: frames of `agent.wire` in, frames out; all model work happens on the engine's thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from pathlib import Path
from typing import Literal

import msgspec

from agent.wire import (
    Draining,
    Message,
    OpenSession,
    Ping,
    Pong,
    Refused,
    WireError,
    WorkerError,
    encode,
    read_frame,
    to_worker_decoder,
)
from worker.awake import Awake
from worker.door import WorkerDoor
from worker.engine import Engine

log = logging.getLogger("agogic.worker")

MAX_UNSENT_BYTES = 16 * 1024 * 1024
"""A peer that leaves this much unread is stuck: its connection is closed."""
DRAIN_POLL_S = 0.05
LOOK_S = 1.0
"""So often it is seen whether the load asks for a processor that stays awake."""


class Connection:
    """One connected service process. `send` may be called from any thread."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    def send(self, message: Message) -> None:
        self._loop.call_soon_threadsafe(self._write, encode(message))

    def _write(self, frame: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.error("a peer reads nothing: closing its connection")
            transport.abort()
            return
        self._writer.write(frame)


class Server:
    """Serves one engine on a Unix socket, or on TCP loopback where `address` is `host:port`; and where there is a
    `door`, services on other machines that it lets in."""

    def __init__(
        self, engine: Engine, address: str, door: WorkerDoor | None = None, awake: Awake | None = None
    ) -> None:
        self._engine = engine
        self._address = address
        self._door = door
        self._awake = awake or Awake("off")
        self._connections: set[Connection] = set()
        self._draining = False

    async def run(self, stop: asyncio.Event, drain: asyncio.Event, drain_s: float) -> bool:
        """Accepts connections until `stop` is set or the engine fails: False in that case, for nothing can be answered
        any more. Once `drain` is set, no session is opened any more, and it ends when none is left, or after `drain_s`.
        Raises OSError where the address cannot be bound."""
        loop = asyncio.get_running_loop()
        failed = asyncio.Event()

        def work() -> None:
            try:
                self._engine.run()
            except Exception:
                log.exception("the engine failed")
                loop.call_soon_threadsafe(failed.set)

        thread = threading.Thread(target=work, name="engine", daemon=True)
        thread.start()
        door = await self._door.open(self._serve) if self._door is not None else None
        server = await self._listen()
        log.info("listening on %s", self._address)
        waits = [asyncio.create_task(event.wait()) for event in (stop, failed)]
        waits.append(asyncio.create_task(self._drained(drain, drain_s)))
        watch = asyncio.create_task(self._keep_awake())
        async with server:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in (*waits, watch):
                wait.cancel()
        self._awake.close()
        if door is not None:
            door.close()
        self._engine.stop()
        await asyncio.to_thread(thread.join, 5.0)
        return not failed.is_set()

    async def _keep_awake(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._awake.heed(self._engine.busy)

    async def _drained(self, drain: asyncio.Event, drain_s: float) -> Literal[True]:
        """Returns when nobody is served any more who was when `drain` was set."""
        await drain.wait()
        self._draining = True
        log.info("draining: %d sessions are open", self._engine.open_sessions)
        for connection in self._connections:
            connection.send(Draining())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self._engine.open_sessions:  # noqa: ASYNC110 - the engine's thread announces nothing
                    await asyncio.sleep(DRAIN_POLL_S)
        return True

    async def _listen(self) -> asyncio.Server:
        host, _, port = self._address.rpartition(":")
        if host and port.isdigit():
            return await asyncio.start_server(self._serve, host, int(port))
        return await asyncio.start_unix_server(self._serve, _free_path(self._address))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer)
        connection.send(self._engine.ready())
        if self._draining:
            connection.send(Draining())
        self._connections.add(connection)
        try:
            while (payload := await read_frame(reader)) is not None:
                try:
                    message = to_worker_decoder.decode(payload)
                except msgspec.DecodeError as error:
                    connection.send(WorkerError(0, "bad_message", f"a frame is no message of this wire: {error}"))
                    continue
                if isinstance(message, Ping):
                    connection.send(Pong(message.number, self._engine.unit_s))
                elif isinstance(message, OpenSession) and self._draining:
                    connection.send(Refused(message.session, "draining", "this worker is about to go"))
                else:
                    self._engine.submit(connection, message)
        except (WireError, ConnectionError) as error:
            log.warning("connection closed: %s", error)
        finally:
            self._connections.discard(connection)
            self._engine.client_gone(connection)
            writer.close()


def _free_path(address: str) -> Path:
    """The socket's path without what a worker that was killed left there."""
    path = Path(address)
    if path.is_socket():
        path.unlink()
    return path
