from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import server_logs


@pytest.fixture(scope="session", autouse=True)
def no_key_in_any_log() -> Iterator[None]:
    """Looked for once all tests are through, in everything that their servers have written."""
    yield
    assert server_logs.leaks() == []
