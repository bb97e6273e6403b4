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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_STOP_S = 12.0


class ServerError(Exception):
    """The service did not start; the message holds what it said."""


@dataclass(frozen=True)
class Holding:
    """What a process takes: resident memory and open descriptors."""

    memory_mb: float
    descriptors: int


class Server:
    """`agogic serve` with these options on a free port of loopback, from `start` to `stop`; may be started again.

    `log` is the file for what it says besides its address; `descriptors`: how many it may have.
    """

    def __init__(
        self,
        *options: str,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        descriptors: int | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self.port = 0
        limited = ["prlimit", f"--nofile={descriptors}:{descriptors}"] if descriptors is not None else []
        self._command = [*limited, sys.executable, "-m", "agent.cli.main", "serve", "--port", "0", *options]
        self._environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(env or {})}
        self._log = log
        self._start_timeout_s = start_timeout_s
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
        self.launch()
        if not self.becomes_ready(self._start_timeout_s):
            self.stop()
            raise ServerError(f"the service was not ready within {self._start_timeout_s:g} s{self._said()}")

    def launch(self) -> None:
        """Until it listens. Raises `ServerError`."""
        with self._log.open("a") if self._log is not None else open(os.devnull, "w") as errors:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            self.stop()
            raise ServerError(f"agogic serve said {line.strip()!r} and not where it listens{self._said()}")
        self.port = int(found[1])

    def becomes_ready(self, within_s: float) -> bool:
        """Whether it is alive and a worker answers, now or soon."""
        deadline = time.monotonic() + within_s
        while self.is_alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=2.0) as answer:
                if answer.status == 200:
                    return True
            time.sleep(0.05)
        return False

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL if that is not enough; the exit status, None where nothing ran."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.stdout is not None:
            process.stdout.close()
        return process.wait()

    def _said(self) -> str:
        return f"\n{self._log.read_text()}" if self._log is not None else ""

    def holds(self) -> Holding:
        return holding(self.pid)


def attacked(model: str, worker_command: str | None, workers: int) -> Server:
    """A service for the attacks. `worker_command` None is the real worker of `model`."""
    options = ["--workers", str(workers), "--model", model, "--log-level", "error"]
    return Server(*options, *(("--worker-command", worker_command) if worker_command is not None else ()))


def children(pid: int) -> list[int]:
    """Its direct children: of a service, the workers."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


def holding(pid: int) -> Holding:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Holding(int(status["VmRSS"].split()[0]) / 1000, len(os.listdir(f"/proc/{pid}/fd")))
