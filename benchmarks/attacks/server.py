"""A service process to be attacked, and what it holds (Linux)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_START_S, _STOP_S = 120.0, 12.0


class ServerError(Exception):
    """The service did not start; the message holds what it said."""


@dataclass(frozen=True)
class Holding:
    """What a process takes: resident memory and open descriptors."""

    memory_mb: float
    descriptors: int


class Server:
    """`agogic serve` on a free port of loopback, from `start` to `stop`; may be started again.

    `worker_command` None is the real worker of `model`.
    """

    def __init__(self, model: str, worker_command: str | None, workers: int, config: Path | None = None) -> None:
        self.port = 0
        self._command = [sys.executable, "-m", "agent.cli.main", "serve", "--port", "0", "--workers", str(workers)]
        self._command += ["--model", model, "--log-level", "error"]
        if config is not None:
            self._command += ["--config", str(config)]
        if worker_command is not None:
            self._command += ["--worker-command", worker_command]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Until a worker answers. Raises `ServerError`."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            self.stop()
            raise ServerError(f"agogic serve said {line.strip()!r} and not where it listens")
        self.port = int(found[1])
        if not self.becomes_ready(_START_S):
            self.stop()
            raise ServerError(f"the service was not ready within {_START_S:g} s")

    def becomes_ready(self, within_s: float) -> bool:
        """Whether it is alive and a worker answers, now or soon."""
        deadline = time.monotonic() + within_s
        while self.is_alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=2.0) as answer:
                if answer.status == 200:
                    return True
            time.sleep(0.05)
        return False

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def holds(self) -> Holding:
        return holding(self.pid)


def children(pid: int) -> list[int]:
    """Its direct children: of a service, the workers."""
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in listing.read_text().split()]
    except FileNotFoundError:
        return []


def holding(pid: int) -> Holding:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Holding(int(status["VmRSS"].split()[0]) / 1000, len(os.listdir(f"/proc/{pid}/fd")))
