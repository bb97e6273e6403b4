"""`agogic top`, against a service that runs and one that does not."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import aiohttp
import msgspec
import pytest
from rich.console import Console

from agent.cli.top import table
from agent.cli.top_figures import Looks, Reading, Ready, ServiceFigures, figures, quantile, read
from tests.support.report_shape import complaints
from tests.support.service_process import ROOT, ServiceProcess
from tests.support.ws_client import WsClient

NOBODY = "http://127.0.0.1:1"


def reading(service: ServiceProcess, at_s: float) -> Reading:
    return read(service.get("/metrics")[1], service.get("/readyz")[1].encode(), at_s)


async def speak(service: ServiceProcess, times: int) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{service.base_url}/v1/realtime") as socket:
        client = WsClient(socket)
        await client.send(type="session.update", session={"type": "realtime"})
        for _ in range(times):
            await client.send(type="response.create")
            await client.until("response.output_audio.delta")
            await client.send(type="response.cancel")
            await client.until("response.done")


async def test_a_look_shows_what_happened_since_the_last(service: ServiceProcess) -> None:
    looks = Looks()
    first = looks.figures(service.base_url, reading(service, 100.0))
    assert first.ready and first.model == "fake" and first.workers == {"ready": 1} and first.slots == 16
    assert first.window_s is None and first.answers_per_s is None
    await speak(service, 4)
    second = looks.figures(service.base_url, reading(service, 102.0))
    assert second.answers["cancelled"] == first.answers.get("cancelled", 0) + 4
    assert (second.window_s, second.answers_per_s) == (2.0, 2.0)
    assert second.first_audio_ms_p50 is not None and second.first_audio_ms_p95 is not None
    assert 0 < second.first_audio_ms_p50 <= second.first_audio_ms_p95
    third = looks.figures(service.base_url, reading(service, 104.0))
    assert third.first_audio_ms_p50 is None and third.answers_per_s == 0.0, "nobody was answered meanwhile"


def test_once_prints_json_and_says_by_its_status_who_does_not_answer(service: ServiceProcess) -> None:
    command = [sys.executable, "-m", "agent.cli.main", "top", service.base_url, NOBODY, "--once", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert complaints(report) == []
    alive, dead = report["services"]
    assert alive["url"] == service.base_url and alive["ready"] is True and alive["slots"] == 16
    assert dead == {"url": NOBODY, "error": "nobody listens there"} | {
        name: {} for name in ("workers", "sessions", "answers", "refused")
    }


def test_the_table_has_a_column_for_each_service(service: ServiceProcess) -> None:
    found = figures("http://a:1", None, reading(service, 1.0))
    stream = io.StringIO()
    Console(file=stream, width=120).print(table([found, ServiceFigures(url=NOBODY, error="nobody listens there")]))
    shown = stream.getvalue()
    assert "http://a:1" in shown and NOBODY in shown and "nobody listens there" in shown
    assert "of 16 taken" in shown and "first sound p50, p95" in shown and "refused" in shown


def test_a_service_that_was_started_anew_is_counted_from_its_beginning() -> None:
    def at(moment_s: float, answers: float) -> Reading:
        samples = {"agogic_responses_total": {(("status", "completed"),): answers}}
        return Reading(moment_s, Ready(True), samples)

    looks = Looks()
    looks.figures("a", at(0.0, 100.0))
    assert looks.figures("a", at(10.0, 120.0)).answers_per_s == 2.0
    assert looks.figures("a", at(20.0, 5.0)).answers_per_s is None


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.25, 0.05), (0.5, 0.1), (0.75, 0.15), (1.0, 0.2)])
def test_a_quantile_is_where_prometheus_has_it(share: float, expected: float) -> None:
    buckets = [(float("inf"), 20.0), (0.1, 10.0), (0.2, 20.0)]
    assert quantile(share, buckets) == pytest.approx(expected)
    assert quantile(share, []) is None and quantile(share, [(0.1, 0.0), (float("inf"), 0.0)]) is None


def test_what_is_above_all_bounds_is_said_to_be_at_the_highest() -> None:
    assert quantile(0.9, [(0.1, 1.0), (4.0, 2.0), (float("inf"), 10.0)]) == 4.0


@pytest.mark.parametrize(("metrics", "ready"), [("up 1\n", b"{}"), ("agogic_worker_slots 1\n", b"<html>")])
def test_another_program_is_none_of_ours(metrics: str, ready: bytes) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        read(metrics, ready, 0.0)
