"""`agogic bench cluster`: what the direct, authenticated socket to a worker adds to the link of one machine.

Both lead to the same process, at the same time: every tick one piece of sound goes each way and comes back, the order
changing with every tick, as in a service with so many callers. What is reported is there and back. `added_ms` compares
pieces of one tick; on a machine that is busy with other things its p95 is mostly theirs, and the difference of the two
ways' own p95 says more.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent import wire
from agent.cluster.direct import DirectLink
from agent.handshake import Door, issue
from agent.server.child import Child
from agent.server.link import WorkerLink

TICK_S = 0.02
PIECE_MS = 160
_PCM = bytes(PIECE_MS * wire.INPUT_SAMPLE_RATE // 1000 * 2)
_START_S = 60.0
_WARM_UP = 50


class _Caller:
    """Sends sound and notes when it is back."""

    coarsest_hz = 4.0
    idle_since_s = None
    at_rest = True

    def __init__(self) -> None:
        self.back = asyncio.Event()

    def give_way(self) -> None: ...

    def move(self) -> None: ...

    def worker_message(self, message: wire.FromWorker) -> None:
        if isinstance(message, wire.AudioOut):
            self.back.set()

    def worker_lost(self) -> None:
        raise ConnectionError("the echo process is gone")


def run(pieces: int, progress: Callable[[int, int], None]) -> dict[str, object]:
    """pieces: how many go each way."""
    import uvloop

    return uvloop.run(_measure(pieces, progress))


async def _measure(pieces: int, progress: Callable[[int, int], None]) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="agogic-") as folder:
        socket, told = Path(folder) / "w", Path(folder) / "door"
        module = [sys.executable, "-m", "benchmarks.cluster.echo"]
        process = await Child.start(
            [*module, "--socket", str(socket), "--direct", "127.0.0.1:0", "--door", str(told)], os.environ
        )
        try:
            async with asyncio.timeout(_START_S):
                while not socket.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            door = msgspec.msgpack.decode(told.read_bytes(), type=Door)
            began_s = time.perf_counter()
            direct = await DirectLink.enter(issue(door, int(time.time())))
            entered_ms = 1e3 * (time.perf_counter() - began_s)
            local = await WorkerLink.connect(socket, _START_S)
            running = [asyncio.create_task(link.run()) for link in (local, direct)]
            local_ms, direct_ms = await _compare(local, direct, pieces, progress)
            for link in (local, direct):
                await link.close()
            await asyncio.gather(*running, return_exceptions=True)
        finally:
            process.kill()
            await process.wait()
    added = [far - near for near, far in zip(local_ms, direct_ms, strict=True)]
    return {
        "pieces": pieces,
        "piece_ms": PIECE_MS,
        "one_machine_ms_p50": round(statistics.median(local_ms), 3),
        "one_machine_ms_p95": round(_p95(local_ms), 3),
        "direct_ms_p50": round(statistics.median(direct_ms), 3),
        "direct_ms_p95": round(_p95(direct_ms), 3),
        "added_ms_p50": round(statistics.median(added), 3),
        "added_ms_p95": round(_p95(added), 3),
        "p95_difference_ms": round(_p95(direct_ms) - _p95(local_ms), 3),
        "entering_ms": round(entered_ms, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


async def _compare(
    local: WorkerLink, direct: WorkerLink, pieces: int, progress: Callable[[int, int], None]
) -> tuple[list[float], list[float]]:
    """Milliseconds there and back, piece by piece."""
    callers = {local: _Caller(), direct: _Caller()}
    leases = {link: await link.open(1, caller) for link, caller in callers.items()}
    took: dict[WorkerLink, list[float]] = {local: [], direct: []}
    for number in range(_WARM_UP + pieces):
        for link in (local, direct) if number % 2 else (direct, local):
            callers[link].back.clear()
            began_s = time.perf_counter()
            leases[link].send(wire.AudioIn(1, 1, _PCM))
            await callers[link].back.wait()
            took[link].append(1e3 * (time.perf_counter() - began_s))
        await asyncio.sleep(TICK_S)
        if number % 50 == 0:
            progress(max(0, number - _WARM_UP), pieces)
    progress(pieces, pieces)
    return took[local][_WARM_UP:], took[direct][_WARM_UP:]


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[18]
