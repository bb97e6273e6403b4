"""coturn on loopback, with a secret that it shares with agogic."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECRET = "a secret of two servers"


@contextmanager
def turn_server(folder: Path) -> Iterator[int]:
    """Its port; a missing program fails the test."""
    program = shutil.which("turnserver")
    if program is None:
        pytest.fail("coturn is needed for this test: apt-get install coturn, or run `make test`")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        program, "-n", "--no-cli", "--no-tls", "--no-dtls", "--no-multicast-peers", "--allow-loopback-peers",
        "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}", "--realm=agogic.test",
        "--use-auth-secret", f"--static-auth-secret={SECRET}", "--fingerprint", "--log-file=stdout",
        f"--pidfile={folder / 'turn.pid'}", f"--userdb={folder / 'turn.db'}",
    ]  # fmt: skip
    with (folder / "turn.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_open(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(15)


def _wait_until_open(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("coturn does not listen")
