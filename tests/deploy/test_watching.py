"""The dashboard and the rules: what they ask for is there, and Prometheus and Grafana's own types take them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agent.server.loop_watch import LoopWatch
from agent.server.metrics import Metrics
from tests.support.prometheus import Prometheus, program
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command
from tests.support.ws_client import WsClient

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "agogic.json"
# Prometheus' own words, and what is added to each sample where it is read.
OWN_METRICS, OWN_LABELS = {"up"}, {"instance", "job", "le"}
OF_COUNTERS, OF_GAUGES = {"rate", "increase", "irate"}, {"delta", "deriv"}
# There may be none of these for as long as a service lives.
MAY_BE_ABSENT = {"agogic_loop_stalls_total"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Of the dashboard as Grafana asks them for all services, and of the rules; by where they stand."""
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            asked = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
            assert "$" not in asked
            found[f"{panel['title']} ({target['refId']})"] = asked
    return found | {rule["alert"]: rule["expr"] for rule in rules()}


def parts(node: object, within: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every selector of metrics in an expression, with the functions around it; every aggregation too."""
    match type(node).__name__:
        case "VectorSelector":
            yield node, within
        case "MatrixSelector":
            yield from parts(node.vector_selector, within)  # type: ignore[attr-defined]
        case "Call":
            for argument in node.args:  # type: ignore[attr-defined]
                yield from parts(argument, (*within, node.func.name))  # type: ignore[attr-defined]
        case "AggregateExpr":
            yield node, within
            yield from parts(node.expr, within)  # type: ignore[attr-defined]
        case "BinaryExpr":
            yield from parts(node.lhs, within)  # type: ignore[attr-defined]
            yield from parts(node.rhs, within)  # type: ignore[attr-defined]
        case "ParenExpr" | "UnaryExpr" | "SubqueryExpr":
            yield from parts(node.expr, within)  # type: ignore[attr-defined]
        case "NumberLiteral" | "StringLiteral":
            pass
        case other:
            raise AssertionError(f"no rule for {other}")


def declared() -> dict[str, set[str]]:
    """The labels of each family, also of one that nothing was counted in yet."""
    registry = CollectorRegistry()
    LoopWatch(registry)
    of = {name: collector for found in (registry, Metrics().registry) for name, collector in _collectors(found)}
    return {name: set(collector._labelnames) for name, collector in of.items()}


def _collectors(registry: CollectorRegistry) -> Iterator[tuple[str, Any]]:
    for collector, names in registry._collector_to_names.items():
        yield from ((name, collector) for name in names)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, Prometheus]]:
    """A service that has answered, refused and been asked for a lost session, while Prometheus watched."""
    folder = tmp_path_factory.mktemp("watched")
    config = folder / "agogic.toml"
    config.write_text("[session]\nmax_sessions = 1\n[playout]\nlead_ms = 10000\n")
    with ServiceProcess(fake_worker_command(), config=config) as service:
        address = service.base_url.removeprefix("http://")
        with Prometheus(folder, [address], RULES) as prometheus:
            prometheus.until("up == 1")
            asyncio.run(_use(service))
            # A rate wants two samples, and what was counted for the first time was not there before.
            for name in ("agogic_responses_total", "agogic_refused_total", "agogic_resumed_total"):
                prometheus.until(f"min(count_over_time({name}[5m])) > 1")
            yield service, prometheus


async def _use(service: ServiceProcess) -> None:
    async with aiohttp.ClientSession() as http:
        url = f"{service.base_url}/v1/realtime"
        async with http.ws_connect(url) as socket:
            client = WsClient(socket)
            await client.ask()
            await client.send(type="response.create")
            await client.until("response.done")
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(url)
        with pytest.raises((aiohttp.WSServerHandshakeError, ConnectionError)):
            resumed = WsClient(await http.ws_connect(f"{url}?resume=resume_{'a' * 32}&after=event_1"))
            await resumed.until("session.created")


def test_every_metric_that_is_asked_for_is_there_with_its_labels_and_type(
    watched: tuple[ServiceProcess, Prometheus],
) -> None:
    text = watched[0].get("/metrics")[1]
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    labels, wrong, used = declared(), [], set()
    for where, expression in expressions().items():
        found = list(parts(promql_parser.parse(expression)))
        names = [node.name for node, _ in found if type(node).__name__ == "VectorSelector"]
        assert names, where
        known = set().union(*(labels.get(name, set()) for name in names)) | OWN_LABELS
        for node, within in found:
            if type(node).__name__ == "AggregateExpr":
                asked = set(node.modifier.labels) if node.modifier is not None else set()
                wrong += [f"{where}: no label {label}" for label in asked - known]
                continue
            if node.name in OWN_METRICS:
                continue
            used.add(node.name)
            family = re.sub(r"_(total|bucket|sum|count)$", "", node.name)
            kind = types.get(node.name, types.get(family))
            if kind is None:
                wrong.append(f"{where}: no metric {node.name}")
                continue
            asked = {matcher.name for matcher in node.matchers.matchers}
            wrong += [f"{where}: {node.name} has no label {label}" for label in asked - labels[node.name] - OWN_LABELS]
            is_counted = kind in ("counter", "histogram") and node.name != family
            if is_counted != bool(OF_COUNTERS & set(within)):
                wrong.append(f"{where}: {node.name} is a {kind}, inside {within}")
            if OF_GAUGES & set(within) and kind != "gauge":
                wrong.append(f"{where}: {node.name} is a {kind}, inside {within}")
            if "histogram_quantile" in within and not (kind == "histogram" and node.name.endswith("_bucket")):
                wrong.append(f"{where}: {node.name} has no buckets")
    assert not wrong, "\n".join(wrong)
    assert len(used) > 20


def test_prometheus_has_an_answer_to_every_panel(watched: tuple[ServiceProcess, Prometheus]) -> None:
    _, prometheus = watched
    silent = [
        where
        for where, expression in expressions().items()
        if "(" in where and not prometheus.query(expression) and not any(name in expression for name in MAY_BE_ABSENT)
    ]
    assert not silent


def test_prometheus_takes_the_rules_and_none_fires_for_a_healthy_service(
    watched: tuple[ServiceProcess, Prometheus],
) -> None:
    _, prometheus = watched
    prometheus.until("up == 1")
    (group,) = prometheus.get("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in rules()]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert not [rule["name"] for rule in group["rules"] if rule["state"] == "firing"]


def test_every_rule_fires_on_figures_made_for_it() -> None:
    cases = RULES.with_name("alerts_test.yml")
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(cases)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    proven: dict[str, int] = {}
    for case in yaml.safe_load(cases.read_text())["tests"]:
        for check in case["alert_rule_test"]:
            (alert,) = check["exp_alerts"]
            assert alert["exp_labels"]["instance"] == "bad" and "good" in str(case["input_series"])
            proven[check["alertname"]] = proven.get(check["alertname"], 0) + 1
    assert proven == dict.fromkeys((rule["alert"] for rule in rules()), 1)


def test_a_rule_that_does_not_fire_is_noticed(tmp_path: Path) -> None:
    broken = RULES.read_text().replace("agogic_worker_busy > 0.9", "agogic_worker_busy > 9")
    (tmp_path / "alerts.yml").write_text(broken)
    (tmp_path / "alerts_test.yml").write_text(RULES.with_name("alerts_test.yml").read_text())
    command = [program("promtool"), "test", "rules", str(tmp_path / "alerts_test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "AgogicWorkersBusy" in done.stdout + done.stderr


def test_every_rule_says_who_is_woken_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert "$labels.instance" in rule["annotations"]["summary"], rule["alert"]


def test_grafanas_own_types_take_the_dashboard_whole() -> None:
    """Read into the types that Grafana's schemas were made into and written again, nothing of it is lost."""
    register_default_plugins()
    written = dashboard()
    again = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    assert list(lost(written, again)) == []
    assert list(lost({"panels": [{"titel": "x"}]}, json.loads(json.dumps(
        Dashboard.from_json({"panels": [{"type": "stat", "titel": "x"}]}), cls=JSONEncoder
    )))) == ["/panels/0/titel"]  # fmt: skip


def lost(before: object, after: object, place: str = "") -> Iterator[str]:
    """Where something stood that is not there any more."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from lost(value, after[name], f"{place}/{name}") if name in after else (f"{place}/{name}",)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for at, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{place}/{at}")
    elif before != after:
        yield place


def test_panels_lie_side_by_side_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"] and panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    assert {variable["name"] for variable in dashboard()["templating"]["list"]} == {"datasource", "instance"}
