"""`agogic doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from agent.cli.measuring import as_json, usable_cores
from agent.cli.serve import overridden
from agent.config import ConfigError, ServerConfig, check_exposure, load_config

if TYPE_CHECKING:
    from models.checkpoints.inventory import Sizes

Verdict = Literal["ok", "missing", "too big", "note"]
_PACKAGES = (
    "torch",
    "aiohttp",
    "aiortc",
    "msgspec",
    "soxr",
    "soundfile",
    "safetensors",
    "tokenizers",
)
_MIN_MEMORY_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """`mend` says what to do unless everything is well."""

    what: str
    verdict: Verdict
    detail: str
    mend: str = ""


def doctor(
    model: Annotated[str | None, typer.Option(help="'embedded', a checkpoint directory, or a hub id")] = None,
    sessions: Annotated[int, typer.Option(min=1, help="callers at once that memory must do for")] = 4,
    config: Annotated[Path | None, typer.Option(help="the TOML file that `agogic serve` would be given")] = None,
    host: Annotated[str | None, typer.Option(help="address that it would listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port that it would take")] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """What works on this machine, and what to do about the rest."""
    findings = [finding for check in (_python, _packages, _machine, _torch, _vad, _page) for finding in check()]
    loaded, configured = _configuration(config, host, port, model)
    findings += configured
    findings += _model(loaded.model.spec, sessions)
    findings += _port(loaded.http.host, loaded.http.port)
    broken = [finding for finding in findings if finding.verdict in ("missing", "too big")]
    if json:
        report = {"ok": not broken, "findings": [msgspec.to_builtins(finding) for finding in findings]}
        print(as_json(report))
    else:
        _show(findings)
    raise typer.Exit(1 if broken else 0)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    colours = {"ok": "green", "note": "yellow", "missing": "red", "too big": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(verdict, finding.what, finding.detail + (f"\n→ {finding.mend}" if finding.mend else ""))
    Console().print(table)


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return [Finding("Python", "ok", version)]
    return [Finding("Python", "missing", version, "use Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 setup")]


def _packages() -> list[Finding]:
    found, absent = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        return [Finding("packages", "missing", ", ".join(absent), "run `make setup`")]
    return [Finding("packages", "ok", ", ".join(found))]


def _machine() -> list[Finding]:
    cores = usable_cores()
    load = os.getloadavg()[0]
    findings = [Finding("processor", "ok", f"{cores} cores, load {load:.1f}")]
    if load > cores:
        findings = [
            Finding(
                "processor", "note", f"{cores} cores, load {load:.1f}", "speech will stutter while the machine is busy"
            )
        ]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 1e9
    if memory_gb < _MIN_MEMORY_GB:
        return [*findings, Finding("memory", "note", f"{memory_gb:.1f} GB free", f"have {_MIN_MEMORY_GB:g} GB free")]
    return [*findings, Finding("memory", "ok", f"{memory_gb:.1f} GB free")]


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = Finding("GPU", "ok", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    else:
        gpu = Finding("GPU", "note", "none; the embedded model does not need one, FlexiSLM-7B does")
    return [gpu, _back_ends()]


def _back_ends() -> Finding:
    """What official weights would be run with here; the embedded ones stay on the processor."""
    import torch

    from kernels.paged_attention import BackendError, attention_named
    from kernels.step_runner import buckets_for, steps_name
    from models.networks.config import RELEASED_HEAD_DIMS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        attention = attention_named(device, torch.bfloat16, RELEASED_HEAD_DIMS)
        steps, largest = steps_name(device), buckets_for(256)[-1]
    except BackendError as error:
        return Finding("back ends", "missing", str(error))
    detail = f"attention {attention.name}, pages of {attention.page}; steps {steps}, up to {largest} rows"
    return Finding("back ends", "ok", detail)


def _vad() -> list[Finding]:
    import numpy as np

    from agent.turn.silero import WINDOW_SAMPLES, SileroVad, VadError

    try:
        quiet = SileroVad().probability(np.zeros(WINDOW_SAMPLES, np.int16))
    except VadError as error:
        return [Finding("turn detection", "missing", str(error), "run `make setup`")]
    return [Finding("turn detection", "ok", f"silence is speech with probability {quiet:.3f}")]


def _page() -> list[Finding]:
    from agent.server.http import WEB_ROOT

    if (WEB_ROOT / "index.html").is_file():
        return [Finding("page", "ok", "built")]
    return [
        Finding(
            "page", "note", "not built", "run `make web` (needs Node)" if not shutil.which("node") else "run `make web`"
        )
    ]


def _model(spec: str, sessions: int) -> list[Finding]:
    """The parts of the model, whether they fit into memory, and the speed to expect."""
    if importlib.util.find_spec("torch") is None:
        return []
    from models.checkpoints.inventory import take_inventory
    from models.errors import CheckpointError

    try:
        inventory = take_inventory(spec)
    except CheckpointError as error:
        return [Finding("model", "missing", str(error))]
    findings = []
    for part in inventory.parts:
        if part.problem:
            mend = "git checkout models/embedded" if spec == "embedded" else ""
            findings.append(Finding(part.what, "missing", part.problem, mend))
        else:
            findings.append(Finding(part.what, "ok", f"{_size(part.file_bytes)} in {part.where}"))
    if not inventory.embedded and inventory.parts[0].where:
        findings += _prompt(Path(inventory.parts[0].where))
    return findings + (_expectations(inventory.sizes, inventory.embedded, sessions) if inventory.sizes else [])


def _prompt(directory: Path) -> list[Finding]:
    from worker.voices.official import PROMPT_FILE

    if (directory / PROMPT_FILE).is_file():
        return [Finding("voice", "ok", f"{PROMPT_FILE} in {directory}")]
    mend = f"--voice RECORDING, model.voice in the configuration, or {PROMPT_FILE} in {directory}; 3 to 10 s"
    return [Finding("voice", "note", "the model speaks like a recording and none is with it", mend)]


def _expectations(sizes: Sizes, embedded: bool, sessions: int) -> list[Finding]:
    from models.checkpoints.expected_speed import (
        EMBEDDED_WORK,
        expected_speed,
        measure_machine,
        needed_bytes,
        official_work,
    )

    machine = measure_machine()
    work = EMBEDDED_WORK if embedded else official_work(machine.gpu)
    needed, free = needed_bytes(sizes, work, sessions), machine.free_bytes
    room = f"{_size(needed)} for {sessions} callers, {_size(free)} free ({machine.name})"
    findings = [Finding("model's memory", "ok", room)]
    if needed > free:
        findings = [Finding("model's memory", "too big", room, "take a smaller model, or a machine with more")]
    speed = expected_speed(sizes, machine, work)
    measured = f"{machine.bytes_per_s / 1e9:.0f} GB/s, {machine.operations_per_s / 1e12:.2f} Tflop/s"
    detail = (
        f"at best {speed.step_ms:.1f} ms a step, first sound after {speed.first_audio_ms:.0f} ms, "
        f"{speed.answer_rtf:.2f} s of work per second of speech at 8 Hz ({measured})"
    )
    if speed.answer_rtf + speed.hearing_rtf > 1:
        return [*findings, Finding("speed", "note", detail, "too slow to talk to: use a GPU, or a smaller model")]
    return [*findings, Finding("speed", "ok", detail)]


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _configuration(
    path: Path | None, host: str | None, port: int | None, model: str | None
) -> tuple[ServerConfig, list[Finding]]:
    """As `agogic serve` would read it, and whether it would start with it."""
    try:
        config = overridden(load_config(path), host=host, port=port, model=model)
        check_exposure(config)
    except ConfigError as error:
        return ServerConfig(), [Finding("configuration", "missing", str(error), "mend that line")]
    return config, [Finding("configuration", "ok", str(path) if path is not None else "the defaults")]


def _port(host: str, port: int) -> list[Finding]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the service binds: connections that have just been closed do not occupy a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return [Finding("port", "note", f"{port} is in use", "agogic serve --port another")]
            why = f"{host} cannot be listened on: {error.strerror or error}"
            return [Finding("port", "missing", why, "give --host an address of this machine")]
    return [Finding("port", "ok", f"{port} is free")]
