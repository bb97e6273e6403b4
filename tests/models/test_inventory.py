"""What a model consists of and what to expect of it: nothing is read, nothing is fetched, every gap is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent.cli import doctor
from agent.cli.main import build
from models.checkpoints.expected_speed import EMBEDDED_WORK, Machine, expected_speed, needed_bytes, official_work
from models.checkpoints.flexislm_checkpoint import load_flexislm
from models.checkpoints.hub import AUDIO_ENCODER, FLOW, VOCODER
from models.checkpoints.inventory import Sizes, take_inventory
from models.checkpoints.omni_checkpoint import load_omni_encoder
from tests.support.official import save_official

SEVEN_BILLION = Sizes(
    language=8_300_000_000, step=7_700_000_000, cache_values=80_000, encoder=640_000_000, flow=170_000_000,
    vocoder=14_000_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_official(tmp_path_factory.mktemp("official") / "toy")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_complete_model_has_no_problems_and_is_counted(directory: Path) -> None:
    import torch

    inventory = take_inventory(str(directory))
    assert inventory.problems == () and inventory.sizes is not None
    slm = load_flexislm(directory, dtype=torch.float32)
    assert inventory.sizes.language == sum(parameter.numel() for parameter in slm.parameters())
    merger = sum(parameter.numel() for parameter in slm.input_merging_transformer.parameters())
    assert 0 < inventory.sizes.step < inventory.sizes.language - merger
    encoder = load_omni_encoder(directory / AUDIO_ENCODER.folder, dtype=torch.float32)
    assert inventory.sizes.encoder == sum(parameter.numel() for parameter in encoder.parameters())
    assert inventory.sizes.cache_values == 2 * 2 * 2 * 16 + 2 * 3 * 4 * 12
    assert inventory.file_bytes > 4 * inventory.sizes.language


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build("doctor"), ["doctor", *map(str, arguments)])


def findings(result: Result) -> dict[str, dict[str, str]]:
    return {finding["what"]: finding for finding in json.loads(result.stdout.strip().splitlines()[-1])["findings"]}


def test_doctor_names_every_part_that_is_missing_at_once(directory: Path, tmp_path: Path) -> None:
    holes = tmp_path / "holes"
    shutil.copytree(directory, holes)
    shutil.rmtree(holes / AUDIO_ENCODER.folder)
    (holes / VOCODER.folder / VOCODER.files[0]).unlink()
    (holes / "prompt.wav").unlink()
    result = run("--model", holes, "--json")
    found = findings(result)
    assert result.exit_code == 1
    assert found["audio encoder"]["verdict"] == found["vocoder"]["verdict"] == "missing"
    assert "hf download FlexiSLM/Qwen2_5-Omni-Audio_Encoder" in found["audio encoder"]["detail"]
    assert "hf download amphion/dualcodec-tts" in found["vocoder"]["detail"]
    assert found["flow decoder"]["verdict"] == "ok" and FLOW.files[0] in found["flow decoder"]["detail"]
    assert found["voice"]["verdict"] == "note" and "--voice" in found["voice"]["mend"]
    assert "speed" not in found


def test_doctor_says_what_fits_and_how_fast(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(run("--model", directory, "--json"))
    assert found["model's memory"]["verdict"] == found["voice"]["verdict"] == "ok"
    assert "ms a step" in found["speed"]["detail"]
    monkeypatch.setattr("models.checkpoints.expected_speed.free_memory", lambda: 1_000_000)
    result = run("--model", directory, "--json")
    assert result.exit_code == 1 and findings(result)["model's memory"]["verdict"] == "too big"


def test_doctor_of_no_model(tmp_path: Path) -> None:
    result = run("--model", tmp_path / "nothing", "--json")
    assert result.exit_code == 1 and "is no model" in findings(result)["model"]["detail"]
    uncached = run("--model", "ORG/NAME", "--json")
    found = findings(uncached)
    assert uncached.exit_code == 1 and "hf download ORG/NAME" in found["language model"]["detail"]
    for what, repository in (("codec", "jiaqili3/flexicodec"), ("vocoder", "amphion/dualcodec-tts")):
        assert found[what]["verdict"] == "missing" and f"hf download {repository}" in found[what]["detail"]


def test_speed_is_memory_for_steps_and_arithmetic_for_sound() -> None:
    gpu = Machine("a GPU", True, 80 * 10**9, 3e12, 4e14)
    laptop = Machine("a laptop", False, 16 * 10**9, 4e10, 2e11)
    fast, slow = (expected_speed(SEVEN_BILLION, machine, official_work(machine.gpu)) for machine in (gpu, laptop))
    assert fast.step_ms == pytest.approx(2 * 7.7e9 / 3e12 * 1e3)
    assert slow.step_ms == pytest.approx(2 * 7.7e9 / 4e10 * 1e3)
    assert fast.answer_rtf < 0.2 and fast.first_audio_ms < 500
    assert slow.answer_rtf > 1
    work = official_work(False)
    assert needed_bytes(SEVEN_BILLION, work, 1) > laptop.free_bytes
    per_caller = needed_bytes(SEVEN_BILLION, work, 2) - needed_bytes(SEVEN_BILLION, work, 1)
    assert per_caller == 2 * 4096 * SEVEN_BILLION.cache_values
    assert EMBEDDED_WORK.flow_steps < work.flow_steps


def test_every_verdict_can_be_shown() -> None:
    doctor._show([doctor.Finding("a", verdict, "b", "c") for verdict in ("ok", "note", "missing", "too big")])
