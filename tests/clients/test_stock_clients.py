"""Stock clients in whole conversations with the shipped model: the play of `tests/conformance`, judged step by step."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients.conftest import Server
from tests.conformance.acting import CLIENTS, STEPS, STOCK_PYTHON, Outcome, act

SHORT = ("turn", "second_turn", "interruption", "tool", "reconnect")
"""Of the play, what takes no more than half a minute. The rest of it is in tests of the session too."""


async def all_at_once(server: Server, names: list[str], steps: tuple[str, ...]) -> list[Outcome]:
    """They mostly wait for sound that takes as long as it lasts."""
    assert server.is_real, "the play is about what the embedded model says"
    acted = await asyncio.gather(*(act(CLIENTS[name], server.url, steps) for name in names))
    return [outcome for outcome, _ in acted]


async def test_the_sdks_converse_are_interrupted_call_and_come_back(server: Server, node_modules: object) -> None:
    outcomes = await all_at_once(server, ["openai", "agents-realtime"], SHORT)
    assert not [sentence for outcome in outcomes for sentence in outcome.sentences()]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not STOCK_PYTHON.exists(), reason="frameworks have an environment of their own: `make conformance`")
async def test_the_frameworks_converse_are_interrupted_call_and_come_back(server: Server) -> None:
    names = [client.name for client in CLIENTS.values() if client.is_framework]
    outcomes = await all_at_once(server, names, STEPS)
    assert not [sentence for outcome in outcomes for sentence in outcome.sentences()]
