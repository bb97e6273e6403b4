"""A service of our own to put load on, and how busy its processes are."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from benchmarks.attacks.server import ServerError, children

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0


class OwnServer:
    """`agogic serve` on a free port of 127.0.0.1. config: TOML; environment: on top of ours; worker_command: in place
    of the embedded model's. Raises ServerError when entered."""

    def __init__(self, config: str, environment: Mapping[str, str] | None = None, worker_command: str = "") -> None:
        self._config = config
        self._environment = environment or {}
        self._worker_command = worker_command
        self._folder = tempfile.TemporaryDirectory(prefix="agogic-load-")
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> OwnServer:
        path = Path(self._folder.name, "agogic.toml")
        path.write_text(self._config)
        command = [sys.executable, "-m", "agent.cli.main", "serve", "--port", "0", "--config", str(path)]
        command += ["--worker-command", self._worker_command] if self._worker_command else []
        environment = os.environ | self._environment
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self._process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self._process.stdout.readline())
        if found is None:
            self.__exit__()
            raise ServerError("agogic serve did not start; its message above says why")
        self.port = int(found[1])
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise ServerError("agogic serve did not become ready; its message above says why")
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._folder.cleanup()

    def busy_s(self) -> dict[str, float]:
        """Processor seconds so far of the service and of its workers together (Linux; empty elsewhere)."""
        if self._process is None:
            return {}
        service = _busy_s(self._process.pid)
        if service is None:
            return {}
        workers = [_busy_s(pid) or 0.0 for pid in children(self._process.pid)]
        return {"service": service, "workers": sum(workers)}

    def resident_mb(self) -> dict[str, float]:
        """Memory held by the service and by its workers together, in 10^6 bytes (Linux; zero elsewhere)."""
        if self._process is None:
            return {}
        workers = sum(resident_mb(pid) for pid in children(self._process.pid))
        return {"service": resident_mb(self._process.pid), "workers": workers}

    def _ready(self) -> bool:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{self.url}/readyz", timeout=2.0) as answer,
        ):
            return bool(answer.status == 200)
        return False


def resident_mb(pid: int) -> float:
    """Resident memory in MB (10^6 bytes), 0 where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0.0
    for line in status.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _busy_s(pid: int) -> float | None:
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return None
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
