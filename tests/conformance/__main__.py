"""`make conformance`: stock clients in conversation with a server, one after the other.

    python -m tests.conformance [--url http://HOST:PORT] [--client NAME]... [--traces DIR] [--json]

Without a URL the embedded model is served for it. Ends with 1 where a client did not get through, or where the server
sent what the protocol does not allow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.conformance.acting import CLIENTS, STEPS, Outcome, act
from tests.conformance.tap import Tap
from tests.support.service_process import ServiceProcess


async def everybody(
    names: Sequence[str], url: str, steps: tuple[str, ...], api_key: str, traces: Path | None
) -> list[Outcome]:
    outcomes = []
    for name in names:
        outcome, tap = await act(CLIENTS[name], url, steps, api_key)
        _say(outcome)
        if traces is not None:
            _keep(tap, traces / f"{name}.jsonl")
        outcomes.append(outcome)
    return outcomes


def _keep(tap: Tap, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(asdict(one)) for one in tap.heard))


def _say(outcome: Outcome) -> None:
    steps = ", ".join(f"{one.step} {'no' if one.found_wrong else 'ok'}" for one in outcome.verdicts)
    print(f"{outcome.client}: {steps or 'nothing'}", file=sys.stderr, flush=True)
    for sentence in outcome.sentences():
        print(f"  {sentence}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Stock clients in conversation.")
    parser.add_argument("--url", default="", help="http://HOST:PORT of a server; default: one is started")
    parser.add_argument("--api-key", default=os.environ.get("AGOGIC_API_KEY", ""), help="for that server")
    parser.add_argument("--client", action="append", choices=CLIENTS, help="may be given several times; default: all")
    parser.add_argument("--step", action="append", choices=STEPS, help="may be given several times; default: all")
    parser.add_argument("--traces", type=Path, help="folder for what went by, an event a line, a file a client")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    names, steps = args.client or list(CLIENTS), tuple(args.step or STEPS)
    if args.url:
        outcomes = asyncio.run(everybody(names, args.url.rstrip("/"), steps, args.api_key, args.traces))
    else:
        with ServiceProcess() as service:
            outcomes = asyncio.run(everybody(names, service.base_url, steps, "", args.traces))
    if args.json:
        print(json.dumps({one.client: _report(one) for one in outcomes}, indent=2))
    sys.exit(0 if all(one.holds for one in outcomes) else 1)


def _report(outcome: Outcome) -> dict[str, object]:
    steps = {one.step: {"found_wrong": one.found_wrong, "at_s": one.seconds} for one in outcome.verdicts}
    return {"holds": outcome.holds, "steps": steps, "out_of_order": outcome.out_of_order, "error": outcome.error}


if __name__ == "__main__":
    main()
