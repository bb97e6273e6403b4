"""The worker's door: who is let in, who is not, and what strangers can make it hold."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import stat
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from agent import handshake, wire
from agent.cluster.direct import DirectLink
from agent.handshake import CHALLENGE_BYTES, Door, Gate, Refused, Ticket, issue, prove
from agent.server.link import LinkError
from tests.worker.scripted import ScriptedModel
from worker import door as worker_door
from worker.door import WorkerDoor
from worker.engine import Engine
from worker.server import Server

CHALLENGE = b"c" * CHALLENGE_BYTES
DOOR = Door("127.0.0.1", 1, "", b"k" * handshake.KEY_BYTES)
NOW = 1_700_000_000


def changed(ticket: Ticket, **fields: object) -> Ticket:
    return msgspec.structs.replace(ticket, **fields)


def test_a_ticket_opens_once() -> None:
    gate, ticket = Gate(DOOR.key), issue(DOOR, NOW)
    gate.admit(CHALLENGE, prove(ticket, CHALLENGE), NOW)
    with pytest.raises(Refused, match="used already"):
        gate.admit(CHALLENGE, prove(ticket, CHALLENGE), NOW + 1)
    gate.admit(CHALLENGE, prove(issue(DOOR, NOW), CHALLENGE), NOW)


def test_an_answer_to_another_challenge_is_none() -> None:
    gate, ticket = Gate(DOOR.key), issue(DOOR, NOW)
    overheard = prove(ticket, CHALLENGE)
    with pytest.raises(Refused, match="challenge"):
        gate.admit(b"d" * CHALLENGE_BYTES, overheard, NOW)
    gate.admit(CHALLENGE, overheard, NOW)  # nothing was used up by it


@pytest.mark.parametrize(
    "fields",
    [{"secret": b"x" * 32}, {"id": b"y" * 16}, {"expires_unix_s": NOW + handshake.TICKET_S + 1}],
    ids=["secret", "id", "expiry"],
)
def test_nothing_of_a_ticket_can_be_made_up(fields: dict[str, object]) -> None:
    with pytest.raises(Refused, match="challenge"):
        Gate(DOOR.key).admit(CHALLENGE, prove(changed(issue(DOOR, NOW), **fields), CHALLENGE), NOW)


def test_a_ticket_expires_and_no_one_can_be_good_for_long() -> None:
    ticket = issue(DOOR, NOW)
    with pytest.raises(Refused, match="expired"):
        Gate(DOOR.key).admit(CHALLENGE, prove(ticket, CHALLENGE), NOW + handshake.TICKET_S + 1)
    far = issue(DOOR, NOW + 10_000)
    with pytest.raises(Refused, match="expired"):
        Gate(DOOR.key).admit(CHALLENGE, prove(far, CHALLENGE), NOW)


@pytest.mark.parametrize("payload", [b"", b"\x93", b"\xff" * 200, msgspec.msgpack.encode([b"i" * 16, NOW, "text"])])
def test_what_is_no_proof_is_refused(payload: bytes) -> None:
    with pytest.raises(Refused):
        Gate(DOOR.key).admit(CHALLENGE, payload, NOW)


def test_used_tickets_are_forgotten_when_they_have_expired() -> None:
    gate = Gate(DOOR.key)
    for second in range(200):
        gate.admit(CHALLENGE, prove(issue(DOOR, NOW + second), CHALLENGE), NOW + second)
    assert len(gate._used) <= handshake.TICKET_S + 1


def test_secrets_do_not_show_when_printed() -> None:
    ticket = issue(DOOR, NOW)
    assert str(DOOR.key) not in repr(DOOR) and str(ticket.secret) not in repr(ticket)


@asynccontextmanager
async def a_door(folder: Path) -> AsyncIterator[Door]:
    told, stop = folder / "door", asyncio.Event()
    server = Server(Engine(ScriptedModel(), 2), str(folder / "w"), WorkerDoor("127.0.0.1:0", told))
    task = asyncio.create_task(server.run(stop, asyncio.Event(), 1.0))
    try:
        while not told.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert stat.S_IMODE(told.stat().st_mode) == 0o600
        yield msgspec.msgpack.decode(told.read_bytes(), type=Door)
    finally:
        stop.set()
        await task


def ticket_of(door: Door) -> Ticket:
    return issue(door, int(time.time()))


async def stranger(door: Door) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cadata=door.certificate)
    context.check_hostname = False
    reader, writer = await asyncio.open_connection(door.host, door.port, ssl=context, server_hostname="")
    assert await reader.readexactly(4) == struct.pack("<I", CHALLENGE_BYTES)
    await reader.readexactly(CHALLENGE_BYTES)
    return reader, writer


async def test_a_ticket_leads_to_the_worker_and_its_wire(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        link = await DirectLink.enter(ticket_of(door))
        running = asyncio.create_task(link.run())
        assert link.ready.slots == 2 and link.has_room
        await link.open(1, _Holder())
        await link.open(2, _Holder())
        assert not link.has_room
        await link.close()
        await running


async def test_a_used_ticket_and_a_false_one_lead_nowhere(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        ticket = ticket_of(door)
        first = await DirectLink.enter(ticket)
        for bad in (ticket, changed(ticket_of(door), secret=b"z" * 32)):
            with pytest.raises(LinkError, match="did not let us in"):
                await DirectLink.enter(bad)
        await first.close()


async def test_another_certificate_is_not_the_worker(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with a_door(tmp_path / "a") as door, a_door(tmp_path / "b") as other:
        with pytest.raises(LinkError, match="certificate"):
            await DirectLink.enter(changed(ticket_of(door), certificate=other.certificate))


@pytest.mark.parametrize("size", [handshake.MAX_PROOF_BYTES + 1, 0xFFFFFFFF])
async def test_a_giant_proof_is_not_read(tmp_path: Path, size: int) -> None:
    async with a_door(tmp_path) as door:
        reader, writer = await stranger(door)
        writer.write(struct.pack("<I", size) + b"x" * 64)
        assert await asyncio.wait_for(reader.read(), 2.0) == b""
        writer.close()


async def test_a_giant_frame_of_somebody_who_was_let_in_ends_his_connection_only(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        bad, good = await DirectLink.enter(ticket_of(door)), await DirectLink.enter(ticket_of(door))
        bad._writer.write(struct.pack("<I", wire.MAX_FRAME_BYTES + 1))
        await asyncio.wait_for(bad.run(), 5.0)
        assert not bad.alive
        running = asyncio.create_task(good.run())
        await good.open(1, _Holder())
        await good.close()
        await running


async def test_who_proves_nothing_in_time_is_gone_and_crowds_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_door, "HANDSHAKE_S", 0.5)
    monkeypatch.setattr(worker_door, "MAX_STRANGERS", 3)
    async with a_door(tmp_path) as door:
        silent = [await stranger(door) for _ in range(3)]
        with contextlib.suppress(OSError), pytest.raises((asyncio.IncompleteReadError, AssertionError)):
            await stranger(door)
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), 5.0) == b""
            writer.close()
        link = await DirectLink.enter(ticket_of(door))
        await link.close()


class _Holder:
    coarsest_hz = 4.0
    idle_since_s = None
    at_rest = True

    def give_way(self) -> None: ...

    def move(self) -> None: ...

    def worker_message(self, message: wire.FromWorker) -> None: ...

    def worker_lost(self) -> None: ...
