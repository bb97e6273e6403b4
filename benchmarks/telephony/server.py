"""`agogic serve` with the echo worker behind it, on free ports of 127.0.0.1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.attacks.server import ROOT, ServerError

CONFIG = """
[session]
max_sessions = 1024
[telephony]
greet = {greet}
[telephony.audiosocket]
port = 0
accept = "any"
[telephony.sip]
port = 0
max_calls = 1000
"""
_START_S = 60.0


def worker_command(tone_s: float) -> list[str]:
    return [sys.executable, "-m", "benchmarks.telephony.echo_worker", "--tone-s", str(tone_s)]


@dataclass(frozen=True)
class EchoServer:
    """`ports` are those of its transports, "http" among them."""

    pid: int
    ports: dict[str, int]

    def cpu_s(self) -> float:
        """Of the service process alone, its worker left out."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def echo_server() -> Iterator[EchoServer]:
    """In a process of its own, so that its time can be told from the callers'."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "agogic.toml"
        config.write_text(CONFIG.format(greet="false"))
        worker = " ".join(worker_command(0.0))
        command = [sys.executable, "-m", "agent.cli.main", "serve", "--config", str(config), "--port", "0"]
        process = subprocess.Popen([*command, "--worker-command", worker], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            yield _started(process)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def _started(process: subprocess.Popen[str]) -> EchoServer:
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", lines[0])
    if found is None:
        raise ServerError(f"the server did not start: {''.join(lines).strip()}")
    ports = {"http": int(found[1])}
    for line in lines[1:]:
        kind, _, address = line.removeprefix("agogic: ").strip().partition(" ")
        ports[kind] = int(address.rpartition(":")[2])
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/readyz", timeout=5):
                return EchoServer(process.pid, ports)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerError(f"the server was not ready within {_START_S:g} s")
