"""`agogic bench attack`: a real service under every attack there is, and what callers beside it notice."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import msgspec
import numpy as np

from benchmarks.attacks.kinds import Target, attacks
from benchmarks.attacks.server import ROOT, Holding, Server, ServerError
from benchmarks.attacks.watch import Seen
from benchmarks.progress import Progress

_ATTACK_S = 30.0
_RECOVERY_S = 10.0
_SETTLE_S = 1.0

Say = Callable[[str], None]


class AttackError(Exception):
    """The suite cannot run; the message says why."""


@dataclass
class Result:
    """Of one attack: what the watchers noticed, and whether the server was there for others afterwards."""

    name: str
    seen: Seen
    took_s: float
    alive: bool
    serves: bool

    @property
    def survived(self) -> bool:
        return self.alive and self.serves and not self.seen.cut_off

    def report(self) -> dict[str, object]:
        return {
            "name": self.name,
            "survived": self.survived,
            "socket_gap_ms": round(self.seen.socket_gap_ms, 1),
            "call_gap_ms": round(self.seen.call_gap_ms, 1),
            "server_gap_ms": round(self.seen.server_gap_ms, 1),
            "healthz_p99_ms": round(p99(self.seen.healthz_ms), 1),
            "took_s": round(self.took_s, 1),
            **({"cut_off": self.seen.cut_off} if self.seen.cut_off else {}),
        }


class Watchers:
    """The process of `benchmarks.attacks.watch`."""

    def __init__(self, process: asyncio.subprocess.Process, media_port: int) -> None:
        self.media_port = media_port
        self._process = process

    @classmethod
    async def start(cls, url: str, pid: int, key: str = "") -> Watchers:
        """Once they hear something of the service at `url`, whose process is `pid`. Raises `AttackError`."""
        command = [sys.executable, "-m", "benchmarks.attacks.watch", url, str(pid), *([key] if key else [])]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, limit=2**24)
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise AttackError("the watching callers got no sound from the service before any attack")
        return cls(process, int(msgspec.json.decode(line)["media_port"]))

    async def take(self) -> Seen:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(_RECOVERY_S):
            return msgspec.json.decode(await self._process.stdout.readline(), type=Seen)

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(3.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def run(
    server: Server, only: str = "", say: Say = lambda text: None, progress: Progress = lambda done, total: None
) -> dict[str, object]:
    """Every attack whose name contains `only`, one after another against the same server, which is started anew only
    where one has ended it. Raises `AttackError` and `ServerError`."""
    names = [name for name in attacks() if only in name]
    if not names:
        raise AttackError(f"no attack is called {only!r}; there are {', '.join(attacks())}")
    results: list[Result] = []
    quiet, before, after = Seen(), Holding(0.0, 0), Holding(0.0, 0)
    server.start()
    try:
        watchers = await Watchers.start(server.url, server.pid)
        await asyncio.sleep(3 * _SETTLE_S)
        quiet, before = await watchers.take(), server.holds()
        for name in names:
            result = await _one(name, server, watchers)
            results.append(result)
            say(f"{name}: {'survived' if result.survived else 'DOWN'}, gap {result.seen.gap_ms:.0f} ms")
            progress(len(results), len(names))
            if not result.survived:
                await watchers.stop()
                server.stop()
                server.start()
                watchers = await Watchers.start(server.url, server.pid)
            after = server.holds()
        await watchers.stop()
    finally:
        server.stop()
    return {
        "attacks": len(results),
        "worst_gap_ms": round(max(result.seen.gap_ms for result in results), 1),
        "worst_server_gap_ms": round(max(result.seen.server_gap_ms for result in results), 1),
        "healthz_p99_ms": round(p99([ms for result in results for ms in result.seen.healthz_ms]), 1),
        "server_healthz_p99_ms": round(p99([ms for result in results for ms in result.seen.server_healthz_ms]), 1),
        "survived": all(result.survived for result in results),
        "quiet_gap_ms": round(quiet.gap_ms, 1),
        "memory_growth_mb": round(after.memory_mb - before.memory_mb, 1),
        "descriptors_growth": after.descriptors - before.descriptors,
        "by_attack": [result.report() for result in results],
    }


async def _one(name: str, server: Server, watchers: Watchers) -> Result:
    target = Target(server.url, "127.0.0.1", server.port, server.pid, watchers.media_port)
    await watchers.take()
    began_s = time.monotonic()
    command = (sys.executable, "-m", "benchmarks.attacks.kinds", name, msgspec.json.encode(target).decode())
    attacker = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(_ATTACK_S):
            _, said = await attacker.communicate()
    except TimeoutError:
        # It goes on for as long as it is let: that is no failure of the attack.
        attacker.kill()
        await attacker.communicate()
    else:
        if attacker.returncode and server.is_alive:
            raise AttackError(f"the attack {name} failed by itself: {said.decode().strip().splitlines()[-1]}")
    await asyncio.sleep(_SETTLE_S)
    serves = await asyncio.to_thread(server.becomes_ready, _RECOVERY_S) and await _answers(server.url)
    seen = await watchers.take()
    return Result(name, seen, time.monotonic() - began_s, server.is_alive, serves)


async def _answers(url: str) -> bool:
    """Whether somebody new is answered, tried for as long as an honest client would."""
    deadline = time.monotonic() + _RECOVERY_S
    while time.monotonic() < deadline:
        try:
            async with (
                asyncio.timeout(_RECOVERY_S),
                aiohttp.ClientSession() as http,
                http.ws_connect(f"{url}/v1/realtime?model=agogic") as socket,
            ):
                await socket.send_json({"type": "response.create", "response": {"output_modalities": ["text"]}})
                async for message in socket:
                    event = msgspec.json.decode(message.data)
                    if event["type"] == "response.done":
                        return bool(event["response"]["status"] == "completed")
        except (aiohttp.ClientError, OSError, TimeoutError, TypeError):
            await asyncio.sleep(0.5)
    return False


def p99(values: list[float]) -> float:
    return float(np.percentile(values, 99)) if values else 0.0


__all__ = ["AttackError", "ServerError", "run"]
