"""A minute and a half of what `make chaos` does for an hour, and the attacks' own bench on one attack.

A machine that does other work meanwhile makes gaps of its own, so what is forgiven here is longer than where the
figures are made.
"""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.attacks import suite
from benchmarks.attacks.kinds import attacks
from tests.chaos.__main__ import chaos, server
from tests.chaos.chaos import Bounds

SECONDS, SEED = 90.0, 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_chaos_breaks_no_promise() -> None:
    report = asyncio.run(chaos(None, SEED, SECONDS, Bounds(gap_ms=1000.0)))
    assert int(str(report["events"])) > 10_000
    assert {"a_worker_dies", "descriptors_run_out", "junk_arrives_at_a_call"} <= set(report["by_step"])  # type: ignore[arg-type, call-overload]


def test_the_bench_says_what_others_noticed_of_an_attack() -> None:
    assert {"faults.worker_killed", "faults.worker_hung", "faults.descriptors_gone"} <= set(attacks())
    report = asyncio.run(suite.run(server(None), "worker_killed"))
    (attack,) = report["by_attack"]  # type: ignore[misc]
    assert report["attacks"] == 1 and report["survived"] is attack["survived"] is True
    assert report["worst_gap_ms"] == max(attack["socket_gap_ms"], attack["call_gap_ms"])
    assert isinstance(report["healthz_p99_ms"], float) and report["healthz_p99_ms"] > 0


def test_the_bench_does_not_hide_a_server_that_falls() -> None:
    """A worker that no signal wakes, and no other to take its place: newcomers are not served."""
    alone = suite.Server("embedded", "/bin/false", 1)
    with pytest.raises(suite.ServerError):
        asyncio.run(suite.run(alone, "worker_killed"))
