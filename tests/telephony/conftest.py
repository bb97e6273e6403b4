from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service_process import ServiceProcess, fake_worker_command

LONG_REPLY = "One large latte with two shots and oat milk coming up"


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that greets every caller with tones of 0.4 s, one a word, and takes 40 calls at once."""
    config = Path(tmp_path_factory.mktemp("telephony")) / "agogic.toml"
    config.write_text("[telephony.audiosocket]\nport = 0\n[telephony.sip]\nport = 0\nmax_calls = 32\n")
    worker = fake_worker_command("--slots", "40", "--reply", f"'{LONG_REPLY}'")
    with ServiceProcess(worker, config=config, telephony_lines=2) as process:
        yield process


def telephony_port(service: ServiceProcess, kind: str) -> int:
    """The port that the service said it listens on for `kind` of calls."""
    return service.telephony_ports[kind]
