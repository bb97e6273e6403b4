"""What one HTTP client can do to keep a server from serving the others, and requests that once were its mistakes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

Attack = Callable[[str, str], Awaitable[None]]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Another address of this machine, where it has one: a crowd comes from elsewhere than those who are to be served.
_SOURCES = ("127.0.0.2", None)
_DEEP = "[" * 600 + "]" * 600


async def _connect(url: str) -> Stream:
    address = urlsplit(url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    for source in _SOURCES:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(host, port, local_addr=(source, 0) if source is not None else None)
    raise ConnectionError(f"nobody answers at {url}")


async def _held(url: str, count: int, start: bytes, drip: bytes, seconds: float) -> None:
    """`count` connections at once that say a little at first and then a little now and then."""
    streams: list[Stream] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                streams.append(await _connect(url))
                streams[-1][1].write(start)
        for _ in range(int(seconds / 0.5)):
            for _, writer in streams:
                writer.write(drip)
            await asyncio.sleep(0.5)
    finally:
        for _, writer in streams:
            writer.transport.abort()


async def slow_headers(url: str, key: str) -> None:
    """Slowloris."""
    await _held(url, 300, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a", 1.5)


async def half_open(url: str, key: str) -> None:
    """More connections than the server has descriptors for, all of them silent."""
    await _held(url, 700, b"", b"", 1.0)


async def slow_bodies(url: str, key: str) -> None:
    head = f"POST /v1/realtime/client_secrets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    await _held(url, 300, f"{head}Content-Length: 100000\r\n\r\n{{".encode(), b" ", 1.5)


async def pipeline(url: str, key: str) -> None:
    """Thousands of requests in one write, whose answers are not read."""
    _, writer = await _connect(url)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000)
    await asyncio.sleep(1.5)
    writer.transport.abort()


async def aborted_uploads(url: str, key: str) -> None:
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + "\r\n"
    for number in range(100):
        _, writer = await _connect(url)
        path = ("/v1/realtime/calls", "/v1/realtime/client_secrets")[number % 2]
        kind = ("application/sdp", "multipart/form-data; boundary=x")[number // 2 % 2]
        body = "Content-Length: 5000\r\n\r\n" if number % 3 else "Transfer-Encoding: chunked\r\n\r\n10\r\n"
        writer.write(f"{head.format(path)}Content-Type: {kind}\r\n{body}--x\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.005)
        writer.transport.abort() if number % 2 else writer.close()


async def junk(url: str, key: str) -> None:
    """What is no HTTP, or nearly."""
    kinds = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"\0" * 1000,
    )
    for number in range(180):
        _, writer = await _connect(url)
        writer.write(kinds[number % len(kinds)])
        await asyncio.sleep(0.005)
        writer.close()


def odd_requests(key: str) -> dict[str, bytes]:
    """Requests that have an answer, and whose answer is never a mistake of the server's."""
    bearer = f"Authorization: Bearer {key}\r\n"
    session = f'{{"tracing": {{"x": {_DEEP}}}}}'
    part = f'--x\r\nContent-Disposition: form-data; name="session"\r\n\r\n{session}\r\n--x--\r\n'
    bombs = (
        '{"session": {"tracing": {"x": ' + _DEEP + "}}}",
        '{"session": {"x": [' + "0," * 200_000 + "0]}}",
        "[" * 9999,
    )
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    requests = {
        "a key that is not UTF-8": _get("/metrics", "Authorization: Bearer \xff\xfe\r\n"),
        "a subprotocol that is not UTF-8": _get(
            "/v1/realtime", f"{upgrade}Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.\xff\xfe\r\n"
        ),
        "an origin that is no URL": _get("/v1/realtime", f"{bearer}Origin: http://[\r\n"),
        "an origin with no port": _get("/v1/realtime", f"{bearer}Origin: http://localhost:xyz\r\n"),
        "a host that is no name": b"GET /healthz HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "an asset of a long name": _get("/assets/" + "a" * 5000, ""),
        "an asset above the root": _get("/assets/../../config.py", ""),
        "an asset with a zero": _get("/assets/%00", ""),
        "a call of a long name": _get(f"/v1/realtime?call_id={'a' * 5000}", bearer + upgrade),
        "a websocket key that is none": _get("/v1/realtime", f"{bearer}{upgrade}Sec-WebSocket-Key: \xe4\r\n"),
        "a deep session part": _post("/v1/realtime/calls", bearer, part, "multipart/form-data; boundary=x"),
        "a form without a boundary": _post("/v1/realtime/calls", bearer, part, "multipart/form-data"),
        "a form in an unknown charset": _post(
            "/v1/realtime/calls", bearer, part.replace("\r\n\r\n", "\r\nContent-Transfer-Encoding: x\r\n\r\n", 1),
            "multipart/form-data; boundary=x; charset=nonsense",
        ),
    }  # fmt: skip
    for number, body in enumerate(bombs):
        requests[f"body {number} that explodes"] = _post(
            "/v1/realtime/client_secrets", bearer, body, "application/json"
        )
    return requests


def _get(path: str, headers: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode("latin-1")


def _post(path: str, headers: str, body: str, kind: str) -> bytes:
    sized = f"{headers}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{sized}\r\n{body}".encode("latin-1")


async def answer_to(url: str, request: bytes) -> tuple[int, str]:
    """Status and the rest; 0 where nothing came."""
    reader, writer = await _connect(url)
    try:
        writer.write(request)
        async with asyncio.timeout(5.0):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            size = next((line[15:] for line in head.split("\r\n") if line.lower().startswith("content-length:")), "0")
            body = await reader.readexactly(int(size))
        return int(head.split()[1]), head + body.decode("utf-8", "replace")
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return 0, ""
    finally:
        writer.transport.abort()


async def odd(url: str, key: str) -> None:
    for _ in range(5):
        for request in odd_requests(key).values():
            await answer_to(url, request)


async def guesses(url: str, key: str) -> None:
    """Wrong keys, one after another."""
    reader, writer = await _connect(url)
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        for number in range(1000):
            body = json.dumps({})
            writer.write(_post("/v1/realtime/client_secrets", f"Authorization: Bearer {number}\r\n", body, "text/json"))
            if number % 50 == 0:
                await writer.drain()
                await reader.read(65_536)
    writer.transport.abort()


KINDS: dict[str, Attack] = {
    "slow_headers": slow_headers,
    "half_open": half_open,
    "slow_bodies": slow_bodies,
    "pipeline": pipeline,
    "aborted_uploads": aborted_uploads,
    "junk": junk,
    "odd": odd,
    "guesses": guesses,
}


async def attack(kind: str, url: str, key: str) -> None:
    """One attack against the server at `url` (http://…); that it hangs up is its right."""
    with contextlib.suppress(ConnectionError):
        await KINDS[kind](url, key)


async def run(url: str, key: str) -> None:
    """All of them, one after another."""
    for kind in KINDS:
        await attack(kind, url, key)
