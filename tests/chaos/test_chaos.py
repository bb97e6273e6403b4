"""A minute and a half of what `make chaos` does for an hour, and the attacks' own bench on one attack."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from benchmarks.attacks import suite
from benchmarks.attacks.kinds import attacks
from benchmarks.attacks.server import Server, ServerError
from tests.chaos.__main__ import chaos, server
from tests.chaos.chaos import Bounds

SECONDS, SEED = 90.0, 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_chaos_breaks_no_promise() -> None:
    report = asyncio.run(chaos(None, SEED, SECONDS, Bounds()))
    assert int(str(report["events"])) > 10_000
    assert {"a_worker_dies", "descriptors_run_out", "junk_arrives_at_a_call"} <= set(report["by_step"])  # type: ignore[arg-type, call-overload]


async def test_the_watchers_hear_a_server_that_stands_still() -> None:
    running = server(None)
    running.start()
    try:
        watchers = await suite.Watchers.start(running.url, running.pid)
        await watchers.take()
        os.kill(running.pid, signal.SIGSTOP)
        await asyncio.sleep(0.4)
        os.kill(running.pid, signal.SIGCONT)
        await asyncio.sleep(0.4)
        seen = await watchers.take()
        await watchers.stop()
    finally:
        running.stop()
    assert seen.call_gap_ms > 350.0
    assert 200.0 < seen.server_gap_ms <= seen.gap_ms
    assert seen.packets > 5 and max(seen.healthz_ms) > 200.0 and not seen.cut_off


def test_the_bench_says_what_others_noticed_of_an_attack() -> None:
    assert {"faults.worker_killed", "faults.worker_hung", "faults.descriptors_gone"} <= set(attacks())
    report = asyncio.run(suite.run(server(None), "worker_killed"))
    (attack,) = report["by_attack"]  # type: ignore[misc]
    assert report["attacks"] == 1 and report["survived"] is attack["survived"] is True
    assert report["worst_gap_ms"] == max(attack["socket_gap_ms"], attack["call_gap_ms"])
    assert isinstance(report["healthz_p99_ms"], float) and report["healthz_p99_ms"] > 0


def test_the_bench_does_not_hide_a_server_that_falls() -> None:
    """A worker that no signal wakes, and no other to take its place: newcomers are not served."""
    alone = Server("--workers", "1", "--worker-command", "/bin/false", start_timeout_s=5.0)
    with pytest.raises(ServerError):
        asyncio.run(suite.run(alone, "worker_killed"))
