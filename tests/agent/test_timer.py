"""The one timer of a session: when it fires, and what a mistake at that moment costs."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from agent.config import ServerConfig
from tests.agent.test_kept import Client, service_of, until


async def test_a_deadline_that_moves_away_makes_no_new_timer_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_of(ServerConfig()) as service:
        runner = Client(service).runner
        due_s, ticks = runner._clock.now_s() + 0.05, 0

        def tick() -> list[object]:
            nonlocal ticks, due_s
            ticks, due_s = ticks + 1, due_s + 60.0
            return []

        monkeypatch.setattr(runner.session, "next_deadline_s", lambda: due_s)
        monkeypatch.setattr(runner.session, "tick", tick)
        runner._timer.look()
        handle = runner._timer._handle
        due_s += 0.1
        runner._timer.look()
        assert runner._timer._handle is handle, "it moved away"
        await asyncio.sleep(0.08)
        assert ticks == 0 and runner._timer._handle is not handle
        await until(lambda: ticks == 1)
        assert runner._clock.now_s() >= due_s - 60.0
        due_s = runner._clock.now_s()
        runner._timer.look()
        await until(lambda: ticks == 2)


async def test_a_mistake_when_the_timer_fires_ends_that_session_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_of(ServerConfig()) as service:
        wrong, other = Client(service).runner, Client(service).runner
        monkeypatch.setattr(wrong.session, "next_deadline_s", lambda: wrong._clock.now_s() + 0.02)
        wrong._timer.look()

        def broken() -> float:
            raise ValueError("no deadline")

        monkeypatch.setattr(wrong.session, "next_deadline_s", broken)
        await until(lambda: wrong.closed)
        assert not other.closed


async def test_a_session_that_is_over_is_freed_without_the_collector() -> None:
    async with service_of(ServerConfig()) as service:
        client = Client(service)
        session = weakref.ref(client.runner)
        gc.disable()
        try:
            client.runner.disconnect("the client is gone")
            del client
            await until(lambda: session() is None)
        finally:
            gc.enable()
