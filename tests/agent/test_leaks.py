"""Short sessions over both transports, one in ten ended rudely: nothing stays. `make chaos` runs the long form."""

from __future__ import annotations

from benchmarks.attacks import sessions
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.speech import order


async def test_three_hundred_sessions_leave_memory_and_descriptors_flat() -> None:
    second = order(24_000, before_s=0.3)[:24_000].tobytes()
    with ServiceProcess(fake_worker_command("--slots", "32")) as process:
        outcome = await sessions.run(process.base_url, process.process.pid, 300, warm_up=500, sound=second)
    assert outcome.answered + outcome.rude + outcome.refused == 300
    assert outcome.rude > 10 and outcome.refused < 30
    assert outcome.end.descriptors <= outcome.warm.descriptors * 1.02
    assert outcome.memory_growth_percent < 2.0
