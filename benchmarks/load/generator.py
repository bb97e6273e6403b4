"""All callers in one event loop, which notes how late it is itself: its faults are not the server's."""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass, field

import aiohttp

from benchmarks.load.caller import Caller, Manners, Record
from benchmarks.load.hearing import Lateness
from benchmarks.load.plan import Visit

GRACE_S = 40.0
"""So long after the end callers may still hear their last answer."""


@dataclass(slots=True)
class Load:
    """What a run gave; times on the clock of the records, busy_s: processor time of the generator."""

    visits: list[Visit]
    started_at_s: float = 0.0
    ended_at_s: float = 0.0
    busy_s: float = 0.0
    records: list[Record] = field(default_factory=list)
    lateness: Lateness = field(default_factory=Lateness)


async def run(url: str, api_key: str, model: str, visits: list[Visit], manners: Manners) -> Load:
    """Holds the calls of `visits` with the server at `url`, http(s)://HOST[:PORT]. Returns when all have ended."""
    loop = asyncio.get_running_loop()
    load = Load(visits, started_at_s=loop.time())
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    address = f"{url.rstrip('/')}/v1/realtime?model={model}"
    before_s = _busy_s()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
        for number, visit in enumerate(visits):
            leaves_at_s = load.started_at_s + visit.leaves_s
            caller = Caller(number, manners, load.lateness, lambda at_s=leaves_at_s: loop.time() >= at_s)  # type: ignore[misc]
            load.records.append(caller.record)
            group.create_task(_visit(caller, http, address, headers, load.started_at_s + visit.comes_s, leaves_at_s))
    load.ended_at_s, load.busy_s = loop.time(), _busy_s() - before_s
    return load


async def _visit(
    caller: Caller, http: aiohttp.ClientSession, address: str, headers: dict[str, str], comes: float, leaves: float
) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, comes - loop.time()))
    try:
        async with asyncio.timeout_at(leaves + GRACE_S):
            await caller.call(http, address, headers)
    except TimeoutError:
        caller.record.lost = "the last answer did not end"


def _busy_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
