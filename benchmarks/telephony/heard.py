"""`agogic eval heard`: how exactly the agent knows what a caller has heard of it when he interrupts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator

import numpy as np
from aiohttp import web

from agent.config import parse_config
from agent.server.app import create_app
from agent.server.service import Service
from agent.server.workers import WorkerPool
from agent.telephony.app import addresses_key
from agent.transports.base import TransportKind
from benchmarks.telephony.callers import CALLERS, Caller
from benchmarks.telephony.server import CONFIG, worker_command

_ANSWER_S = 12.0
_TIMEOUT_S = 30.0
_AFTER_S = 0.3  # so long is waited for sound that should not come any more


class Observer:
    """Sits beside the call, as an application does, and notes when things happened."""

    kind: TransportKind = "websocket"
    input_rate_hz: int | None = None

    def __init__(self) -> None:
        self.detected_s = 0.0
        self.believed_ms = 0.0
        self.truncated = asyncio.Event()

    def send_event(self, event: bytes) -> None:
        message = json.loads(event)
        if message["type"] == "input_audio_buffer.speech_started" and not self.truncated.is_set():
            self.detected_s = time.monotonic()
        elif message["type"] == "conversation.item.truncated":
            self.believed_ms = float(message["audio_end_ms"])
            self.truncated.set()

    def close(self, code: int, reason: str) -> None:
        """Nothing to close."""


def run(speech: np.ndarray, rounds: int) -> dict[str, object]:
    """`speech` is s16 at 16 kHz. The agent's answer is a tone without gaps, so what was heard of it can be counted."""
    return asyncio.run(_run(speech, rounds))


async def _run(speech: np.ndarray, rounds: int) -> dict[str, object]:
    report: dict[str, object] = {"rounds": rounds}
    async with _service() as (service, ports):
        for name, kind in CALLERS.items():
            rng = random.Random(1)
            measured = [await _interrupt(service, kind(ports), speech, rng.uniform(0.8, 2.5)) for _ in range(rounds)]
            errors = np.abs([error for error, _ in measured])
            silent = np.array([after for _, after in measured])
            report |= {
                f"{name}_heard_error_ms_median": round(float(np.median(errors)), 1),
                f"{name}_heard_error_ms_worst": round(float(errors.max()), 1),
                f"{name}_last_sound_after_detection_ms_median": round(float(np.median(silent)), 1),
                f"{name}_last_sound_after_detection_ms_worst": round(float(silent.max()), 1),
            }
    return report


async def _interrupt(service: Service, caller: Caller, speech: np.ndarray, after_s: float) -> tuple[float, float]:
    """What the agent believes minus what was heard, and how long it was heard after it noticed; both in ms."""
    observer = Observer()
    async with caller:
        async with asyncio.timeout(_TIMEOUT_S):
            while not service.calls or caller.heard_s < after_s:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            (runner,) = service.calls.values()
            runner.attach(observer)
            caller.say(speech)
            await observer.truncated.wait()
        await asyncio.sleep(_AFTER_S)
        error_ms = observer.believed_ms - caller.heard_s * 1000
        after_ms = max(0.0, (caller.last_sound_s - observer.detected_s) * 1000)
    async with asyncio.timeout(_TIMEOUT_S):
        while service.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return error_ms, after_ms


@contextlib.asynccontextmanager
async def _service() -> AsyncIterator[tuple[Service, dict[str, int]]]:
    config = parse_config(CONFIG.format(greet="true"))
    pool = WorkerPool(worker_command(_ANSWER_S), 1, 30.0)
    service = Service(config, pool)
    app = create_app(service)
    working = asyncio.create_task(pool.run())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ports = {"http": int(runner.addresses[0][1])}
    for line in app[addresses_key]:
        kind, _, address = line.partition(" ")
        ports[kind] = int(address.rpartition(":")[2])
    try:
        await pool.wait_ready()
        yield service, ports
    finally:
        await runner.cleanup()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
