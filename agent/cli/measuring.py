"""What `agogic bench` and `agogic eval` share: options, torch's threads, errors of the user's as one line, reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import msgspec
import typer

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


def fail(command: str, error: Exception) -> NoReturn:
    print(f"agogic {command}: {error}", file=sys.stderr)
    raise typer.Exit(2) from error


class Progress:
    """A line that says how many turns are done and how long the rest will take at that pace."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        left_s = (time.monotonic() - self._began_s) * (total - done) / max(done, 1)
        rest = f", about {left_s:.0f} s left" if 0 < done < total else " " * 20
        print(f"\r{done} of {total} turns{rest}   ", end="" if done < total else "\n", file=sys.stderr, flush=True)


def print_report(report: dict[str, object], json: bool, *, lists: bool = True) -> None:
    """lists: False leaves them to JSON, where they are too long to be read."""
    if json:
        print(msgspec.json.encode(report).decode())
        return
    for name, value in report.items():
        if lists or not isinstance(value, list):
            print(f"{name:28} {value}")
