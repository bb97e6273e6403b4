"""A real service process on a free loopback port, with the fake worker or the embedded model behind it."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.attacks.server import ROOT, Server, ServerError, children, holding
from tests.support import server_logs

__all__ = ["ROOT", "ServiceProcess", "fake_worker_command"]


def fake_worker_command(*options: str) -> str:
    return " ".join([sys.executable, "-m", "tests.support.fake_worker", *options])


class ServiceProcess(Server):
    """Runs from its making to `stop`. `worker_command` None = the real worker with the embedded model.

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
        options = ["--log-level", log_level]
        if config is not None:
            options += ["--config", str(config)]
            server_logs.add_keys_of(config.read_text())
        if worker_command is not None:
            options += ["--worker-command", worker_command]
        self.log = server_logs.new_log()
        super().__init__(*options, env=env, log=self.log, descriptors=descriptors)
        self.launch()
        assert self.process.stdout is not None
        self.telephony_ports: dict[str, int] = {}
        for _ in range(telephony_lines):
            kind, _, address = self.process.stdout.readline().removeprefix("agogic: ").strip().partition(" ")
            self.telephony_ports[kind] = int(address.rpartition(":")[2])
        if wait_ready:
            self.wait_ready(ready_timeout_s)

    @property
    def process(self) -> subprocess.Popen[str]:
        """Also when it has ended."""
        assert self._process is not None
        return self._process

    @property
    def base_url(self) -> str:
        return self.url

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.base_url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait_ready(self, timeout_s: float) -> None:
        """Raises `ServerError`."""
        if not self.becomes_ready(timeout_s):
            self.stop()
            raise ServerError(f"the service was not ready within {timeout_s:g} s\n{self.log.read_text()}")

    def descriptors(self) -> int:
        return holding(self.process.pid).descriptors

    def rss_mb(self) -> float:
        return holding(self.process.pid).memory_mb

    def worker_pids(self) -> list[int]:
        """Processes that the service started and that live."""
        return children(self.process.pid)

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
