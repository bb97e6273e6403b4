"""Where networks lie, and what is refused in one line before a weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kernels import paged_attention, step_runner
from models.checkpoints.hub import resolve_model
from models.errors import CheckpointError
from tests.support.official import save_official
from worker import placement
from worker.loading import ModelError, load_model
from worker.placement import place


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_official(tmp_path_factory.mktemp("placed") / "toy")


@pytest.fixture
def directory(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in (paged_attention.CHOICE, step_runner.CHOICE, step_runner.LARGEST):
        monkeypatch.delenv(variable, raising=False)
    shutil.copytree(saved, tmp_path / "toy")
    return tmp_path / "toy"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Turing card of 16 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Quadro RTX 5000")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (16_000_000_000, 16_000_000_000))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)


def state_dtype(directory: Path, name: str) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_dtype": name}))


def refused(directory: Path, sessions: int = 2) -> str:
    with pytest.raises(CheckpointError) as caught:
        place(resolve_model(str(directory)), sessions)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_gpu_networks_are_packed_and_steps_are_run_as_they_stand(directory: Path) -> None:
    found = place(resolve_model(str(directory)), 2)
    assert (found.device.type, found.packed, found.back_ends.steps) == ("cpu", True, "eager")
    assert found.back_ends.attention.name == "sdpa"
    assert not place(resolve_model("embedded"), 2).packed


@pytest.mark.usefixtures("card")
def test_a_card_without_bfloat16_is_told_of_float16(directory: Path) -> None:
    state_dtype(directory, "bfloat16")
    assert "set torch_dtype to float16" in refused(directory)
    state_dtype(directory, "float16")
    found = place(resolve_model(str(directory)), 2)
    assert (found.device.type, found.dtype) == ("cuda", torch.float16)
    assert (found.back_ends.attention.name, found.back_ends.steps) == ("sdpa", "graphs")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (paged_attention.CHOICE, "cutlass", "no attention back end; take auto"),
        (paged_attention.CHOICE, "flash-attn", "needs a GPU"),
        (step_runner.CHOICE, "graphs", "needs a GPU"),
        (step_runner.LARGEST, "0", "take 1 to 256"),
    ],
)
@pytest.mark.parametrize("model", ["embedded", "official"])
def test_back_ends_that_cannot_be_are_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str, model: str
) -> None:
    monkeypatch.setenv(variable, value)
    read: list[str] = []
    monkeypatch.setattr("worker.loading.load_flexislm", lambda *args, **rest: read.append("weights"))
    with pytest.raises(ModelError, match=says) as caught:
        load_model("embedded" if model == "embedded" else str(directory))
    assert "\n" not in str(caught.value) and not read


def test_slots_that_do_not_fit_are_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda: 50_000_000)
    assert "lower model.slots" in refused(directory, 40)


def test_a_bucket_that_does_not_fit_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[float] = []
    monkeypatch.setattr(placement, "_check_memory", lambda directory, bytes_, *rest: needed.append(bytes_))
    place(resolve_model(str(directory)), 40)
    monkeypatch.setattr(placement, "free_memory", lambda: needed[0] + 20_000_000)
    said = refused(directory, 40)
    assert said.startswith("a step of 64 rows needs") and "set AGOGIC_LARGEST_BUCKET=" in said
    monkeypatch.setenv(step_runner.LARGEST, said.partition("AGOGIC_LARGEST_BUCKET=")[2].split()[0])
    place(resolve_model(str(directory)), 40)
