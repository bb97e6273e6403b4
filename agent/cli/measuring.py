"""What `agogic bench` and `agogic eval` share: options, torch's threads, errors of the user's as one line, reports.

Every report that a command prints with --json has one shape: one object; names in small letters, with the unit of what
is no count or share (`first_audio_ms_p50`, `output_hz`, `service_rss_mb`); the work of the model under `stages`, named
as in `agent.wire.STAGES`; and what did not happen is absent, neither null nor 0.0.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

CHECKOUT = Path(__file__).resolve().parents[2]
Model = Annotated[str, typer.Option(help="'embedded' or a checkpoint directory")]
Threads = Annotated[int, typer.Option(min=1, help="torch threads")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@contextmanager
def measuring(command: str, threads: int) -> Iterator[None]:
    """Torch's threads are settled before anything within imports it; a model or a recording that cannot be used ends
    the command with one line."""
    from worker.threads import limit_threads

    limit_threads(threads)
    from worker.audio_files import AudioFileError
    from worker.loading import ModelError

    try:
        yield
    except (AudioFileError, ModelError) as error:
        fail(command, error)


def usable_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fail(command: str, error: Exception) -> NoReturn:
    print(f"agogic {command}: {error}", file=sys.stderr)
    raise typer.Exit(2) from error


class Progress:
    """A line that says how many turns (or other `things`) are done and how long the rest will take at that pace."""

    def __init__(self, things: str = "turns") -> None:
        self._things = things
        self._began_s = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        left_s = (time.monotonic() - self._began_s) * (total - done) / max(done, 1)
        rest = f", about {left_s:.0f} s left" if 0 < done < total else " " * 20
        line = f"\r{done} of {total} {self._things}{rest}   "
        print(line, end="" if done < total else "\n", file=sys.stderr, flush=True)


@contextmanager
def ticking(seconds: float, json: bool) -> Iterator[None]:
    """A line every second, of work that is known to take so long."""
    if json:
        yield
        return
    line, over = Progress("seconds"), threading.Event()

    def tick() -> None:
        for second in range(1, round(seconds)):
            if over.wait(1.0):
                break
            line(second, round(seconds))
        over.wait()
        line(round(seconds), round(seconds))

    clock = threading.Thread(target=tick)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()


def progress(json: bool, things: str = "turns") -> Progress | None:
    """None where a program reads along."""
    return None if json else Progress(things)


def quiet(done: int, total: int) -> None:
    """No progress is shown."""


def as_json(report: object) -> str:
    """One line. What is None is left out, wherever it stands."""
    return msgspec.json.encode(_present(msgspec.to_builtins(report))).decode()


def _present(value: object) -> object:
    if isinstance(value, dict):
        return {name: _present(inner) for name, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


def print_report(report: dict[str, object], json: bool, *, lists: bool = True) -> None:
    """lists: False leaves them to JSON, where they are too long to be read."""
    if json:
        print(as_json(report))
        return
    for name, value in report.items():
        if value is None:
            continue
        if lists or not isinstance(value, list):
            print(f"{name:28} {value}")
