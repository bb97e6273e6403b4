"""An official checkpoint with all its companions, end to end: what the original said to the same question, in sound."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

from agent.cli.main import build
from agent.config import parse_config
from agent.server.worker_process import worker_command
from models.checkpoints.hub import AUDIO_ENCODER, FLOW, VOCODER, VOICE_CODEC
from streaming.hearing.log_mel import whisper_log_mel
from tests.support.golden import golden_file
from tests.support.official import question, save_official
from worker.ears.omni import CausalOmniHearing, OmniEar, OmniHearing
from worker.loading import ModelError, load_model
from worker.parts import Pcm
from worker.pipeline import Pipeline
from worker.turn import Turn, TurnSettings, ask_by_text, ask_by_voice, write_down

PCM = question().numpy()
STEPS, WRITTEN_STEPS = 60, 40
"""How long the recorded runs were allowed to be."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Voices are cached in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_official(tmp_path_factory.mktemp("official") / "toy")


@pytest.fixture(scope="module")
def model(directory: Path) -> Pipeline:
    return load_model(str(directory))


def recorded(variant: str, run: str) -> dict[str, object]:
    return json.loads(golden_file("flexislm", f"{variant}/traces.json").read_text())[run]


def ask(model: Pipeline, hz: float) -> Turn:
    return ask_by_voice(model, PCM, TurnSettings(hz, hz, max_output_tokens=STEPS))


@pytest.mark.parametrize("hz", [12.5, 6.25])
def test_it_says_what_the_original_said(model: Pipeline, hz: float) -> None:
    turn = ask(model, hz)
    run = recorded("stage2", f"s2s_{hz}hz_greedy")
    assert turn.text == str(run["text"]).strip()
    assert turn.encoded is not None and turn.encoded.frames == 77
    assert len(turn.pcm) == 1920 * sum(token.duration_frames for token in turn.tokens) > 0
    assert np.isfinite(turn.pcm).all() and turn.pcm.std() > 0


def test_the_likeliest_tokens_are_the_recorded_ones(model: Pipeline) -> None:
    greedy = Pipeline(dataclasses.replace(model.networks, draws=False), 1)
    spoken = [(token.code, token.duration_frames) for token in ask(greedy, 8.0).tokens]
    pairs = [tuple(pair) for pair in recorded("stage2", "s2s_8.0hz_greedy")["pairs"]]
    assert spoken == [(code, min(frames, 8)) for code, frames in pairs if frames]


@pytest.mark.parametrize("variant", ["stage2", "stage3"])
def test_it_writes_what_the_original_wrote(tmp_path: Path, variant: str) -> None:
    model = load_model(str(save_official(tmp_path / variant, variant, prompt=False)), speaks=False)
    settings = TurnSettings(12.5, speech=False, max_output_tokens=WRITTEN_STEPS)
    assert ask_by_voice(model, PCM, settings).text == recorded(variant, "text_only_s2t")["text"]
    heard = write_down(model, PCM, TurnSettings(8.0, max_output_tokens=WRITTEN_STEPS))
    assert heard.transcript == recorded(variant, "text_only_asr")["text"]


def test_stage_3_thinks_along_with_its_speech(tmp_path: Path) -> None:
    model = load_model(str(save_official(tmp_path / "stage3", "stage3")))
    greedy = Pipeline(dataclasses.replace(model.networks, draws=False), 1)
    turn, run = ask(greedy, 12.5), recorded("stage3", "s2s_12.5hz_greedy")
    assert turn.text == str(run["text"]).strip()
    pairs = [tuple(pair) for pair in run["pairs"]]
    assert [(token.code, token.duration_frames) for token in turn.tokens] == [
        (code, min(frames, 8)) for code, frames in pairs if frames
    ]


def loudest_first() -> Pcm:
    pcm = np.tile(PCM, 2)
    pcm[:200] = np.where(np.arange(200) % 7 < 3, 1.0, -1.0)
    return pcm


@pytest.mark.parametrize(
    ("pcm", "encoded_at_end"), [(loudest_first(), 1), (np.concatenate((0.01 * PCM, PCM)), 3)], ids=["falls", "rises"]
)
def test_encoding_while_the_user_speaks_gives_what_the_whole_clip_gives(
    model: Pipeline, pcm: Pcm, encoded_at_end: int
) -> None:
    ear = model.networks.ear
    assert isinstance(ear, OmniEar)
    hearing, encoded = OmniHearing(ear, 8.0), []
    encode = ear.encode
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ear, "encode", lambda blocks: encoded.append(len(blocks)) or encode(blocks))
        for piece in np.array_split(pcm, 37):
            assert not len(hearing.hear(piece))
        assert len(encoded) == 3
        merged = hearing.finish()
        whole = ear.slm.merge(ear.encoder(whisper_log_mel(torch.from_numpy(pcm))[None])[0], 8.0)
    assert len(encoded) - 3 == encoded_at_end, "the open block, and those that a later sound has lifted"
    torch.testing.assert_close(merged, whole.embeddings, rtol=1e-3, atol=1e-4)
    assert hearing.groups == whole.groups.count


def test_causal_weights_are_merged_while_the_user_speaks(tmp_path: Path, directory: Path) -> None:
    causal = tmp_path / "causal"
    shutil.copytree(directory, causal)
    edit(causal / "config.json", input_merging_transformer_causal=True)
    model = load_model(str(causal))
    hearing = model.networks.ear.begin(8.0)
    assert isinstance(hearing, CausalOmniHearing)
    with torch.inference_mode():
        early = hearing.hear(PCM)
        late = hearing.finish()
    assert len(early) > 5 and len(early) + len(late) == hearing.groups
    assert hearing.frames == 77
    assert ask(model, 8.0).stats.text_tokens


def test_a_voice_is_made_once(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_model(str(directory))
    assert len(list((tmp_path / "agogic" / "voices").iterdir())) == 1
    monkeypatch.setattr("worker.voices.official.load_flexicodec", lambda files: pytest.fail("the codec was read again"))
    load_model(str(directory))


@pytest.mark.parametrize("speech", [True, False])
def test_it_answers_what_is_written(model: Pipeline, speech: bool) -> None:
    turn = ask_by_text(model, "hello", TurnSettings(speech=speech, max_output_tokens=12))
    assert turn.stats.text_tokens and (len(turn.pcm) > 0) == bool(turn.tokens) and bool(turn.tokens) <= speech


def test_a_voice_is_asked_for_before_anything_is_read(tmp_path: Path) -> None:
    mute = save_official(tmp_path / "mute", prompt=False)
    with pytest.raises(ModelError, match=r"give one of 3 to 10 s with --voice"):
        load_model(str(mute))
    short = tmp_path / "short.wav"
    soundfile.write(short, PCM[:8000], 16_000)
    with pytest.raises(ModelError, match="record 3 to 10 s"):
        load_model(str(mute), voice_prompt=short)


def edit(path: Path, **changes: object) -> None:
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.json",
        f"{AUDIO_ENCODER.folder}/model-00001-of-00001.safetensors",
        f"{VOICE_CODEC.folder}/{VOICE_CODEC.files[0]}",
        "SenseVoiceSmall/model.pt",
        f"{FLOW.folder}/{FLOW.files[0]}",
        f"{VOCODER.folder}/{VOCODER.files[0]}",
    ],
)
def test_a_damaged_file_is_named_before_anything_is_read(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(directory, damaged)
    truncate(damaged / name)
    monkeypatch.setattr("worker.loading.load_flexislm", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ModelError) as error:
        load_model(str(damaged))
    assert Path(name).name in str(error.value) and "\n" not in str(error.value)


def test_too_little_memory_is_said_before_anything_is_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.placement.free_memory", lambda: 10_000_000)
    monkeypatch.setattr("worker.loading.load_flexislm", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match=r"0\.01 GB free|0\.0 GB free"):
        load_model(str(directory))


def talk(*arguments: object) -> Result:
    return CliRunner().invoke(build("talk"), ["talk", *map(str, arguments)])


def test_talk_from_the_command_line(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.MAX_STEPS", STEPS)
    clip, reply = tmp_path / "q.wav", tmp_path / "reply.wav"
    soundfile.write(clip, PCM, 16_000, subtype="FLOAT")
    done = talk(clip, "-o", reply, "--model", directory, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output.strip().splitlines()[-1])
    assert report["text"] == "It is half past nine"
    assert soundfile.info(reply).frames / 24_000 == pytest.approx(report["answer_s"], abs=0.001)
    written = talk(clip, "--model", directory, "--task", "asr", "--input-rate", 8)
    assert written.exit_code == 0 and str(recorded("stage2", "text_only_asr")["text"]) in written.output


def test_talk_without_a_voice_is_refused_in_one_sentence(tmp_path: Path) -> None:
    mute = save_official(tmp_path / "mute", prompt=False)
    refused = talk("hello", "--task", "t2s", "--model", mute)
    (line,) = refused.output.strip().splitlines()
    assert refused.exit_code == 2 and "--voice" in line
    assert talk("hello", "--task", "t2t", "--model", mute).exit_code == 0


@pytest.mark.parametrize(
    ("voice", "reason"),
    [([], "give one of 3 to 10 s with --voice"), (["--voice", "none.wav"], "none.wav does not exist")],
)
def test_serve_ends_with_the_same_sentence(tmp_path: Path, voice: list[str], reason: str) -> None:
    mute = save_official(tmp_path / "mute", prompt=False)
    command = [sys.executable, "-m", "agent.cli.main", "serve", "--port", "0", "--model", str(mute), *voice]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and reason in ended.stderr and "Traceback" not in ended.stderr


def test_a_configured_voice_reaches_the_worker() -> None:
    config = parse_config('[model]\nspec = "ORG/NAME"\nvoice = "me.wav"')
    command = worker_command(config.model, "info")
    assert command[command.index("--voice") + 1] == "me.wav"
    assert "--voice" not in worker_command(parse_config("").model, "info")


def test_configured_places_reach_the_worker() -> None:
    command = worker_command(parse_config("[model]\nslots = 12").model, "info")
    assert command[command.index("--slots") + 1] == "12"
    assert "--slots" not in worker_command(parse_config("").model, "info")
