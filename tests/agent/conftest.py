from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.service_process import ServiceProcess, fake_worker_command


@pytest.fixture(scope="session")
def service() -> Iterator[ServiceProcess]:
    """One service process with a fake worker for all tests that only talk to it."""
    with ServiceProcess(fake_worker_command("--slots", "16")) as process:
        yield process
