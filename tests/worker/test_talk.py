"""`agogic talk`, `eval` and `train` from the command line: any file, an answer, one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from agent.cli.main import build
from tests.support.report_shape import shaped
from tests.worker.tiny import save

CLIPS = Path(__file__).resolve().parents[1] / "speech"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never come to an end by themselves."""
    monkeypatch.setattr("worker.pipeline.MAX_STEPS", 12)


def run(verb: str, *arguments: object) -> Result:
    return CliRunner().invoke(build(verb), [verb, *map(str, arguments)])


def refused(result: Result) -> str:
    """The one sentence of an error."""
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    return line


def tone(path: Path, rate: int, channels: int = 1, seconds: float = 1.0, subtype: str | None = None) -> Path:
    wave = 0.1 * np.sin(np.arange(int(rate * seconds)) * 0.1)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate, subtype=subtype)
    return path


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [
        ("a.wav", 16_000, 1, "PCM_16"),
        ("b.wav", 44_100, 2, "FLOAT"),
        ("c.wav", 8_000, 1, "ULAW"),
        ("d.flac", 48_000, 2, "PCM_24"),
        ("e.opus", 48_000, 1, None),
        ("f.wav", 11_025, 6, "PCM_U8"),
    ],
)
def test_any_sound_file_is_a_question(
    model: str, tmp_path: Path, name: str, rate: int, channels: int, subtype: str | None
) -> None:
    question, reply = tmp_path / name, tmp_path / "reply.wav"
    if subtype is None:
        soundfile.write(question, np.zeros(rate), rate, format="OGG", subtype="OPUS")
    else:
        tone(question, rate, channels, subtype=subtype)
    result = run("talk", question, "-o", reply, "--model", model, "--input-rate", 8, "--output-rate", 6.25, "--json")
    assert result.exit_code == 0, result.output
    report = shaped("talk", json.loads(result.output.strip().splitlines()[-1]))
    assert abs(report["question_s"] - 1.0) < 0.01
    assert report["requested_input_hz"] == 8 and report["requested_output_hz"] == 6.25
    assert 2 <= report["realised_input_hz"] <= 10, "one second is short for the rate to settle, silence owes the most"
    sound = soundfile.info(reply)
    assert sound.samplerate == 24_000 and sound.subtype == "PCM_16"
    assert abs(sound.frames / 24_000 - report["answer_s"]) < 0.001
    assert sum(frames for _, frames in report["tokens"]) * 0.08 == pytest.approx(report["answer_s"])


@pytest.mark.parametrize(
    ("task", "heard", "printed"),
    [
        ("s2t", "one latte please", ["you:    one latte please", "agogic: "]),
        ("s2t", "", ["agogic: "]),
        ("asr", "one latte please", ["you:    one latte please"]),
    ],
)
def test_what_was_said_is_printed_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, heard: str, printed: list[str]
) -> None:
    monkeypatch.setattr("worker.ears.block.BlockHearing.transcript", heard)
    result = run("talk", tone(tmp_path / "q.wav", 16_000), "--model", model, "--task", task)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, printed, strict=True)] == printed


def test_a_sentence_to_be_spoken_is_printed_as_it_was_written(model: str) -> None:
    result = run("talk", "one latte", "--model", model, "--task", "tts")
    assert result.output.splitlines()[0] == "you:    one latte"


@pytest.mark.parametrize("task", ["t2t", "t2s", "tts"])
def test_written_tasks(model: str, task: str) -> None:
    result = run("talk", "one latte", "--model", model, "--task", task, "--json")
    assert result.exit_code == 0, result.output
    report = shaped("talk", json.loads(result.output.strip().splitlines()[-1]))
    assert (report.get("answer_s", 0) > 0) == (task != "t2t")


def test_no_sound_file(model: str, tmp_path: Path) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("this is no sound")
    assert "no audio that can be read" in refused(run("talk", text, "--model", model))
    assert "does not exist" in refused(run("talk", tmp_path / "none.wav", "--model", model))
    assert "does not exist or is no file" in refused(run("talk", tmp_path, "--model", model))


def test_empty_and_far_too_long_files(model: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), 16_000)
    assert "holds no sound" in refused(run("talk", empty, "--model", model))
    (tmp_path / "nothing.wav").write_bytes(b"")
    assert "no audio" in refused(run("talk", tmp_path / "nothing.wav", "--model", model))
    long = tone(tmp_path / "long.flac", 8_000, seconds=601)
    assert "601 s; a question may last 600 s" in refused(run("talk", long, "--model", model))


def test_digital_silence_is_written_down_as_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.ears.block.BlockHearing.transcript", "one latte please")
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    result = run("talk", tmp_path / "silence.wav", "--model", model, "--task", "asr", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.strip().splitlines()[-1])["transcript"] == ""


def test_broken_samples_are_heard_as_silence(model: str, tmp_path: Path) -> None:
    broken = tmp_path / "nan.wav"
    soundfile.write(broken, np.array([np.nan, np.inf, -np.inf, 9.0] * 4000), 16_000, subtype="FLOAT")
    assert run("talk", broken, "--model", model, "--task", "s2t").exit_code == 0


def test_model_that_is_not_there_and_reply_that_cannot_be_written(model: str, tmp_path: Path) -> None:
    question = tone(tmp_path / "q.wav", 16_000)
    assert "none" in refused(run("talk", question, "--model", tmp_path / "none"))
    assert "cannot write" in refused(run("talk", question, "--model", model, "-o", tmp_path / "no" / "reply.wav"))


@pytest.mark.parametrize("rate", ["3", "13", "fast"])
def test_rates_out_of_range_are_refused(model: str, rate: str) -> None:
    result = run("talk", "hello", "--task", "t2t", "--model", model, "--output-rate", rate)
    assert result.exit_code == 2


def test_eval_barista_counts_only_what_is_right_in_every_slot(model: str) -> None:
    result = run("eval", "barista", "--clips", CLIPS, "--labels", CLIPS / "labels.json", "--model", model, "--json")
    assert result.exit_code == 0, result.output
    report = shaped("eval barista", json.loads(result.output.strip().splitlines()[-1]))
    assert report["clips"] == 10 and report["accepted"] == 0, "random weights understand nothing"
    assert abs(report["realised_input_hz"] / 12.5 - 1) < 0.05


def test_eval_barista_without_clips(model: str, tmp_path: Path) -> None:
    arguments = ("--labels", CLIPS / "labels.json", "--model", model)
    assert "none of the 10" in refused(run("eval", "barista", "--clips", tmp_path, *arguments))
    arguments = ("--clips", CLIPS, "--model", model)
    assert "no table of labels" in refused(run("eval", "barista", "--labels", CLIPS / "README.md", *arguments))


def test_train_names_its_stages_and_missing_files() -> None:
    assert "choose one of" in refused(run("train", "nothing", "--config", CLIPS / "labels.json"))
    assert "does not exist" in refused(run("train", "codec", "--config", "nowhere.toml"))
