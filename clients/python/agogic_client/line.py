"""A WebSocket that is made again where it was lost, as long as the server knows the session."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from agogic_client.conversation import Event
from agogic_client.errors import CallError

_OPEN_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 1.0
_MOST_UNCONFIRMED = 64
# With these the other side says that the session is over.
_FAREWELLS = {1000, 1001, 1008}
_REFUSED = {400, 401, 403, 404, 421}


class Line:
    """`address` has its query already."""

    def __init__(self, address: str, headers: Mapping[str, str], socket: ClientConnection) -> None:
        self._address = address
        self._headers = headers
        self._socket = socket
        self._up = asyncio.Event()
        self._up.set()
        self._over = False
        self._token = ""
        self._within_s = 0.0
        self._after = ""
        self._count = 0
        self._unconfirmed: deque[Event] = deque(maxlen=_MOST_UNCONFIRMED)

    @classmethod
    async def open(cls, address: str, headers: Mapping[str, str]) -> Line:
        """Raises what `websockets` does where it cannot be opened."""
        return cls(address, headers, await _socket(address, headers))

    async def send(self, event: Event) -> None:
        """Waits while the connection is being made again. Raises `CallError` where the session is over."""
        is_sound = event["type"] == "input_audio_buffer.append"
        if not is_sound:
            self._count += 1
            event = {"event_id": f"py_{self._count}"} | event
            self._unconfirmed.append(event)
        while True:
            await self._up.wait()
            if self._over:
                raise CallError("the call has ended", "lost")
            try:
                return await self._socket.send(json.dumps(event))
            except ConnectionClosed:
                self._up.clear()
                if not self._may_resume():
                    raise CallError("the call has ended", "lost") from None
            if not is_sound:  # whoever makes the connection again sends it
                await self._up.wait()
                if self._over:
                    raise CallError("the call has ended", "lost")
                return

    async def events(self) -> AsyncIterator[Event]:
        """Until the session is over for us."""
        try:
            while True:
                with suppress(ConnectionClosed):
                    async for text in self._socket:
                        yield self._note(json.loads(text))
                self._up.clear()
                resumed = await self._resume() if self._may_resume() else None
                if resumed is None:
                    return
                yield resumed
        finally:
            self._over = True
            self._up.set()

    async def aclose(self) -> None:
        self._over = True
        self._up.set()
        await self._socket.close()

    def _note(self, event: Event) -> Event:
        self._after = event.get("event_id", self._after)
        if event["type"] in ("session.created", "x_agogic.session_resumed"):
            resume = (event.get("x_agogic") or {}).get("resume") or {}
            self._token, self._within_s = resume.get("token", ""), resume.get("within_s", 0.0)
        return event

    def _may_resume(self) -> bool:
        return bool(self._token) and not self._over and self._socket.close_code not in _FAREWELLS

    async def _resume(self) -> Event | None:
        """The first event of the connection that was made, None where there is none to be had."""
        pause_s = _FIRST_PAUSE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(self._within_s):
                while True:
                    try:
                        return await self._take_up()
                    except InvalidStatus as refused:
                        if refused.response.status_code in _REFUSED:
                            return None
                    except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed):
                        pass
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return None

    async def _take_up(self) -> Event | None:
        query = urlencode({"resume": self._token, "after": self._after})
        socket = await _socket(f"{self._address}&{query}", self._headers)
        event: Event = json.loads(await socket.recv())
        if event["type"] != "x_agogic.session_resumed":
            await socket.close()
            return None
        self._socket = socket
        sent = [each["event_id"] for each in self._unconfirmed]
        last = event["last_client_event_id"]
        missing = list(self._unconfirmed)[sent.index(last) + 1 if last in sent else 0 :]
        for each in missing:
            await socket.send(json.dumps(each))
        self._unconfirmed = deque(missing, maxlen=_MOST_UNCONFIRMED)
        self._note(event)
        self._up.set()
        return event


async def _socket(address: str, headers: Mapping[str, str]) -> ClientConnection:
    return await connect_websocket(
        address, additional_headers=dict(headers), max_size=None, open_timeout=_OPEN_TIMEOUT_S
    )
