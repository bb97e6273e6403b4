"""`agogic loadtest`: callers in real time against a server, its own or one that runs already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.load import generator, plan
from benchmarks.load.caller import Manners
from benchmarks.load.chart import Line, Panel, chart
from benchmarks.load.generator import Load
from benchmarks.load.orders import read_orders
from benchmarks.load.report import per_second, ramp_summary, summary
from benchmarks.load.server import OwnServer

MOST_ORDERS = 40


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """url "": a service is started with `config` (TOML). session: fields of `session.update`, None to send none."""

    sessions: int
    seconds: float
    ramp: bool
    clips: Path
    labels: Path
    barge_in: float = 0.0
    session: dict[str, object] | None = None
    url: str = ""
    api_key: str = ""
    model: str = "agogic"
    config: str = ""


def run(settings: LoadSettings, plot: Path | None = None) -> dict[str, object]:
    """Raises AudioFileError, ServerError, and OSError where the plot cannot be written."""
    manners = Manners(read_orders(settings.clips, settings.labels, MOST_ORDERS), settings.barge_in, settings.session)
    visits = (plan.ramp if settings.ramp else plan.steady)(settings.sessions, settings.seconds)

    def hold(url: str) -> Load:
        return uvloop.run(generator.run(url, settings.api_key, settings.model, visits, manners))

    shares: dict[str, object] = {}
    if settings.url:
        load = hold(settings.url)
    else:
        with OwnServer(settings.config) as server:
            before = server.busy_s()
            load = hold(server.url)
            lasted_s = load.ended_at_s - load.started_at_s
            after = server.busy_s()
            shares = {f"{name}_core_share": round((after[name] - before[name]) / lasted_s, 3) for name in before}
            shares |= {f"{name}_resident_mb": round(mb, 1) for name, mb in server.resident_mb().items()}
    if plot is not None:
        plot.write_text(picture(load))
    return summary(load) | (ramp_summary(load) if settings.ramp else {}) | shares


def picture(load: Load) -> str:
    curves = per_second(load)
    seconds = list(range(len(curves["callers"])))
    line = {name: Line(name, seconds, values) for name, values in curves.items()}
    panels = [
        Panel("callers on the line, and refused", [line["callers"], line["refused"]]),
        Panel("rate of the answers that began, Hz", [line["output_hz"]]),
        Panel("gaps heard", [line["gaps"]]),
    ]
    return chart("Callers in real time", "seconds", panels)
