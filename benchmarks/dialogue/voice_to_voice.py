"""`agogic bench voice-to-voice`: recorded orders spoken to a running service in real time, over WebSocket.

The service and its worker are processes of their own; this one is the client, which sends 20 ms of sound every 20 ms
and notes when the first sound of the answer arrives. Each order has a session of its own. Where a pause was taken for
the end of the order, what came before its end does not count as the answer.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import soxr

from agent.dialogue.speculation import work_ms
from agent.wire import ResponseStats
from benchmarks.attacks.server import attacked
from benchmarks.dialogue.turn_ends import Spoken, spoken_turns
from benchmarks.progress import Progress

RATE_HZ = 24_000
PIECE_S = 0.02
ANSWER_S = 20.0
"""An order that is not answered within this is counted as unanswered."""


@dataclass
class Heard:
    """Of one order. first_audio_s, done: of the answer to all of it; cut_in: something was said before its end."""

    end_s: float = 0.0
    cut_in: bool = False
    first_audio_s: float | None = None
    done: dict[str, object] | None = None
    late_s: float = 0.0


@dataclass
class Tally:
    """Of all orders with one kind of turn detection."""

    heard: list[Heard] = field(default_factory=list)

    def report(self) -> dict[str, object]:
        answered = [one for one in self.heard if one.first_audio_s is not None and not one.cut_in]
        waits_ms = [1000 * ((one.first_audio_s or 0.0) - one.end_s) for one in answered] or [0.0]
        reports = [_object(one.done, "x_agogic") for one in answered if one.done is not None]
        saved = [_number(_object(report, "speculation"), "saved_ms") for report in reports] or [0.0]
        wasted = sum(_number(_object(report, "speculation"), "wasted_ms") for report in reports)
        work = sum(_work_ms(report) for report in reports)
        silence = [_number(_object(report, "timing"), "turn_detection_ms") for report in reports]
        return {
            "orders": len(self.heard),
            "answered": len(answered),
            "cut_in_rate": round(sum(one.cut_in for one in self.heard) / max(1, len(self.heard)), 4),
            "voice_to_voice_ms_p50": round(statistics.median(waits_ms)),
            "voice_to_voice_ms_p95": round(float(np.percentile(waits_ms, 95))),
            "turn_detection_ms_p50": round(statistics.median(silence)) if silence else None,
            "speculation_saved_ms_p50": round(statistics.median(saved), 1),
            "speculation_saved_ms_p95": round(float(np.percentile(saved, 95)), 1),
            "speculation_wasted_share": round(wasted / work, 4) if work else None,
            "client_late_ms_p95": round(
                1000 * float(np.percentile([one.late_s for one in self.heard] or [0.0], 95)), 1
            ),
        }


def run(
    clips: Sequence[Path], model: str, *, beside: bool = False, seed: int = 7, progress: Progress | None = None
) -> dict[str, object]:
    """beside: every order is also spoken to a session with the fixed silence of server_vad."""
    server = attacked(model, None, 1)
    server.start()
    try:
        return asyncio.run(_converse(server.url, clips, beside, seed, progress))
    finally:
        server.stop()


async def _converse(
    url: str, clips: Sequence[Path], beside: bool, seed: int, progress: Progress | None
) -> dict[str, object]:
    rng = random.Random(seed)
    head, fixed = Tally(), Tally()
    fixed_silence = {"type": "server_vad"}
    async with aiohttp.ClientSession() as http:
        for number, path in enumerate(clips, 1):
            (turn,) = spoken_turns(path, rng, 0)
            head.heard.append(await _order(http, url, turn, None))
            if beside:
                fixed.heard.append(await _order(http, url, turn, fixed_silence))
            if progress is not None:
                progress(number, len(clips))
    report = head.report()
    if beside:
        report["beside"] = {"fixed_silence": fixed.report()}
    return {**report, "load_average": round(os.getloadavg()[0], 2)}


async def _order(http: aiohttp.ClientSession, url: str, turn: Spoken, detection: dict[str, object] | None) -> Heard:
    heard = Heard()
    async with http.ws_connect(f"{url}/v1/realtime?model=agogic", max_msg_size=0) as socket:
        await socket.receive()
        if detection is not None:
            session = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
            await socket.send_json({"type": "session.update", "session": session})
        speaking = asyncio.ensure_future(_speak(socket, turn, heard))
        try:
            async with asyncio.timeout(len(turn.sound) / 16_000 + ANSWER_S):
                await _listen(socket, heard)
        except TimeoutError:
            pass
        finally:
            speaking.cancel()
    return heard


async def _speak(socket: aiohttp.ClientWebSocketResponse, turn: Spoken, heard: Heard) -> None:
    """The order, and silence until nobody wants to hear it any more."""
    sound = soxr.resample(turn.sound, 16_000, RATE_HZ)
    samples = (np.clip(sound, -1, 1) * 32767).astype("<i2")
    size = int(RATE_HZ * PIECE_S)
    started = time.monotonic()
    heard.end_s = started + turn.end / 16_000
    for piece, at in enumerate(range(0, len(samples), size), 1):
        due = started + piece * PIECE_S  # a microphone gives a piece when it has all of it
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        heard.late_s = max(heard.late_s, time.monotonic() - due)
        audio = base64.b64encode(samples[at : at + size].tobytes()).decode()
        await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})


async def _listen(socket: aiohttp.ClientWebSocketResponse, heard: Heard) -> None:
    """Until the answer is over."""
    async for message in socket:
        now_s = time.monotonic()
        event = json.loads(message.data)
        if event["type"] == "response.output_audio.delta":
            if not heard.end_s or now_s < heard.end_s:
                heard.cut_in = True
            elif heard.first_audio_s is None:
                heard.first_audio_s = now_s
        elif event["type"] == "response.done" and heard.first_audio_s is not None:
            heard.done = event["response"]
            return


def _object(value: object, name: str) -> dict[str, object]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _number(value: dict[str, object], name: str) -> float:
    found = value.get(name)
    return float(found) if isinstance(found, (int, float)) else 0.0


def _work_ms(report: dict[str, object]) -> float:
    stages = _object(_object(report, "timing"), "stages")
    names = ("thinker_ms", "talker_ms", "flow_ms", "vocoder_ms")
    return work_ms(ResponseStats(**{name: _number(stages, name) for name in names}))
