"""`agogic bench transport`: what the protocol of a call costs, with a model that costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

import numpy as np

from benchmarks.telephony.callers import CALLERS, FRAME_S, Caller
from benchmarks.telephony.server import EchoServer, echo_server

PACED = ("audiosocket", "sip")
"""Lines to which the server sends a frame every 20 ms; the others have buffers at the other end."""
_SETTLE_S = 2.0
_PAUSE_S = 6.0  # between an order and the next: the echo of the first is heard out


def run(
    question: np.ndarray, calls: int, seconds: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, object]:
    """`question` is s16 at 16 kHz; every caller says it again and again and hears its echo."""
    report: dict[str, object] = {"calls": calls, "measured_s": seconds, "load_average": round(os.getloadavg()[0], 2)}
    for number, (name, kind) in enumerate(CALLERS.items(), 1):
        with echo_server() as server:
            measured = asyncio.run(_measure(server, kind, question, calls, seconds))
            if name in PACED:
                measured |= asyncio.run(pacing(kind, server.ports, question, seconds))
        report |= {f"{name}_{key}": value for key, value in measured.items()}
        progress(number, len(CALLERS))
    return report


async def _measure(
    server: EchoServer, kind: type[Caller], question: np.ndarray, calls: int, seconds: float
) -> dict[str, object]:
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(kind(server.ports)) for _ in range(calls)]
        talking = [asyncio.create_task(_talk(caller, question, 0.3 * number)) for number, caller in enumerate(callers)]
        await asyncio.sleep(_SETTLE_S)
        cpu_s, started_s = server.cpu_s(), time.monotonic()
        before_s = sum(caller.sounding_s for caller in callers)
        await asyncio.sleep(seconds)
        spent_s, passed_s = server.cpu_s() - cpu_s, time.monotonic() - started_s
        for task in talking:
            task.cancel()
        talked_s = sum(caller.sounding_s for caller in callers) - before_s
    share = spent_s / passed_s / calls
    return {
        "core_percent_per_call": round(100 * share, 3),
        "calls_per_core": round(1 / share, 1) if share else None,
        "agent_talks_share": round(talked_s / passed_s / calls, 3),
    }


async def pacing(kind: type[Caller], ports: dict[str, int], question: np.ndarray, seconds: float) -> dict[str, object]:
    """How evenly one call's frames come, as its caller sees it."""
    async with kind(ports) as caller:
        talking = asyncio.create_task(_talk(caller, question, 0.0))
        await asyncio.sleep(_SETTLE_S)
        caller.arrivals_s.clear()
        await asyncio.sleep(seconds)
        arrivals_s = np.array(caller.arrivals_s)
        talking.cancel()
    off_ms = 1000 * np.abs(np.diff(arrivals_s) - FRAME_S)
    return {
        "frames": arrivals_s.size,
        "frame_distance_off_ms_p50": round(float(np.median(off_ms)), 3),
        "frame_distance_off_ms_p99": round(float(np.quantile(off_ms, 0.99)), 3),
        "frame_distance_off_ms_worst": round(float(off_ms.max()), 3),
        "frames_within_5_ms_share": round(float(np.mean(off_ms <= 5.0)), 5),
        "drift_ms": round(1000 * float(arrivals_s[-1] - arrivals_s[0] - FRAME_S * (arrivals_s.size - 1)), 3),
    }


async def _talk(caller: Caller, question: np.ndarray, after_s: float) -> None:
    await asyncio.sleep(after_s)
    while True:
        caller.say(question)
        await asyncio.sleep(question.size / 16_000 + _PAUSE_S)
