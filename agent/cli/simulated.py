"""`agogic bench fleet`, and the cards that are only counted."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.measuring import Json, fail, print_report, progress, quiet


class Released(StrEnum):
    """Sizes of the released FlexiSLM."""

    HALF_B = "0.5B"
    SEVEN_B = "7B"


class CardName(StrEnum):
    """Whose speed is known."""

    H200 = "H200"
    H100 = "H100"


class PlacementName(StrEnum):
    """Where a new caller goes."""

    SPREAD = "spread"
    PACKED = "packed"


def fleet(
    size: Annotated[Released, typer.Option(help="released size")] = Released.SEVEN_B,
    card: Annotated[CardName, typer.Option(help="on which it runs")] = CardName.H200,
    peak: Annotated[float, typer.Option(min=1.0, help="callers at once, at the busiest")] = 100_000,
    night: Annotated[float, typer.Option(min=0.01, max=1.0, help="their share at the quietest")] = 0.15,
    cells: Annotated[int, typer.Option(min=1, help="clusters that share nothing")] = 20,
    least: Annotated[int, typer.Option(min=1, help="workers of each cluster")] = 2,
    most: Annotated[int | None, typer.Option(min=1, help="workers of each cluster; absent: no bound")] = None,
    shrinks: Annotated[
        bool, typer.Option("--shrinks/--grows-only", help="whether workers leave when there is room")
    ] = True,
    start: Annotated[float, typer.Option(min=1.0, help="seconds until a worker is ready")] = 120.0,
    machine_hours: Annotated[float, typer.Option(min=0.0, help="between two losses of a machine; 0: none")] = 1000.0,
    placement: Annotated[PlacementName, typer.Option(help="new callers: as served, or close")] = PlacementName.SPREAD,
    price: Annotated[float, typer.Option(min=0.0, help="of a card's hour, assumed")] = 3.0,
    plot: Annotated[Path | None, typer.Option(help="SVG file for the day's curves")] = None,
    json: Json = False,
) -> None:
    """A day of a fleet of cards that are only counted: refusals, rates, losses, card hours. Measures nothing."""
    from benchmarks.load import fleet_report as benchmark
    from benchmarks.load.fleet import Day, Plan

    plan = Plan(
        cells,
        least,
        most,
        idle_s=300.0 if shrinks else None,
        start_s=start,
        machine_hours=machine_hours,
        placement="packed" if placement == "packed" else "spread",
    )
    try:
        shown = progress(json, "days of a cluster") or quiet
        report = benchmark.run(size.value, card.value, Day(peak, night), plan, price, plot, shown)
    except ValueError as error:
        fail("bench", error)
    print_report(report, json)
