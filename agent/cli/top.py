"""`agogic top`: running services at a glance, from what they say of themselves at /metrics and /readyz."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from agent.cli.measuring import Json, print_report
from agent.cli.top_figures import Looks, Reading, ServiceFigures, read

if TYPE_CHECKING:
    import aiohttp
    from rich.table import Table

_TIMEOUT_S = 5.0


def top(
    urls: Annotated[list[str] | None, typer.Argument(help="where they answer; default: http://127.0.0.1:8790")] = None,
    every: Annotated[float, typer.Option(min=0.2, help="seconds between two looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="one look, and the end")] = False,
    api_key: Annotated[str, typer.Option(envvar="AGOGIC_API_KEY", help="for /metrics")] = "",
    json: Json = False,
) -> None:
    """Running services: workers, load, sessions, times to the first sound, refusals, gaps.

    With --json a line for each look. Ends with 1 where --once finds a service that cannot be asked."""
    wanted = [url.rstrip("/") for url in urls or ["http://127.0.0.1:8790"]]
    with contextlib.suppress(KeyboardInterrupt):
        reached = asyncio.run(_watch(wanted, api_key, every, once=once, json=json))
        if once and not reached:
            raise typer.Exit(1)


async def _watch(urls: list[str], api_key: str, every_s: float, *, once: bool, json: bool) -> bool:
    """Whether at the last look every service answered."""
    import aiohttp
    from rich.console import Console
    from rich.live import Live

    looks = Looks()
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        with contextlib.ExitStack() as stack:
            live = None
            if not (once or json):
                live = stack.enter_context(Live(console=Console(), screen=True, auto_refresh=False))
            while True:
                found = await asyncio.gather(*(_look(http, url, looks) for url in urls))
                if json:
                    print_report({"services": msgspec.to_builtins(found)}, json)
                elif live is not None:
                    live.update(table(found), refresh=True)
                else:
                    Console().print(table(found))
                if once:
                    return all(service.error is None for service in found)
                await asyncio.sleep(every_s)


async def _look(http: aiohttp.ClientSession, url: str, looks: Looks) -> ServiceFigures:
    import aiohttp

    try:
        return looks.figures(url, await _reading(http, url))
    except TimeoutError:
        return ServiceFigures(url=url, error=f"it does not answer within {_TIMEOUT_S:g} s")
    except aiohttp.ClientConnectorError:
        return ServiceFigures(url=url, error="nobody listens there")
    except aiohttp.ClientResponseError as error:
        why = "it wants a key: set AGOGIC_API_KEY" if error.status == 401 else f"/metrics answers {error.status}"
        return ServiceFigures(url=url, error=why)
    except (aiohttp.ClientError, ValueError, msgspec.MsgspecError) as error:
        return ServiceFigures(url=url, error=f"it is no agogic service: {error}")


async def _reading(http: aiohttp.ClientSession, url: str) -> Reading:
    async with http.get(f"{url}/metrics") as answer:
        answer.raise_for_status()
        metrics = await answer.text()
    async with http.get(f"{url}/readyz") as answer:  # 503 says why
        return read(metrics, await answer.read(), time.monotonic())


def table(services: list[ServiceFigures]) -> Table:
    """A column for each service."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title="agogic", expand=False)
    shown.add_column("")
    for service in services:
        shown.add_column(service.url, justify="right", overflow="fold")
    rows = [_rows(service) for service in services]
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name, "") for row in rows]
        shown.add_row(name, *(Text(cell, style="red" if name == "state" and cell != "ready" else "") for cell in cells))
    return shown


def _rows(service: ServiceFigures) -> dict[str, str]:
    if service.error is not None:
        return {"state": service.error}
    return {
        "state": "ready" if service.ready else service.reason or "not ready",
        "model": service.model or "",
        "workers": f"{_listed(service.workers)} ({service.restarts} restarted)",
        "busiest worker": f"{service.busy_share or 0:.0%}",
        "places": f"{service.leased} of {service.slots} taken, {service.capacity} would do",
        "sessions": _listed(service.sessions),
        "kept without client": f"{service.kept} ({service.held_mb:g} MB held)",
        "answers": _listed(service.answers),
        "answers/s": _number(service.answers_per_s),
        "first sound p50, p95": f"{_number(service.first_audio_ms_p50)}, {_number(service.first_audio_ms_p95)} ms",
        "tokens/s of speech": f"{_number(service.output_hz)} Hz",
        "refused": _listed(service.refused),
        "gaps heard": str(service.gaps),
        "loop stalls": str(service.loop_stalls),
    }


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
