"""Lets a stock client act the play against a server, through the tap, and judges every step."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from tests.conformance.judging import Acted, Verdict, in_order, judge
from tests.conformance.tap import Tap
from tests.support.speech import SPOKEN_S, order, with_pause

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WEB = ROOT / "clients" / "web"
STOCK_PYTHON = Path(os.environ.get("AGOGIC_STOCK_PYTHON", ROOT / ".venv" / "stock" / "bin" / "python"))
"""Of the frameworks, which have an environment of their own (`make conformance`)."""
STEPS = ("greeting", "turn", "second_turn", "interruption", "tool", "given", "joined", "reconnect")
RATE_HZ = 24_000
# "triple shot cappuccino with sugar cream milk"
PAUSED = ROOT / "tests" / "speech" / "33bdf715-ce04-408d-b3d7-c77900fc9ed1.opus"
_LONGEST_S = 240.0


class ClientError(Exception):
    """A client cannot be run, or ended before its time; the message has its last words."""


@dataclass(frozen=True)
class Client:
    """`program` is a module in `clients/`, or an entry of `clients/web/interop` for Node."""

    name: str
    program: str
    is_framework: bool = False

    def command(self, folder: Path) -> list[str]:
        """Raises `ClientError`."""
        if self.program.endswith(".ts"):
            return [_node(), str(_bundled(self.program, folder))]
        python = STOCK_PYTHON if self.is_framework else Path(sys.executable)
        if not python.exists():
            raise ClientError(f"{self.name} needs the environment of `make conformance` (no {python})")
        return [str(python), str(HERE / "clients" / "play.py"), self.program]


CLIENTS = {
    client.name: client
    for client in (
        Client("openai", "openai_sdk"),
        Client("agents-realtime", "conformance.ts"),
        Client("openai-agents", "openai_agents", is_framework=True),
        Client("pipecat", "pipecat_ai", is_framework=True),
        Client("livekit", "livekit_agents", is_framework=True),
    )
}


@dataclass
class Outcome:
    """`out_of_order`: server events that the protocol does not allow where they came, or not in their shape."""

    client: str
    steps: tuple[str, ...]
    verdicts: list[Verdict] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str = ""

    @property
    def holds(self) -> bool:
        return not self.sentences()

    def sentences(self) -> list[str]:
        """What is wrong, one by one."""
        wrong = [f"{one.step}: {what}" for one in self.verdicts for what in one.found_wrong]
        done = [one.step for one in self.verdicts]
        wrong += [f"{step}: the client did not get that far" for step in self.steps if step not in done]
        return [f"{self.client}: {what}" for what in (*wrong, *self.out_of_order, *filter(None, [self.error]))]


async def act(client: Client, url: str, steps: tuple[str, ...] = STEPS, api_key: str = "") -> tuple[Outcome, Tap]:
    """One play, in real time. `url`: http://HOST:PORT of a server of the Realtime protocol."""
    outcome = Outcome(client.name, steps)
    model = _model_of(url)
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        folder = Path(name)
        write_sounds(folder)
        async with Tap(url, api_key).listening() as tap:
            began_s = time.monotonic()
            try:
                async for report in _reports(client.command(folder), tap.url, folder, steps):
                    step = report["step"]
                    heard = [one for one in tap.heard if one.step == step]
                    verdict = judge(Acted(step, report, heard), knows_counter=model == "embedded")
                    verdict.seconds = round(time.monotonic() - began_s, 1)
                    outcome.verdicts.append(verdict)
                    outcome.reports[step] = report
            except ClientError as error:
                outcome.error = str(error)
            outcome.out_of_order = in_order(tap.heard, is_ours=model is not None)
    return outcome, tap


async def _reports(command: list[str], url: str, sounds: Path, steps: tuple[str, ...]):  # type: ignore[no-untyped-def]
    """Raises `ClientError` where it ends with anything but 0."""
    log = sounds / "client.log"
    with log.open("w") as errors:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
        process = await asyncio.create_subprocess_exec(
            *command, url, str(sounds), *steps, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=sounds
        )
        assert process.stdout is not None
        limit = asyncio.create_task(_end_at_last(process))
        try:
            async for line in process.stdout:
                if line.startswith(b'{"step"'):
                    yield json.loads(line)
            if await process.wait() != 0:
                raise ClientError(f"ended with {process.returncode}: {log.read_text()[-2000:]}")
        finally:
            limit.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _end_at_last(process: asyncio.subprocess.Process) -> None:
    """Counts naps and not seconds, so that a machine that stood still is no failure."""
    for _ in range(int(_LONGEST_S)):
        await asyncio.sleep(1.0)
    process.kill()


def write_sounds(folder: Path) -> None:
    """What the customer says, as NAME.pcm: s16le mono at 24 kHz."""
    (folder / "order.pcm").write_bytes(order(RATE_HZ)[: int(SPOKEN_S * RATE_HZ)].tobytes())
    (folder / "paused.pcm").write_bytes(with_pause(_pcm(PAUSED), 0.7, RATE_HZ))
    for path in sorted((HERE / "sounds").glob("*.opus")):
        (folder / f"{path.stem}.pcm").write_bytes(_pcm(path))


def _pcm(path: Path) -> bytes:
    samples, recorded_hz = soundfile.read(path, dtype="float32")
    return (np.clip(soxr.resample(samples, recorded_hz, RATE_HZ), -1, 1) * 32767).astype("<i2").tobytes()


def _model_of(url: str) -> str | None:
    """Which model answers, where the server is one of ours."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return str(json.load(answer)["model"])
    except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError, KeyError, TypeError):
        return None


def _node() -> str:
    found = shutil.which("node")
    if found is None:
        raise ClientError("Node is needed: apt-get install nodejs npm, or `make conformance`")
    return found


def _bundled(entry: str, folder: Path) -> Path:
    """The client and its SDK in one file."""
    esbuild = WEB / "node_modules" / ".bin" / "esbuild"
    if not esbuild.exists():
        raise ClientError("the web client's packages are needed: `npm ci` in clients/web, or `make conformance`")
    target = folder / "client.cjs"
    flags = ["--bundle", "--platform=node", "--format=cjs", "--log-level=error", f"--outfile={target}"]
    done = subprocess.run([str(esbuild), str(WEB / "interop" / entry), *flags], capture_output=True, timeout=60)
    if done.returncode:
        raise ClientError(done.stderr.decode()[-2000:])
    return target
