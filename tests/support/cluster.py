"""A cluster without Ray, in one process, and a client of many services whose conversation survives them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from agent.cluster.host import WorkerHost
from agent.cluster.ledger import Ledger
from agent.cluster.messages import Beat, ClusterOrder, ControlError, HostReport, Told
from agent.cluster.store import SessionStore
from agent.cluster.supervisor import Supervising

LOST = (ConnectionError, aiohttp.ClientError, TimeoutError)


async def becomes(is_so: Callable[[], bool], within_s: float = 30.0) -> None:
    """Until it is so; nothing announces it."""
    async with asyncio.timeout(within_s):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class LocalControl:
    """What `RayControl` is to services and supervisor, with everything in this process. `away`: nothing answers; while
    `stores` is not set, copies are on their way and do not arrive. `asked`: times that keys were spoken of."""

    def __init__(self, order: ClusterOrder, keep_s: float = 60.0, max_bytes: int = 64 * 1024 * 1024) -> None:
        self.hosts: dict[str, WorkerHost] = {}
        self.store = SessionStore(keep_s, max_bytes, "first life")
        self.supervising = Supervising(order, self)
        self.away = False
        self.stores = asyncio.Event()
        self.stores.set()
        self.beats: list[Beat] = []
        self.book = Ledger("first life")
        self.asked = 0

    def _reach(self) -> None:
        if self.away:
            raise ControlError("the control plane is away")

    async def start_services(self, order: ClusterOrder, keep_s: float, max_bytes: int) -> None:
        self._reach()

    async def worker_names(self) -> list[str]:
        self._reach()
        return sorted(self.hosts)

    async def report(self, name: str, *, with_ticket: bool = False) -> HostReport:
        self._reach()
        if name not in self.hosts:
            raise ControlError(f"there is no {name}")
        return msgspec.msgpack.decode(await self.hosts[name].report(with_ticket), type=HostReport)

    async def beat(self, beat: Beat) -> Told:
        self._reach()
        self.beats.append(beat)
        told = self.supervising.beat(beat, time.monotonic())
        await self.supervising.look(time.monotonic())
        return told

    async def start_worker(self, number: int, order: ClusterOrder) -> None:
        self.hosts[f"worker-{number}"] = WorkerHost(msgspec.msgpack.encode(order.worker))

    async def drain_worker(self, name: str) -> None:
        await self.hosts[name].drain()

    async def stop_worker(self, name: str) -> None:
        await self.hosts.pop(name).stop()

    async def update(self, data: bytes) -> bytes:
        self._reach()
        await self.stores.wait()
        return self.store.update(data)

    async def claim(self, data: bytes) -> bytes:
        self._reach()
        return self.store.claim(data)

    async def ledger(self, data: bytes) -> bytes:
        self._reach()
        await self.stores.wait()
        self.asked += 1
        return self.book.ask(data)

    async def stop(self) -> None:
        for name in tuple(self.hosts):
            await self.stop_worker(name)


@dataclass
class Turn:
    """One question and what came of it. `asked_s`, `heard_s`: moments of the question and of the first sound."""

    text: str
    asked_s: float
    heard_s: float | None = None
    said: str = ""
    status: str = ""


@dataclass
class Talker:
    """A client that comes back by its token, at whichever service lets it in. `run` reads until cancelled."""

    http: aiohttp.ClientSession
    urls: Sequence[str]
    at: int
    events: list[dict[str, Any]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    losses: int = 0
    refusals: list[str] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    token: str = ""
    _sent: list[dict[str, Any]] = field(default_factory=list)
    _socket: aiohttp.ClientWebSocketResponse | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(*LOST):
                await self._connected()
            self._socket = None
            self.losses += 1
            self.at = (self.at + 1) % len(self.urls)
            await asyncio.sleep(0.05)

    async def _connected(self) -> None:
        query = "model=agogic"
        if self.token:
            query += f"&resume={self.token}&after={self.events[-1]['event_id']}"
        timeout = aiohttp.ClientWSTimeout(ws_close=1.0)
        url = f"{self.urls[self.at]}/v1/realtime?{query}"
        async with asyncio.timeout(3.0):
            socket = await self.http.ws_connect(url, timeout=timeout)
        async with socket:
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                if event["type"] == "error" and str(event["error"]["code"]).startswith("resume"):
                    self.refusals.append(event["error"]["code"])
                    return
                self._take(event)
                if event["type"] in ("session.created", "x_agogic.session_resumed"):
                    self.token = event["x_agogic"]["resume"]["token"]
                    await self._send_again(socket, event.get("last_client_event_id"))
                    self._socket = socket
                self._changed.set()
            if socket.close_code is not None and self._socket is socket:
                self.closed.append(socket.close_code)

    async def _send_again(self, socket: aiohttp.ClientWebSocketResponse, last: str | None) -> None:
        """What the service that is gone was sent and had not told anybody."""
        names = [event["event_id"] for event in self._sent]
        for event in self._sent[names.index(last) + 1 if last in names else 0 :]:
            await socket.send_str(json.dumps(event))

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if not self.turns:
            return
        turn = self.turns[-1]
        if event["type"] == "response.output_audio.delta" and turn.heard_s is None:
            turn.heard_s = time.monotonic()
        elif event["type"] == "response.output_audio_transcript.delta":
            turn.said += event["delta"]
        elif event["type"] == "response.done":
            turn.status = event["response"]["status"]

    async def ready(self) -> aiohttp.ClientWebSocketResponse:
        """Until it is connected, wherever."""
        await becomes(lambda: self._socket is not None and not self._socket.closed)
        assert self._socket is not None
        return self._socket

    async def send(self, **event: Any) -> None:
        """To whichever service is there, and to the next one if that loses it; sound is not worth that."""
        is_sound = event["type"] == "input_audio_buffer.append"
        if not is_sound:
            event["event_id"] = f"mine_{len(self._sent)}"
        socket = await self.ready()
        if not is_sound:
            self._sent.append(event)
        with contextlib.suppress(*LOST):
            await socket.send_str(json.dumps(event))

    async def ask(self, text: str) -> Turn:
        """Returns when the first of the answer is heard, or it failed."""
        turn = Turn(text, time.monotonic())
        self.turns.append(turn)
        content = [{"type": "input_text", "text": text}]
        await self.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.send(type="response.create")
        await self.until(lambda: turn.heard_s is not None or turn.status != "")
        return turn

    async def say(self, pcm: bytes) -> None:
        """Speech at 24 kHz, in real time, with a second of silence behind it."""
        sound = pcm + bytes(48_000)
        for offset in range(0, len(sound), 4800):
            piece = base64.b64encode(sound[offset : offset + 4800]).decode()
            await self.send(type="input_audio_buffer.append", audio=piece)
            await asyncio.sleep(0.1)

    async def done(self) -> Turn:
        """Until the answer of the last turn has ended."""
        turn = self.turns[-1]
        await self.until(lambda: turn.status != "")
        return turn

    async def until(self, is_so: Any, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not is_so():
                self._changed.clear()
                await self._changed.wait()

    def complaints(self) -> list[str]:
        """What a client would call said twice, or lost."""
        wrong: list[str] = []
        ids = [event["event_id"] for event in self.events]
        wrong += [f"event {name} came twice" for name in set(ids) if ids.count(name) > 1]
        at: dict[str, float] = {}
        for event in self.events:
            if event["type"] == "response.output_audio.delta":
                start = float(event["x_agogic"]["start_time"])
                if start < at.get(event["item_id"], -1.0):
                    wrong.append(f"{event['item_id']} sounds twice from {start}")
                at[event["item_id"]] = start
        return wrong + [f"resuming was refused: {code}" for code in self.refusals]

    def history(self) -> list[str]:
        """Ids of all items that it was told of, in the order of the conversation. Each is told with the one before it:
        raises `AssertionError` where that is one it knows nothing of."""
        order: list[str] = []
        for event in self.events:
            if event["type"] == "conversation.item.added":
                before = event["previous_item_id"]
                assert before is None or before in order, f"{event['item']['id']} stands behind {before}"
                order.insert(order.index(before) + 1 if before is not None else 0, event["item"]["id"])
        return order

    def answers(self) -> dict[str, tuple[int, int]]:
        """Of each question: how many items it became, and how many responses answered them."""
        found: dict[str, tuple[int, int]] = {}
        question = ""
        for event in self.events:
            if event["type"] == "conversation.item.added" and event["item"].get("role") == "user":
                question = str(event["item"]["content"][0].get("text"))
                items, responses = found.get(question, (0, 0))
                found[question] = (items + 1, responses)
            elif event["type"] == "response.created":
                items, responses = found[question]
                found[question] = (items, responses + 1)
        return found

    async def retrieved(self, item_id: str) -> str:
        """What the server knows of an item."""
        before = len(self.events)

        def found() -> dict[str, Any] | None:
            return next(
                (
                    event["item"]
                    for event in self.events[before:]
                    if event["type"] == "conversation.item.retrieved" and event["item"]["id"] == item_id
                ),
                None,
            )

        await self.send(type="conversation.item.retrieve", item_id=item_id)
        await self.until(lambda: found() is not None)
        item = found()
        assert item is not None
        return " ".join(str(part.get("text") or part.get("transcript") or "") for part in item["content"])

    def items(self) -> dict[str, str]:
        """All items that it was told of as done, and what they say."""
        return {
            event["item"]["id"]: " ".join(
                str(part.get("text") or part.get("transcript") or "") for part in event["item"]["content"]
            )
            for event in self.events
            if event["type"] == "conversation.item.done"
        }
