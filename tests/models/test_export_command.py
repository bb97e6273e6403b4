"""`agogic export` as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from agent.cli.export import export
from models.checkpoints.flexislm_checkpoint import load_flexislm
from tests.support.golden import golden_dirs
from tests.support.report_shape import shaped

FOLDER = golden_dirs("flexislm")[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for path in (FOLDER / "stage2" / "config.json", FOLDER / "stage2" / "model.safetensors"):
        shutil.copyfile(path, source / path.name)
    shutil.copyfile(FOLDER / "tokenizer" / "tokenizer.json", source / "tokenizer.json")
    (source / "encoder.safetensors").write_bytes(b"as it is")
    return source


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(export)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize(("precision", "bytes_per_weight"), [("float32", 4.0), ("bfloat16", 2.0), ("int8", 1.3)])
def test_it_writes_what_loads_and_reports_it(
    model: Path, tmp_path: Path, precision: str, bytes_per_weight: float
) -> None:
    output = tmp_path / "out"
    code, text = run(str(model), str(output), "--precision", precision, "--json")
    assert code == 0, text
    report = shaped("export", json.loads(text.splitlines()[-1]))
    assert report["copied"] == ["encoder.safetensors"]
    assert (output / "encoder.safetensors").read_bytes() == b"as it is"
    size = (output / "model.safetensors").stat().st_size / report["parameters"]
    assert size == pytest.approx(bytes_per_weight, rel=0.1)
    theirs, ours = (load_flexislm(folder, dtype=torch.float32) for folder in (model, output))
    for name, weight in theirs.named_parameters():
        assert torch.allclose(weight, ours.get_parameter(name), atol=0.02, rtol=0.01), name


def test_a_broken_model_is_one_line_and_exit_code_two(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    code, text = run(str(model), str(tmp_path / "out"))
    assert code == 2 and "download the weights into it" in text and len(text.strip().splitlines()) == 1


def test_a_model_is_not_written_over_itself(model: Path) -> None:
    code, text = run(str(model), str(model))
    assert code == 2 and "written over itself" in text
