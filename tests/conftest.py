from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support import server_logs

# How long an example takes says nothing on a machine that does something else as well.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")


@pytest.fixture(scope="session", autouse=True)
def no_key_in_any_log() -> Iterator[None]:
    """Looked for once all tests are through, in everything that their servers have written."""
    yield
    assert server_logs.leaks() == []
