"""What one client does to a real server, and what another one hears of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from benchmarks.attacks.suite import Watchers, p99
from benchmarks.attacks.watch import Seen
from tests.support import server_logs
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command

GAP_MS, HEALTHZ_MS = 100.0, 50.0
KEY = "sk-of-the-attacked-server"
LONG_ANSWER = " ".join(f"word{number}" for number in range(60))
ATTACK_S = 90.0


async def _watch(server: ServiceProcess, *attacks: str) -> Seen:
    """During attacks, all at once, or for a moment of calm."""
    watchers = await Watchers.start(server.url, server.pid, KEY)
    try:
        if not attacks:
            await asyncio.sleep(1.5)
        async with asyncio.timeout(ATTACK_S), asyncio.TaskGroup() as group:
            for what in attacks:
                group.create_task(_attack(what, server.url))
        return await watchers.take()
    finally:
        await watchers.stop()


async def _attack(what: str, url: str) -> None:
    command = (sys.executable, "-m", "benchmarks.attacks", what, url, KEY)
    process = await asyncio.create_subprocess_exec("nice", "-n", "5", *command, cwd=ROOT)
    assert await process.wait() == 0


async def _all_gone(server: ServiceProcess) -> None:
    async with asyncio.timeout(20.0):
        while json.loads(server.get("/readyz")[1])["leased"]:  # noqa: ASYNC110 another process
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)


async def test_attacks_over_http_and_websocket_are_nobody_elses_problem(tmp_path: Path) -> None:
    server_logs.add_keys(KEY)
    config = tmp_path / "agogic.toml"
    config.write_text("[session]\nresume_s = 5.0\n")  # so long what was lost is kept, and all of it must be gone then
    with ServiceProcess(
        fake_worker_command("--slots", "16", "--pace", "0.3", "--reply", f"'{LONG_ANSWER}'"),
        config=config,
        env={"AGOGIC_API_KEY": KEY},
    ) as server:
        await _watch(server)
        await _all_gone(server)
        held = server.descriptors()
        seen = await _watch(server, "http", "websocket")
        assert seen.unwell == seen.shut_out == 0 and not seen.cut_off and seen.heard_s > 1.0 and seen.packets > 50
        assert seen.server_gap_ms <= GAP_MS
        assert p99(seen.server_healthz_ms) <= HEALTHZ_MS
        assert server.process.poll() is None
        await _all_gone(server)
        assert server.descriptors() <= held + 8
        log = server.log.read_text()
    assert "Traceback" not in log
    junk = [line for line in log.splitlines() if "what is no HTTP" in line]
    assert 1 <= len(junk) <= 2
    assert server_logs.leaks_in(log, {KEY}) == []
