"""`agogic bench rolling`: callers in real time while all workers are replaced again and again; nobody is to notice.

lines    ─call─┬─call─┬─call─┬─call─ …      each hangs up now and then, and somebody new comes at once
workers  ───A──────┬───B──────┬───C─ …      replaced `every_s` after the last of them has gone
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp
import uvloop

from benchmarks.load import generator
from benchmarks.load.caller import Answer, Manners, Record
from benchmarks.load.generator import Load
from benchmarks.load.orders import read_orders
from benchmarks.load.plan import Visit
from benchmarks.load.report import summary
from benchmarks.load.run import MOST_ORDERS
from benchmarks.load.server import OwnServer

MARGIN_S = 5.0
"""Before the end no replacement begins that calls would not see the end of."""
OWN_DOING = {"turn_detected", "client_cancelled"}
"""Why an answer may end before its end: its caller spoke."""


@dataclass(frozen=True, slots=True)
class RollingSettings:
    """call_s: how long a line is held before somebody else calls; worker_command "": the embedded model's."""

    lines: int
    seconds: float
    every_s: float
    call_s: float
    clips: Path
    labels: Path
    worker_command: str = ""


@dataclass(slots=True)
class Rolls:
    """took_s: of each replacement of all workers that succeeded; failures: what was said of the others."""

    took_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def relayed(lines: int, seconds: float, call_s: float) -> list[Visit]:
    """So many are on the line at any time; as one leaves, another comes. Lines do not change hands all at once."""
    visits = []
    for line in range(lines):
        comes_s = call_s * line / lines
        ends = [comes_s + call_s * number for number in range(1, int((seconds - comes_s) / call_s) + 1)]
        ends = [*[end for end in ends if end < seconds - call_s / 2], seconds]
        visits += [Visit(begins, end) for begins, end in zip([comes_s, *ends], ends, strict=False)]
    return visits


def run(settings: RollingSettings) -> dict[str, object]:
    """Raises AudioFileError and ServerError."""
    manners = Manners(read_orders(settings.clips, settings.labels, MOST_ORDERS), 0.0, None)
    visits = relayed(settings.lines, settings.seconds, settings.call_s)
    key = secrets.token_hex(16)
    # Places for those who hear their last answer while somebody else is on their line already.
    config = f"[model]\nslots = {2 * settings.lines}\nthreads = 1\n"
    with OwnServer(config, {"AGOGIC_ADMIN_KEY": key}, settings.worker_command) as server:
        load, rolls = uvloop.run(_hold(server.url, key, visits, manners, settings))
    return summary(load) | _rolling(load, rolls)


async def _hold(
    url: str, key: str, visits: list[Visit], manners: Manners, settings: RollingSettings
) -> tuple[Load, Rolls]:
    rolls = Rolls()
    rolling = asyncio.create_task(_roll(url, key, settings, rolls))
    load = await generator.run(url, "", "agogic", visits, manners)
    await rolling
    return load, rolls


async def _roll(url: str, key: str, settings: RollingSettings, rolls: Rolls) -> None:
    loop = asyncio.get_running_loop()
    ends_at_s = loop.time() + settings.seconds - MARGIN_S
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as http:
        while loop.time() + settings.every_s < ends_at_s:
            await asyncio.sleep(settings.every_s)
            began_s = loop.time()
            async with http.post(f"{url}/v1/admin/workers/replace", timeout=aiohttp.ClientTimeout(600.0)) as answer:
                if answer.status == 200:
                    rolls.took_s.append(loop.time() - began_s)
                else:
                    rolls.failures.append((await answer.text())[:200])


def _rolling(load: Load, rolls: Rolls) -> dict[str, object]:
    cut = [answer for record in load.records for answer in record.answers if is_cut(answer, record)]
    return {
        "rolls": len(rolls.took_s),
        "roll_s_p50": round(median(rolls.took_s), 1) if rolls.took_s else None,
        "roll_s_max": round(max(rolls.took_s), 1) if rolls.took_s else None,
        "failed_rolls": len(rolls.failures),
        "cut_answers": len(cut),
        "cut_answer_reasons": [f"{answer.status or 'open'} {answer.reason}".strip() for answer in cut],
    }


def is_cut(answer: Answer, record: Record) -> bool:
    """Whether it ended before its end for another reason than its caller's voice, or with the connection."""
    if not answer.status:
        return bool(record.lost)
    return answer.status != "completed" and answer.reason not in OWN_DOING
