"""The worker's socket with real connections: greeting, bad frames, lost peers."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.wire import (
    AudioOut,
    Cancel,
    CloseSession,
    ContextItem,
    Draining,
    FromWorker,
    Message,
    OpenSession,
    Ping,
    Pong,
    Ready,
    Refused,
    Respond,
    ResponseDone,
    SessionOpened,
    WorkerError,
    encode,
    from_worker_decoder,
    read_frame,
)
from tests.worker.scripted import ScriptedModel
from tests.worker.tiny import pipeline
from worker.engine import Engine
from worker.parts import SpeechModel
from worker.server import Server


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, message: Message) -> None:
        self.writer.write(encode(message))

    async def next(self) -> FromWorker | None:
        payload = await asyncio.wait_for(read_frame(self.reader), 5.0)
        return None if payload is None else from_worker_decoder.decode(payload)

    async def until(self, kind: type) -> FromWorker:
        while not isinstance(message := await self.next(), kind):
            assert message is not None, f"the worker hung up before {kind.__name__}"
        return message


@asynccontextmanager
async def serving(address: str, model: SpeechModel | None = None, slots: int = 2) -> AsyncIterator[Engine]:
    engine, stop = Engine(model or ScriptedModel(), slots), asyncio.Event()
    task = asyncio.create_task(Server(engine, address).run(stop, asyncio.Event(), 0.0))
    try:
        yield engine
    finally:
        stop.set()
        await task


async def connect(address: str) -> Peer:
    for _ in range(100):
        try:
            peer = Peer(*await asyncio.open_unix_connection(address))
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.02)
            continue
        assert isinstance(await peer.next(), Ready)
        return peer
    raise AssertionError(f"nothing listens on {address}")


async def answer(peer: Peer, session: int, generation: int = 1) -> ResponseDone:
    peer.send(Respond(session, generation, [ContextItem("user", "hi")], 12.5, max_output_tokens=12))
    done = await peer.until(ResponseDone)
    assert isinstance(done, ResponseDone)
    return done


async def test_session_and_answer_over_a_socket(tmp_path: Path) -> None:
    async with serving(str(tmp_path / "w")):
        peer = await connect(str(tmp_path / "w"))
        peer.send(OpenSession(1))
        assert await peer.next() == SessionOpened(1)
        assert (await answer(peer, 1)).reason == "completed"


async def test_a_worker_told_to_go_says_so_opens_no_more_sessions_and_ends_with_the_last(tmp_path: Path) -> None:
    engine, drain, address = Engine(ScriptedModel(), 2), asyncio.Event(), str(tmp_path / "w")
    running = asyncio.create_task(Server(engine, address).run(asyncio.Event(), drain, 60.0))
    peer = await connect(address)
    peer.send(OpenSession(1))
    await peer.until(SessionOpened)
    drain.set()
    assert isinstance(await peer.next(), Draining)
    peer.send(OpenSession(2))
    refused = await peer.next()
    assert isinstance(refused, Refused) and refused.code == "draining"
    late = await connect(address)
    assert isinstance(await late.next(), Draining)
    assert (await answer(peer, 1)).reason == "completed" and not running.done()
    peer.send(CloseSession(1))
    async with asyncio.timeout(30):
        assert await running


async def test_a_worker_told_to_go_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    engine, drain, address = Engine(ScriptedModel(), 2), asyncio.Event(), str(tmp_path / "w")
    running = asyncio.create_task(Server(engine, address).run(asyncio.Event(), drain, 0.1))
    peer = await connect(address)
    peer.send(OpenSession(1))
    await peer.until(SessionOpened)
    drain.set()
    async with asyncio.timeout(30):
        assert await running


async def test_rubbish_in_a_frame_is_answered_and_nobody_else_notices(tmp_path: Path) -> None:
    async with serving(str(tmp_path / "w")):
        bad, good = await connect(str(tmp_path / "w")), await connect(str(tmp_path / "w"))
        good.send(OpenSession(1))
        await good.until(SessionOpened)
        for rubbish in (b"\xc1\xff", b"", b"\x93\xa4Nope\x01\x02", b"\x92\xacStartUtterance\xa1x"):
            bad.writer.write(struct.pack("<I", len(rubbish)) + rubbish)
            error = await bad.until(WorkerError)
            assert isinstance(error, WorkerError) and (error.session, error.code) == (0, "bad_message")
        bad.send(Ping(3))
        pong = await bad.until(Pong)
        assert isinstance(pong, Pong) and pong.number == 3
        assert (await answer(good, 1)).reason == "completed"


async def test_broken_framing_ends_that_connection_only(tmp_path: Path) -> None:
    async with serving(str(tmp_path / "w")) as engine:
        bad, good = await connect(str(tmp_path / "w")), await connect(str(tmp_path / "w"))
        for number, peer in enumerate((bad, good)):
            peer.send(OpenSession(number))
            await peer.until(SessionOpened)
        bad.writer.write(struct.pack("<I", 1 << 31))
        assert await bad.next() is None
        assert (await answer(good, 1)).reason == "completed"
        assert engine.open_sessions == 1


async def test_lost_connection_frees_its_slots(tmp_path: Path) -> None:
    async with serving(str(tmp_path / "w"), slots=1):
        first = await connect(str(tmp_path / "w"))
        first.send(OpenSession(1))
        await first.until(SessionOpened)
        first.writer.transport.abort()
        second = await connect(str(tmp_path / "w"))
        for _ in range(100):
            second.send(OpenSession(1))
            if isinstance(await second.next(), SessionOpened):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the slot was never freed")


async def test_cancel_over_the_socket_stops_a_long_answer(tmp_path: Path) -> None:
    async with serving(str(tmp_path / "w"), ScriptedModel(words=1_000_000)):
        peer = await connect(str(tmp_path / "w"))
        peer.send(OpenSession(1))
        peer.send(Respond(1, 1, [ContextItem("user", "hi")], 12.5))
        await peer.until(SessionOpened)
        await asyncio.sleep(0.05)
        peer.send(Cancel(1, 1))
        done = await peer.until(ResponseDone)
        assert isinstance(done, ResponseDone) and done.reason == "cancelled"


async def test_cancel_stops_real_networks_within_a_unit(tmp_path: Path) -> None:
    async with serving(str(tmp_path / "w"), pipeline(1)):
        peer = await connect(str(tmp_path / "w"))
        peer.send(OpenSession(1))
        peer.send(Respond(1, 1, [ContextItem("user", "one latte")], 12.5))
        await peer.until(AudioOut)
        started = time.monotonic()
        peer.send(Cancel(1, 1))
        done = await peer.until(ResponseDone)
        assert isinstance(done, ResponseDone) and done.reason == "cancelled"
        assert time.monotonic() - started < 0.5, "a unit takes milliseconds, also on a busy machine"
        assert (await answer(peer, 1, generation=2)).stats.text_tokens > 0


async def test_a_ping_is_answered_while_the_engine_is_stuck_and_says_so(tmp_path: Path) -> None:
    go_on, model = threading.Event(), ScriptedModel()
    make = model.respond
    model.respond = lambda question: (go_on.wait(30.0), make(question))[1]  # type: ignore[method-assign]
    async with serving(str(tmp_path / "w"), model):
        peer = await connect(str(tmp_path / "w"))
        peer.send(OpenSession(1))
        peer.send(Respond(1, 1, [ContextItem("user", "hi")], 12.5))
        await peer.until(SessionOpened)
        told = 0.0
        for number in range(100):
            peer.send(Ping(number))
            pong = await peer.until(Pong)
            assert isinstance(pong, Pong) and pong.number == number
            if pong.unit_s > 0.2:
                break
            told = pong.unit_s
            await asyncio.sleep(0.05)
        assert pong.unit_s > told
        go_on.set()
        done = await peer.until(ResponseDone)
        assert isinstance(done, ResponseDone) and done.reason == "completed"


async def test_a_server_whose_engine_failed_ends(tmp_path: Path) -> None:
    engine = Engine(ScriptedModel(), 1)
    engine.iterate = lambda: 1 / 0  # type: ignore[assignment,return-value]
    async with asyncio.timeout(10):
        assert await Server(engine, str(tmp_path / "w")).run(asyncio.Event(), asyncio.Event(), 0.0) is False


async def test_socket_left_by_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    address = str(tmp_path / "w")
    dead = await asyncio.start_unix_server(lambda reader, writer: None, address)
    dead.close()
    async with serving(address):
        await connect(address)
