"""Somebody who has nothing to do with an attack: listens to answers, and looks at the server's health meanwhile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp

_SAMPLES_PER_S = 24_000
_LOOK_EVERY_S = 0.02
# Every so many looks over a connection of its own: who comes anew must get in, too.
_ANEW_EVERY = 5


@dataclass
class Seen:
    """`gaps_ms`: how long a listener heard nothing between two pieces of one answer, with what he had in hand counted.
    `healthz_ms`: how long each look took; `failed` were answered otherwise than with 200, or not at all. `lags_ms`: how
    late the bystander itself was, which is the machine's doing and not the server's."""

    gaps_ms: list[float] = field(default_factory=list)
    healthz_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    heard_s: float = 0.0
    failed: int = 0

    @property
    def worst_gap_ms(self) -> float:
        return max(self.gaps_ms, default=0.0)

    @property
    def healthz_p99_ms(self) -> float:
        return _p99(self.healthz_ms)

    @property
    def lag_p99_ms(self) -> float:
        return _p99(self.lags_ms)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))] if values else 0.0


@contextlib.asynccontextmanager
async def watching(url: str, key: str = "") -> AsyncIterator[Seen]:
    """Listens and looks until the block ends; the first sound has come when it begins."""
    seen, heard = Seen(), asyncio.Event()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(headers=headers) as http, asyncio.TaskGroup() as group:
        tasks = [group.create_task(_listen(http, url, seen, heard)), group.create_task(_look(http, url, seen))]
        async with asyncio.timeout(10.0):
            await heard.wait()
        for before in (seen.gaps_ms, seen.healthz_ms, seen.lags_ms):
            before.clear()
        yield seen
        for task in tasks:
            task.cancel()


async def _listen(http: aiohttp.ClientSession, url: str, seen: Seen, heard: asyncio.Event) -> None:
    """Asks again as soon as an answer has ended."""
    async with http.ws_connect(f"{url}/v1/realtime?model=m", max_msg_size=0) as socket:
        await socket.send_json({"type": "response.create"})
        ends_s: float | None = None
        async for message in socket:
            event = json.loads(message.data)
            if event["type"] == "response.output_audio.delta":
                now_s = time.monotonic()
                lasts_s = len(base64.b64decode(event["delta"])) / 2 / _SAMPLES_PER_S
                seen.gaps_ms.append(max(0.0, now_s - ends_s) * 1000 if ends_s is not None else 0.0)
                ends_s = max(now_s, ends_s or now_s) + lasts_s
                seen.heard_s += lasts_s
                heard.set()
            elif event["type"] == "response.done":
                ends_s = None
                await socket.send_json({"type": "response.create"})
        raise ConnectionError(f"the listener was cut off with {socket.close_code}")


async def _look(http: aiohttp.ClientSession, url: str, seen: Seen) -> None:
    for number in range(1_000_000):
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(5.0):
                if number % _ANEW_EVERY:
                    async with http.get(f"{url}/healthz") as answer:
                        seen.failed += answer.status != 200
                else:
                    async with aiohttp.ClientSession() as anew, anew.get(f"{url}/healthz") as answer:
                        seen.failed += answer.status != 200
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            seen.failed += 1
        ended_s = time.monotonic()
        seen.healthz_ms.append((ended_s - began_s) * 1000)
        await asyncio.sleep(_LOOK_EVERY_S)
        seen.lags_ms.append((time.monotonic() - ended_s - _LOOK_EVERY_S) * 1000)
