"""Models on disk: what is loaded is what was saved, and whatever is wrong is one sentence that names the file."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.worker.tiny import pipeline, save
from worker.loading import ModelError, load_model
from worker.turn import TurnSettings, ask_by_text, ask_by_voice


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "tiny")


def test_saved_model_answers_like_the_one_in_memory(directory: Path) -> None:
    pcm = (np.random.default_rng(0).standard_normal(32_000) * 0.1).astype(np.float32)
    settings = TurnSettings(max_output_tokens=12)
    loaded = load_model(str(directory))
    assert ask_by_text(loaded, "one latte", settings).text == ask_by_text(pipeline(), "one latte", settings).text
    # The encoder is stored in eight bits, so only what it hears is compared.
    assert ask_by_voice(loaded, pcm, settings).encoded.frames == 50  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "encoder.safetensors", "flow.safetensors"])
def test_missing_file_is_named(directory: Path, tmp_path: Path, name: str) -> None:
    damaged = _copy(directory, tmp_path)
    (damaged / name).unlink()
    with pytest.raises(ModelError) as error:
        load_model(str(damaged))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "encoder.safetensors", "vocoder.safetensors"]
)
def test_truncated_file_is_named(directory: Path, tmp_path: Path, name: str) -> None:
    damaged = _copy(directory, tmp_path)
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[: len(content) // 3])
    with pytest.raises(ModelError) as error:
        load_model(str(damaged))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_no_directory_at_all() -> None:
    with pytest.raises(ModelError, match="/nowhere/model"):
        load_model("/nowhere/model")


def test_worker_process_with_a_bad_model_ends_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worker", "--socket", str(tmp_path / "w"), "--model", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and str(tmp_path) in ended.stderr


def test_worker_process_starts_quickly_and_stops_on_request(directory: Path, tmp_path: Path) -> None:
    address = tmp_path / "w"
    command = [sys.executable, "-m", "worker", "--socket", str(address), "--model", str(directory)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not address.exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(address))
            assert len(peer.recv(4)) == 4
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
        assert "torch" in loaded, "the worker is where torch lives"
    finally:
        process.terminate()
    assert process.wait(10) == 0


def _copy(directory: Path, target: Path) -> Path:
    copied = target / "model"
    copied.mkdir()
    for file in directory.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    return copied
