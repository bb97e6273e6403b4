"""Stands between a client and a server, and hears both: a WebSocket relay on loopback that keeps every event.

Clients are told its address instead of the server's, and nothing else of them changes. What is sent is passed on as it
is, so that a client which is cut off here was cut off by the network. Three paths are the tap's own:

    POST /tap/step?name=NAME    from here on events belong to this step of the play
    POST /tap/completed         how many answers have been completed so far
    POST /tap/cut               every connection is broken off, as a lost network does it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

JsonObject = dict[str, Any]
_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
_OF_ONE_HOP = {"host", "upgrade", "connection", "origin"}


@dataclass(frozen=True)
class Heard:
    """One event: in which step it came, over which connection (counted from 0), and who sent it."""

    step: str
    connection: int
    sender: Literal["client", "server"]
    event: JsonObject

    @property
    def kind(self) -> str:
        return str(self.event.get("type"))


@dataclass
class Tap:
    """`url` is for clients: http://127.0.0.1:PORT. `paths`: what was asked for, a query without its values behind it.

    `connections`: how many there have been. Sound that the client appends is not kept.
    """

    upstream: str
    api_key: str = ""
    url: str = ""
    step: str = ""
    connections: int = 0
    heard: list[Heard] = field(default_factory=list)
    _live: set[web.WebSocketResponse] = field(default_factory=set)
    _requests: dict[int, web.Request] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Tap]:
        app = web.Application()
        app.router.add_post("/tap/step", self._step)
        app.router.add_post("/tap/completed", self._completed)
        app.router.add_post("/tap/cut", self._cut)
        app.router.add_get("/{path:.*}", self._relay)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def events(self, step: str | None = None, sender: str = "server") -> list[JsonObject]:
        return [one.event for one in self.heard if one.sender == sender and step in (None, one.step)]

    async def _step(self, request: web.Request) -> web.Response:
        self.step = request.query["name"]
        return web.Response()

    async def _completed(self, _: web.Request) -> web.Response:
        done = [event["response"] for event in self.events() if event["type"] == "response.done"]
        return web.Response(text=str(sum(response["status"] == "completed" for response in done)))

    async def _cut(self, _: web.Request) -> web.Response:
        requests = list(self._requests.values())
        for request in requests:
            if request.transport is not None:
                request.transport.abort()
        return web.Response(text=str(len(requests)))

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._relayed(request)
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status, text=error.message)

    async def _relayed(self, request: web.Request) -> web.WebSocketResponse:
        number, self.connections = self.connections, self.connections + 1
        headers = {name: value for name, value in request.headers.items() if not _is_of_one_hop(name)}
        offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if name]
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
            offered = [name for name in offered if not name.startswith("openai-insecure-api-key.")]
        address = urlsplit(self.upstream)
        scheme = "wss" if address.scheme == "https" else "ws"
        target = f"{scheme}://{address.netloc}{request.raw_path}"
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(target, headers=headers, protocols=offered, max_msg_size=_MAX_MESSAGE_BYTES) as server,
        ):
            chosen = (server.protocol,) if server.protocol else ()
            client = web.WebSocketResponse(protocols=chosen, max_msg_size=_MAX_MESSAGE_BYTES)
            await client.prepare(request)
            self._requests[number] = request
            try:
                pumps = [
                    asyncio.create_task(self._pump(number, "client", client, server)),
                    asyncio.create_task(self._pump(number, "server", server, client)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                del self._requests[number]
                await client.close(code=server.close_code or 1000)
        return client

    async def _pump(
        self,
        number: int,
        sender: Literal["client", "server"],
        source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
        target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    ) -> None:
        async for message in source:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if event.get("type") != "input_audio_buffer.append":
                self.heard.append(Heard(self.step, number, sender, event))
            with contextlib.suppress(ConnectionError):
                await target.send_str(message.data)


def _is_of_one_hop(name: str) -> bool:
    return name.lower() in _OF_ONE_HOP or name.lower().startswith("sec-websocket-")
