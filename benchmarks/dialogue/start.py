"""`agogic bench start`: how long a fresh `agogic serve` takes to be ready, and what it holds in memory."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from benchmarks.attacks.server import children
from benchmarks.load.server import resident_mb

TIMEOUT_S = 120.0
POLL_S = 0.02


class StartError(Exception):
    """The service did not become ready; the message holds what it said."""


def run(model: str) -> dict[str, object]:
    """Starts the service on a free port of 127.0.0.1, waits for `/readyz`, measures, stops it. Raises StartError."""
    port = _free_port()
    command = [sys.executable, "-m", "agent.cli.main", "serve", "--port", str(port), "--model", model]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        alive_s = _wait_for(f"http://127.0.0.1:{port}/healthz", process, started)
        ready_s = _wait_for(f"http://127.0.0.1:{port}/readyz", process, started)
        workers = [resident_mb(child) for child in children(process.pid)]
        return {
            "ready_s": round(ready_s, 2),
            "healthy_s": round(alive_s, 2),
            "service_rss_mb": round(resident_mb(process.pid), 1),
            "worker_rss_mb": round(max(workers), 1) if workers else None,
            "workers": len(workers),
        }
    finally:
        process.terminate()
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[str], started: float) -> float:
    """Seconds since `started` when `url` first answered 200."""
    while time.monotonic() - started < TIMEOUT_S:
        if process.poll() is not None:
            said = process.stdout.read() if process.stdout else ""
            raise StartError(f"agogic serve ended with status {process.returncode}: {said.strip()[-500:]}")
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(url, timeout=2.0) as answer,
        ):
            if answer.status == 200:
                return time.monotonic() - started
        time.sleep(POLL_S)
    raise StartError(f"{url} did not answer within {TIMEOUT_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
