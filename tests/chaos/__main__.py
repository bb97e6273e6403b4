"""`make chaos`: an hour of it, and many sessions after one another.

    python -m tests.chaos [--seconds S] [--seed N] [--sessions N] [--gap-ms MS] [--model embedded]

Prints one JSON object. Ends with 1 and one sentence, the seed in it, where the server broke a promise.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import secrets
import sys
import time
from dataclasses import asdict

from benchmarks.attacks.server import Server, ServerError, attacked
from benchmarks.attacks.suite import AttackError
from tests.chaos.chaos import Bounds, Broken, Chaos
from tests.support.service_process import fake_worker_command

WORKERS = 3
# Long enough that gaps between answers are rare, short enough that answers end.
REPLY = "la " * 40
_FLAT_PERCENT = 2.0


def server(model: str | None) -> Server:
    """None is the worker that answers with tones."""
    command = fake_worker_command("--slots", "12", "--reply", f"'{REPLY}'") if model is None else None
    return attacked(model or "embedded", command, WORKERS)


async def chaos(model: str | None, seed: int, seconds: float, bounds: Bounds) -> dict[str, object]:
    """Raises `Broken`."""
    running = server(model)
    running.start()
    try:
        async with Chaos(running, seed, bounds) as going:
            saying = asyncio.create_task(_say_how_it_goes(going))
            tally = await going.run(seconds)
            saying.cancel()
            computed = await going.computed()
        return {"seed": seed, "seconds": seconds, "events": tally.events, **asdict(tally), "loop_computed": computed}
    finally:
        running.stop()


async def _say_how_it_goes(going: Chaos) -> None:
    began_s = time.monotonic()
    while True:
        await asyncio.sleep(60.0)
        tally = going.tally
        print(
            f"{time.monotonic() - began_s:.0f} s: {tally.steps} steps, {tally.events} events, "
            f"worst gap {tally.worst_gap_ms:.0f} ms, {tally.worst_server_gap_ms:.0f} ms the server's, "
            f"{tally.most_memory_mb:.0f} MB",
            file=sys.stderr,
            flush=True,
        )


async def sessions(model: str | None, count: int) -> dict[str, object]:
    """Memory and descriptors over `count` sessions, one in ten ended rudely. Raises `Broken`."""
    from benchmarks.attacks import sessions as many

    running = server(model)
    running.start()
    try:
        outcome = await many.run(running.url, running.pid, count)
        warm, end = outcome.warm, outcome.end
        growth_percent = 100 * (end.memory_mb / warm.memory_mb - 1)
        if growth_percent > _FLAT_PERCENT or end.descriptors > warm.descriptors * (1 + _FLAT_PERCENT / 100):
            raise Broken(f"after {count} sessions more is held than after the first 500: {warm} -> {end}")
        return {"sessions": count, "memory_growth_percent": round(growth_percent, 2), **asdict(outcome)}
    finally:
        running.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Chaos against a real server.")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=None, help="draws the same steps again; default: a new one")
    parser.add_argument("--sessions", type=int, default=10_000, help="sessions after one another; 0 = none")
    parser.add_argument("--gap-ms", type=float, default=100.0, help="the longest forgiven silence of the server's")
    parser.add_argument("--model", default=None, help="default: a worker that answers with tones")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(2**31)
    print(f"seed {seed}", file=sys.stderr)
    report: dict[str, object] = {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    try:
        if arguments.seconds:
            bounds = Bounds(gap_ms=arguments.gap_ms)
            report |= asyncio.run(chaos(arguments.model, seed, arguments.seconds, bounds))
        if arguments.sessions:
            report["sessions"] = asyncio.run(sessions(arguments.model, arguments.sessions))
    except (Broken, AttackError, ServerError) as error:
        print(f"chaos: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
