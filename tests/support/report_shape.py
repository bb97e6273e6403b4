"""The one shape of what commands print with --json; `agent.cli.measuring` says it in words."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from agent.cli.measuring import as_json
from agent.wire import STAGES

UNIT = re.compile(r"(^|_)(ms|s|hz|mb|db|bytes|percent|bits_per_second)(_|$)")
# Numbers without a unit say what they are: a share of something, or one thing over another.
PLAIN = re.compile(
    r"(^|_)(share|shares|rate|ratio|error|factor|agreement|acceptance|wer|mos|similarity|distance|threshold|average|"
    r"speedup|discrimination|per_core|price)(_|$)"
)
NAME = re.compile(r"[a-z0-9_]+")
# Tables whose rows bear names of other people, files or errors.
FREE = {"refusals", "lost_reasons", "errors", "output_rate_reasons", "most_frequent_operations", "by_attack", "wanted"}


def complaints(report: object, path: tuple[str, ...] = ()) -> list[str]:
    """What is not of that shape, with the place of each."""
    place = ".".join(path) or "the report"
    if isinstance(report, dict):
        found = [f"{place} has the name {name!r}" for name in _odd_names(report, path)]
        for name, value in report.items():
            found += complaints(value, (*path, str(name)))
        return found
    if isinstance(report, list):
        return [complaint for value in report for complaint in complaints(value, path)]
    if report is None:
        return [f"{place} is null, not absent"]
    if not isinstance(report, float):
        return []
    if not math.isfinite(report):
        return [f"{place} is {report}"]
    if not any(UNIT.search(name) or PLAIN.search(name) for name in path) and report != int(report):
        return [f"{place} is {report} of what?"]
    timed = path and re.search(r"(^|_)(ms|hz)(_|$)", path[-1])
    # Of gaps and errors, none at all is a finding.
    if report == 0.0 and timed and not re.search(r"gap|error|late|ahead", ".".join(path)):
        return [f"{place} is 0.0, not absent"]
    return []


def _odd_names(table: dict[str, object], path: tuple[str, ...]) -> list[str]:
    if path and path[-1] in FREE:
        return []
    odd = [name for name in table if not NAME.fullmatch(name)]
    if path and path[-1] == "stages":
        odd += [name for name in table if not re.fullmatch(f"({'|'.join(STAGES)})_ms(_p50|_p95|_p99)?", name)]
    return odd


def shaped(command: str, report: Any) -> Any:
    """The report as it is printed, which must be of the shape; `command` is as on the command line."""
    written = json.loads(as_json(report))
    found = complaints(written)
    assert not found, f"agogic {command}: {'; '.join(found)}"
    return written
