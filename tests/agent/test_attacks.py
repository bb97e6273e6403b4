"""What one client does to a real server, and what another one hears of it."""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.attacks.bystander import Seen, watching
from tests.support import server_logs
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command

GAP_MS, HEALTHZ_MS = 100.0, 50.0
KEY = "sk-of-the-attacked-server"
LONG_ANSWER = " ".join(f"word{number}" for number in range(60))
ATTACK_S = 90.0


async def _watch(url: str, *attacks: str) -> Seen:
    """During attacks, all at once, or for a moment of calm."""
    async with watching(url, KEY) as seen:
        if not attacks:
            await asyncio.sleep(1.5)
        async with asyncio.timeout(ATTACK_S), asyncio.TaskGroup() as group:
            for what in attacks:
                group.create_task(_attack(what, url))
    return seen


async def _attack(what: str, url: str) -> None:
    command = (sys.executable, "-m", "benchmarks.attacks", what, url, KEY)
    process = await asyncio.create_subprocess_exec("nice", "-n", "5", *command, cwd=ROOT)
    assert await process.wait() == 0


async def _all_gone(server: ServiceProcess) -> None:
    async with asyncio.timeout(20.0):
        while json.loads(server.get("/readyz")[1])["leased"]:  # noqa: ASYNC110 another process
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)


async def test_attacks_over_http_and_websocket_are_nobody_elses_problem() -> None:
    server_logs.add_keys(KEY)
    with ServiceProcess(
        fake_worker_command("--slots", "16", "--pace", "0.3", "--reply", f"'{LONG_ANSWER}'"),
        env={"AGOGIC_API_KEY": KEY},
    ) as server:
        await _watch(server.base_url)
        await _all_gone(server)
        held = server.descriptors()
        seen = await _watch(server.base_url, "http", "websocket")
        assert seen.failed == 0 and seen.heard_s > 1.0
        # An answer takes several turns of two processes, each of which waits where the machine is busy with others.
        assert seen.worst_gap_ms <= GAP_MS + 4 * max(seen.lags_ms)
        assert seen.healthz_p99_ms <= HEALTHZ_MS + 4 * seen.lag_p99_ms
        assert server.process.poll() is None
        await _all_gone(server)
        assert server.descriptors() <= held + 8
        log = server.log.read_text()
    assert "Traceback" not in log
    junk = [line for line in log.splitlines() if "what is no HTTP" in line]
    assert 1 <= len(junk) <= 2
    assert server_logs.leaks_in(log, {KEY}) == []
