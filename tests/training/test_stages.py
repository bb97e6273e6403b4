"""`agogic train`: every file of configs/train has a stage, and every stage can be asked for."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import typer

from agent.cli.train import STAGES, train

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs" / "train").glob("*.toml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_belongs_to_a_stage(name: str) -> None:
    assert any(name == stage or name.startswith(f"{stage}_") for stage in STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_reads_its_configuration(stage: str, tmp_path: Path) -> None:
    assert "config_path" in importlib.import_module(f"training.{stage}").main.__annotations__
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    with pytest.raises(Exception, match="missing required field"):
        train(stage, empty)


def test_an_unknown_stage_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        train("theatre", Path("none.toml"))
    told = capsys.readouterr().err
    assert all(stage in told for stage in STAGES)
