"""Every command with --json: it prints by one function, and what its benchmark reports is named by one rule."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from agent.cli.main import _VERBS, build
from tests.support.report_shape import NAME, PLAIN, UNIT, complaints

ROOT = Path(__file__).resolve().parents[2]


def commands() -> Iterator[tuple[str, str]]:
    """The verb of each command that has --json, and its function."""
    for verb in _VERBS:
        command = get_command(build(verb)).commands.get(verb)
        for found in filter(None, getattr(command, "commands", {verb: command}).values()):
            if any("--json" in parameter.opts for parameter in found.params):
                yield verb, (found.name or verb).replace("-", "_")


def imported(tree: ast.AST) -> Iterator[ModuleType]:
    """The modules of ours that the code imports and that may make reports."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(("benchmarks", "worker.turn")):
            continue
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            is_module = (ROOT / (name.replace(".", "/") + ".py")).is_file()
            yield importlib.import_module(name if is_module else str(node.module))


def reported(module: ModuleType) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of all tables that the module writes down; of a made name what is fixed of it."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value
            elif isinstance(key, ast.JoinedStr):
                yield "".join(str(part.value) for part in key.values if isinstance(part, ast.Constant)), value


def fraction(value: ast.expr) -> bool:
    """A call of `round` that leaves decimals."""
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "round"
        and len(value.args) == 2
    )


@pytest.mark.parametrize(("verb", "name"), list(commands()), ids=lambda part: str(part))
def test_every_report_has_the_one_shape(verb: str, name: str) -> None:
    module = importlib.import_module(f"agent.cli.{verb}")
    tree = ast.parse(inspect.getsource(module))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert called & {"print_report", "as_json"}
    assert "json.encode(" not in inspect.getsource(module)
    for made_by in {module, *imported(ast.parse(inspect.getsource(getattr(module, name))))}:
        for key, value in reported(made_by):
            where = f"{made_by.__name__}: {key!r}"
            choices = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            if any(map(fraction, choices)):
                assert UNIT.search(key) or PLAIN.search(key), f"{where} does not say its unit"
                assert NAME.fullmatch(key) or not key, where
                absent = [choice for choice in choices if isinstance(choice, ast.Constant) and choice.value is not None]
                assert not absent, f"{where}: what did not happen is None, which is left out"


def test_the_rule_finds_what_breaks_it() -> None:
    good = {"turns": 2, "first_audio_ms_p50": 12.5, "acceptance_rate": 0.0, "stages": {"flow_ms": 3.1}, "said": "x"}
    assert complaints(good) == []
    for bad in (
        {"first_audio": 12.5},
        {"firstAudio_ms": 12.5},
        {"first_audio_ms": 0.0},
        {"answer_s": None},
        {"share": float("nan")},
        {"stages": {"decoder_ms": 3.0}},
        {"rows": [{"hz": 0.0}]},
    ):
        assert complaints(bad), bad
