"""A real service process on a free loopback port, with the fake worker or the embedded model behind it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support import server_logs

ROOT = Path(__file__).resolve().parents[2]


def fake_worker_command(*options: str) -> str:
    return " ".join([sys.executable, "-m", "tests.support.fake_worker", *options])


class ServiceProcess:
    """`worker_command` None = the real worker with the embedded model.

    `telephony_lines` is how many ports for calls the service announces.
    """

    def __init__(
        self,
        worker_command: str | None = None,
        *,
        config: Path | None = None,
        env: dict[str, str] | None = None,
        ready_timeout_s: float = 60.0,
        wait_ready: bool = True,
        log_level: str = "warning",
        descriptors: int | None = None,
        telephony_lines: int = 0,
    ) -> None:
        command = [sys.executable, "-m", "agent.cli.main", "serve", "--port", "0", "--log-level", log_level]
        if config is not None:
            command += ["--config", str(config)]
            server_logs.add_keys_of(config.read_text())
        if descriptors is not None:
            command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]
        if worker_command is not None:
            command += ["--worker-command", worker_command]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | (env or {})
        self.log = server_logs.new_log()
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            self.stop()
            raise RuntimeError(f"the service did not start: {line!r}\n{self.log.read_text()}")
        self.port = int(found[1])
        self.telephony_ports: dict[str, int] = {}
        for _ in range(telephony_lines):
            kind, _, address = self.process.stdout.readline().removeprefix("agogic: ").strip().partition(" ")
            self.telephony_ports[kind] = int(address.rpartition(":")[2])
        if wait_ready:
            self.wait_ready(ready_timeout_s)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.base_url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.get("/readyz")[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the service was not ready within {timeout_s:g} s\n{self.log.read_text()}")
            time.sleep(0.05)

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]

    def worker_pids(self) -> list[int]:
        """Processes that the service started and that live."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that is not enough; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.wait()

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
