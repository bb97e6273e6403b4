"""`agogic loadtest`: many callers in real time, against any server of the Realtime protocol or one started for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.measuring import CHECKOUT, Json, fail, print_report, ticking, usable_cores

FEW = 8
"""Callers for whom a second worker is not worth its memory."""
Rate = Annotated[str, typer.Option(help="Hz from 4 to 12.5, 'auto', or a range such as 4-8; default: the server's")]


def loadtest(
    sessions: Annotated[int, typer.Option(min=1, help="callers; with --ramp the most that come at once")] = 8,
    minutes: Annotated[float, typer.Option(min=0.05, help="how long")] = 1.0,
    ramp: Annotated[
        bool, typer.Option("--ramp", help="one caller after the other, all off, and the same again")
    ] = False,
    url: Annotated[str, typer.Option(help="http://HOST:PORT of a running server; default: one is started")] = "",
    api_key: Annotated[str, typer.Option(envvar="AGOGIC_API_KEY", help="for that server")] = "",
    model: Annotated[str, typer.Option(help="what to ask that server for")] = "agogic",
    clips: Annotated[Path, typer.Option(help="folder of recorded orders")] = CHECKOUT / "tests" / "speech",
    labels: Annotated[Path, typer.Option(help="what they say")] = CHECKOUT / "tests" / "speech" / "labels.json",
    barge_in: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of answers interrupted")] = 0.1,
    input_rate: Rate = "",
    output_rate: Rate = "",
    slots: Annotated[int, typer.Option(min=0, help="of the server that is started; 0: one for each caller")] = 0,
    workers: Annotated[
        int,
        typer.Option(min=0, help="of the server that is started; 0: one for each core, if there are callers enough"),
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of each of its workers")] = 1,
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw the run into")] = None,
    json: Json = False,
) -> None:
    """Many callers at once: gaps they hear, times of every stage, refusals.

    The callers live in this process, the server in others; how late this one was itself is in the report, and what it
    spoilt is not counted as the server's."""
    from benchmarks.attacks.server import ServerError
    from benchmarks.load.run import LoadSettings, run
    from worker.audio_files import AudioFileError

    rates = {"input_frame_rate": input_rate, "output_frame_rate": output_rate}
    workers = workers or max(1, min(usable_cores(), sessions // FEW))
    config = f"[model]\nslots = {slots or sessions}\nworkers = {workers}\nthreads = {threads}\n"
    try:
        wishes = {name: _rate(said) for name, said in rates.items() if said}
        session: dict[str, object] | None = {"type": "realtime", "x_agogic": wishes} if wishes else None
        settings = LoadSettings(
            sessions, minutes * 60, ramp, clips, labels, barge_in, session, url, api_key, model, config
        )
        if not json:
            print(f"{sessions} callers for {minutes * 60:.0f} s", file=sys.stderr)
        with ticking(minutes * 60, json):
            report = run(settings, plot)
        print_report(report, json)
    except (AudioFileError, ServerError, ValueError) as error:
        fail("loadtest", error)
    except OSError as error:
        fail("loadtest", OSError(f"cannot write {plot}: {error.strerror or error}"))


def _rate(said: str) -> object:
    """As the protocol writes it. Raises ValueError."""
    low, dash, high = said.partition("-")
    try:
        if said == "auto":
            return said
        return {"min": float(low), "max": float(high)} if dash else float(said)
    except ValueError:
        raise ValueError(f"{said!r} is no rate; give Hz from 4 to 12.5, 'auto', or a range such as 4-8") from None
