"""Images, the chart and units: linted, rendered and held against their schemas, where the tools are there.

`make deploy-check` brings the tools and runs this; without them those tests that need one are left out.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.config import check_exposure, parse_config
from tests.docs.test_docs import check_command
from tests.support.prometheus import program
from tests.support.service_process import ROOT

DEPLOY = ROOT / "deploy"
CONTAINERFILE = DEPLOY / "container" / "Containerfile"
CHART = DEPLOY / "helm" / "agogic"
TOOLS = ROOT / "build" / "deploy-venv" / "bin"
SECRET = {"secretKeyRef": {"name": "agogic-key", "key": "AGOGIC_API_KEY"}}


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=120)


def tool(name: str) -> Path:
    """One of `make deploy-check`, or the test is left out."""
    if (TOOLS / name).exists():
        return TOOLS / name
    if os.environ.get("AGOGIC_DEPLOY_CHECK"):
        pytest.fail(f"{TOOLS / name} is not there")
    pytest.skip(f"{name} comes with `make deploy-check`")


# --- the image ---


def instructions() -> list[tuple[str, str, str]]:
    """(stage, instruction, what it says) of the Containerfile, continued lines joined."""
    text = re.sub(r"\\\n", "", "\n".join(line for line in CONTAINERFILE.read_text().splitlines() if line[:1] != "#"))
    found, stage = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stage = rest.rpartition(" AS ")[2]
        found.append((stage, word, rest))
    return found


def copied(stage: str) -> list[str]:
    """What a stage takes out of the repository."""
    return [
        source
        for at, word, rest in instructions()
        if (at, word) == (stage, "COPY") and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]


def test_the_image_runs_as_nobody_and_says_how_it_is() -> None:
    said = {word: rest for stage, word, rest in instructions() if stage == "cpu-and-cuda"}
    assert said["USER"] == "10001:10001"
    probe = json.loads(said["HEALTHCHECK"].partition("CMD ")[2])
    assert probe[0] == "python" and "/healthz" in probe[-1]
    for stage, word, rest in instructions():
        assert word != "ADD" and not (word in ("ARG", "ENV") and re.search("KEY|TOKEN|PASSWORD", rest)), (stage, rest)
        if word == "CMD":
            command = json.loads(rest)
            check_command(["agogic", *command])
            assert (ROOT / "configs" / Path(command[command.index("--config") + 1]).name).is_file()
    assert instructions()[-1][0] == "cpu", "what is built where no target is named"


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    sent = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in (*copied("build"), *copied("installed"), *copied("cpu-and-cuda")):
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source.rstrip("/"), line[1:]) for line in sent), f"{source} is left out"


def test_what_is_copied_installs_what_serves(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    for name in (*copied("build"), *copied("installed")):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    installed = run(*pip, "--target", target, source)
    assert installed.returncode == 0, installed.stderr
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
    looked = [sys.executable, "-m", "agent.cli.main", "doctor"]
    done = subprocess.run(looked, cwd=target, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(target / "models") in done.stdout


def test_hadolint_finds_nothing() -> None:
    done = run(tool("hadolint"), "--failure-threshold", "info", CONTAINERFILE)
    assert (done.returncode, done.stdout) == (0, "")


# --- compose ---


def test_composed_services_can_write_nowhere_and_their_settings_are_taken() -> None:
    composed = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    for name, service in composed["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        for volume in service.get("volumes", []):
            path = volume.partition(":")[0]
            assert not path.startswith(".") or (DEPLOY / "compose" / path).exists(), volume
    service = composed["services"]["agogic"]
    check_command(["agogic", *service["command"]])
    config = parse_config((DEPLOY / "compose" / "agogic.toml").read_text())
    first, last = config.webrtc.ports
    assert f"{first}-{last}:{first}-{last}/udp" in service["ports"]
    context = (DEPLOY / "compose" / service["build"]["context"]).resolve()
    assert context == ROOT and (context / service["build"]["dockerfile"]) == CONTAINERFILE
    assert service["build"]["target"] in {stage for stage, _, _ in instructions()}


def test_prometheus_takes_the_composed_configuration(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k")
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    written = (DEPLOY / "compose" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(written.replace("/run/secrets/agogic_key", str(key)))
    done = run(program("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0 and "11 rules found" in done.stdout, done.stdout + done.stderr


def test_the_compose_file_is_of_the_schema() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    done = run(tool("check-jsonschema"), *schema, DEPLOY / "compose" / "compose.yaml")
    assert done.returncode == 0, done.stdout


# --- Kubernetes ---


def rendered(kubernetes: str = "1.31", **values: Any) -> dict[str, dict[str, Any]]:
    """The chart's documents by kind, each of its schema."""
    done = run(tool("python"), ROOT / "tests" / "deploy" / "chart.py", CHART, kubernetes, json.dumps(values))
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in json.loads(done.stdout)}


@pytest.mark.parametrize("kubernetes", ["1.25", "1.31", "1.37"])
def test_the_chart_is_of_the_schemas_of_kubernetes(kubernetes: str) -> None:
    assert set(rendered(kubernetes)) == {"ConfigMap", "Deployment", "Service"}
    more = {
        "hostNetwork": True,
        "modelsClaim": "weights",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
    assert "PodDisruptionBudget" in rendered(kubernetes, replicas=3, **more)


def test_the_charts_pod_runs_what_there_is_and_may_do_nothing_else() -> None:
    found = rendered(image={"repository": "registry.example/agogic"}, workers=2)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(["agogic", *(part.partition("=")[0] for part in container["args"])])
    assert container["image"] == "registry.example/agogic:0.1.0" and "--workers=2" in container["args"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    may = container["securityContext"]
    assert may["readOnlyRootFilesystem"] and not may["allowPrivilegeEscalation"]
    assert may["capabilities"] == {"drop": ["ALL"]}
    assert container["env"] == [{"name": "AGOGIC_API_KEY", "valueFrom": SECRET}]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    selector = found["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector == found["Service"]["spec"]["selector"]
    assert selector.items() <= found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    config = parse_config(found["ConfigMap"]["data"]["agogic.toml"])
    assert config.telemetry.log_format == "json"
    assert pod["terminationGracePeriodSeconds"] > config.http.drain_s


def test_a_changed_configuration_is_a_new_pod() -> None:
    annotations = [
        rendered(config=config)["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for config in ("", "[model]\nworkers = 2\n")
    ]
    assert annotations[0] != annotations[1]


# --- systemd ---


def unit(folder: Path) -> Path:
    """The unit, with a program that is there."""
    path = folder / "agogic.service"
    written = (DEPLOY / "systemd" / "agogic.service").read_text()
    path.write_text(written.replace("/opt/agogic/bin/agogic", shutil.which("true") or "/bin/true"))
    return path


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze comes with systemd")
    done = run("systemd-analyze", "verify", unit(tmp_path))
    ours = [line for line in done.stderr.splitlines() if "agogic" in line]
    assert not ours


def test_the_unit_leaves_a_service_little_to_break(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze comes with systemd")
    done = run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit(tmp_path))
    assert done.returncode == 0, "its exposure is over 2.0\n" + done.stdout + done.stderr


def test_the_unit_runs_a_command_that_there_is() -> None:
    (started,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / "systemd" / "agogic.service").read_text(), re.MULTILINE)
    check_command(["agogic", *shlex.split(started)[1:]])


# --- what is in it ---


def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    bill = tmp_path / "sbom.json"
    options = ("--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "--no-validate", "--output-file", bill)
    done = run(tool("cyclonedx-py"), "environment", *options, sys.executable)
    assert done.returncode == 0, done.stderr
    found = json.loads(bill.read_text())
    assert found["bomFormat"] == "CycloneDX" and found["metadata"]["component"]["name"] == "agogic"
    names = {component["name"].lower() for component in found["components"]}
    assert {"aiohttp", "aiortc", "torch", "cryptography"} <= names


def test_the_chart_and_the_package_have_one_version() -> None:
    package = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert package is not None and about["version"] == about["appVersion"] == package[1]
    assert f"agogic:{package[1]}" in (DEPLOY / "compose" / "compose.yaml").read_text()


def test_the_charts_settings_are_taken() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    check_exposure(parse_config(values["config"]))
