"""Real servers for real clients: the service process and, where its weights are in the checkout, the embedded model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import server_logs
from tests.support.speech import order_file

ROOT = Path(__file__).parent.parent.parent
EMBEDDED = ROOT / "models" / "embedded" / "model.safetensors"
START_S = 60.0


@dataclass(frozen=True)
class Server:
    url: str
    is_real: bool
    log: Path
    pid: int


@contextmanager
def running(folder: Path, *, real: bool, extra: str = "") -> Iterator[Server]:
    """`agogic serve` on a free port of 127.0.0.1; ends it afterwards."""
    config = folder / "agogic.toml"
    config.write_text(extra)
    command = [sys.executable, "-m", "agent.cli.main", "serve", "--config", str(config), "--port", "0"]
    if not real:
        command += ["--worker-command", f"{sys.executable} -m tests.support.fake_worker --pace 0.5"]
    log = folder / "serve.log"
    server_logs.add_log(log)
    server_logs.add_keys_of(config.read_text())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield Server(wait_until_ready(process, log), real, log, process.pid)
    finally:
        process.terminate()
        process.wait(15)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if address is not None and _ready(address[0]):
            return address[0]
        time.sleep(0.1)
    pytest.fail(f"the server did not become ready within {START_S:g} s:\n{log.read_text()}")


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model where its weights exist, else a worker that answers with tones."""
    with running(tmp_path_factory.mktemp("server"), real=EMBEDDED.exists()) as found:
        yield found


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A worker that hears "a large latte please" and answers with tones: for what must not depend on a model."""
    with running(tmp_path_factory.mktemp("fake"), real=False) as found:
        yield found


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spoken order with 2 s of silence before it and 12 s after."""
    return order_file(tmp_path_factory.mktemp("speech") / "order.wav", before_s=2.0, after_s=12.0)


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where screenshots are kept."""
    folder = ROOT / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The client's development packages; their absence fails the test."""
    folder = ROOT / "clients" / "web" / "node_modules"
    if not (folder / ".bin" / "esbuild").exists():
        pytest.fail("the web client's packages are needed: run `npm ci` in clients/web, or `make test`")
    return folder
