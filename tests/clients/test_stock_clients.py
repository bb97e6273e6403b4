"""Stock clients in whole conversations with the shipped model: the play of `tests/conformance`, judged step by step."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients.conftest import Server
from tests.conformance.acting import CLIENTS, STEPS, STOCK_PYTHON, act

SHORT = ("turn", "second_turn", "interruption", "tool", "reconnect")
"""Of the play, what takes no more than half a minute. The rest of it is in tests of the session too."""


async def found_wrong(server: Server, names: list[str], steps: tuple[str, ...]) -> str:
    """At the same time: they mostly wait for sound that takes as long as it lasts."""
    assert server.is_real, "the play is about what the embedded model says"
    acted = await asyncio.gather(*(act(CLIENTS[name], server.url, steps) for name in names))
    return "\n".join(sentence for outcome, _ in acted for sentence in outcome.sentences())


async def test_the_sdks_converse_are_interrupted_call_and_come_back(server: Server, node_modules: object) -> None:
    assert not await found_wrong(server, ["openai", "agents-realtime"], SHORT)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [client.name for client in CLIENTS.values() if client.is_framework])
@pytest.mark.skipif(not STOCK_PYTHON.exists(), reason="frameworks have an environment of their own: `make conformance`")
async def test_a_framework_converses_is_interrupted_calls_and_comes_back(server: Server, name: str) -> None:
    assert not await found_wrong(server, [name], STEPS)
