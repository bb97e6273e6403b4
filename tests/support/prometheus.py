"""Prometheus itself, watching services on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0


def program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is needed for this test: apt-get install prometheus, or run `make test`"
    return found


class Prometheus:
    """Reads `targets` (host:port) as the job "agogic" four times a second, with these rules."""

    def __init__(self, folder: Path, targets: list[str], rules: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "agogic", "static_configs": [{"targets": targets}]}],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))  # which is YAML too
        self._log = folder / "prometheus.log"
        options = [f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
        options.append(f"--web.listen-address={self._address}")
        with self._log.open("w") as log:
            self._process = subprocess.Popen([program("prometheus"), *options], stdout=log, stderr=log)

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def get(self, path: str, **query: str) -> Any:
        """What its API answers under /api/v1/; raises `OSError` where it does not."""
        asked = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def until(self, expression: str) -> None:
        """Until it has an answer to that."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, self._log.read_text()
            try:
                if self.query(expression):
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"never was {expression}\n{self._log.read_text()}")
