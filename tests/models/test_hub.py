"""Where a model's files are found: local copies first, then the hub, and one sentence where neither has them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from agent.config import load_config
from models.checkpoints.hub import EMBEDDED_DIRECTORY, resolve_codec, resolve_model
from models.errors import CheckpointError
from tests.support.golden import CHECKOUT

REPOSITORIES = {
    "FlexiSLM/FlexiSLM-7B-Stage2": [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "README.md",
    ],
    "FlexiSLM/Qwen2_5-Omni-Audio_Encoder": ["config.json", "model.safetensors", "model.safetensors.index.json"],
    "FunAudioLLM/SenseVoiceSmall": ["model.pt", "am.mvn", "example/en.mp3"],
    "jiaqili3/flexicodec": [
        "12hz_v1_half_config.yaml",
        "12hz_v1_half.safetensors",
        "nartts_flexicodec_only.safetensors",
        "nartts.safetensors",
        "artts.safetensors",
    ],
    "amphion/dualcodec-tts": ["vocos_emilia.safetensors", "other.pt"],
}


class FakeHub:
    """A hub of empty files, which copies into a cache what the patterns ask for."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.asked: list[tuple[str, str | None, bool]] = []
        self.failure: Exception | None = None

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        self.asked.append((repo_id, revision, local_files_only))
        if self.failure is not None:
            raise self.failure
        folder = self.cache / repo_id.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        for name in REPOSITORIES[repo_id]:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (folder / name).touch()
        return str(folder)

    def repos(self) -> set[str]:
        return {repo for repo, _, _ in self.asked}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_the_embedded_model_needs_no_hub(hub: FakeHub) -> None:
    files = resolve_model("embedded")
    assert files.directory == EMBEDDED_DIRECTORY
    assert files.companions is None
    assert hub.asked == []


def test_a_hub_id_brings_everything_the_model_needs(hub: FakeHub) -> None:
    files = resolve_model("FlexiSLM/FlexiSLM-7B-Stage2@abc123")
    assert ("FlexiSLM/FlexiSLM-7B-Stage2", "abc123", False) in hub.asked
    assert hub.repos() == set(REPOSITORIES)
    assert not (files.directory / "README.md").exists()
    parts = files.companions
    assert parts is not None
    paths = [parts.flow, parts.vocoder, parts.codec.codec, parts.codec.cmvn, parts.codec.semantic, parts.codec.config]
    assert [path.name for path in paths if path is not None and path.exists()] == [
        "nartts.safetensors",
        "vocos_emilia.safetensors",
        "nartts_flexicodec_only.safetensors",
        "am.mvn",
        "model.pt",
        "12hz_v1_half_config.yaml",
    ]
    assert (parts.audio_encoder / "model.safetensors.index.json").exists()
    assert not list(hub.cache.rglob("artts.safetensors"))


def lay_out(root: Path) -> Path:
    """A checkpoint with its companions beside it, as the official instructions place them."""
    for folder, names in (
        ("FlexiSLM-7B-Stage2", REPOSITORIES["FlexiSLM/FlexiSLM-7B-Stage2"]),
        ("Qwen2_5-Omni-Audio_Encoder", REPOSITORIES["FlexiSLM/Qwen2_5-Omni-Audio_Encoder"]),
        ("SenseVoiceSmall", ["model.pt", "am.mvn"]),
        ("FlexiCodec", ["nartts_flexicodec_only.safetensors", "nartts.safetensors", "vocos_emilia.safetensors"]),
    ):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root / "FlexiSLM-7B-Stage2"


def test_local_copies_are_used_before_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint = lay_out(tmp_path / "models")
    parts = resolve_model(str(checkpoint)).companions
    assert hub.asked == []
    assert parts is not None
    assert parts.audio_encoder == tmp_path / "models" / "Qwen2_5-Omni-Audio_Encoder"
    assert parts.vocoder == tmp_path / "models" / "FlexiCodec" / "vocos_emilia.safetensors"
    assert parts.codec.config is None
    (parts.vocoder).unlink()
    parts = resolve_model(str(checkpoint)).companions
    assert hub.repos() == {"amphion/dualcodec-tts"}
    assert parts is not None
    assert parts.vocoder.is_relative_to(hub.cache)


def test_offline_only_looks_into_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint = lay_out(tmp_path / "models")
    (tmp_path / "models" / "SenseVoiceSmall" / "am.mvn").unlink()
    hub.failure = errors.LocalEntryNotFoundError("not there")
    with pytest.raises(
        CheckpointError, match=r"FunAudioLLM/SenseVoiceSmall is not in the cache and may not be fetched"
    ):
        resolve_model(str(checkpoint), offline=True)
    assert hub.asked == [("FunAudioLLM/SenseVoiceSmall", None, True)]


def test_the_codec_alone(hub: FakeHub, tmp_path: Path) -> None:
    newest = resolve_codec("jiaqili3/flexicodec@v1")
    assert newest.codec.name == "12hz_v1_half.safetensors"
    assert ("jiaqili3/flexicodec", "v1", False) in hub.asked
    spoken = resolve_codec("FlexiSLM/FlexiSLM-7B-Stage2")
    assert spoken.codec.name == "nartts_flexicodec_only.safetensors"
    assert "FlexiSLM/FlexiSLM-7B-Stage2" not in hub.repos()
    hub.asked.clear()
    checkpoint = lay_out(tmp_path / "models")
    assert resolve_codec(str(checkpoint)).semantic == tmp_path / "models" / "SenseVoiceSmall" / "model.pt"
    assert resolve_codec(str(tmp_path / "models" / "FlexiCodec")).codec.parent.name == "FlexiCodec"
    assert hub.asked == []


RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached; go online once, or put it beside"),
        (errors.RepositoryNotFoundError("x", response=RESPONSE), "there is no hub repository ORG/NAME"),
        (errors.RevisionNotFoundError("x", response=RESPONSE), "ORG/NAME has no revision v9"),
        (errors.GatedRepoError("x", response=RESPONSE), "ORG/NAME@v9 asks for a licence"),
        (OSError("No space left on device"), r"could not be fetched \(No space left on device\); try again"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: FakeHub, failure: Exception, message: str) -> None:
    hub.failure = failure
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve_model("ORG/NAME@v9")
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    for spec in ("nothing", "./missing/folder", "/missing", "a/b/c"):
        with pytest.raises(CheckpointError, match="is no model"):
            resolve_model(spec)
    with pytest.raises(CheckpointError, match="holds no config"):
        resolve_model(str(tmp_path))
    assert hub.asked == []


def test_a_repository_without_the_expected_file_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPOSITORIES, "amphion/dualcodec-tts", ["other.pt"])
    with pytest.raises(CheckpointError, match=r"amphion/dualcodec-tts lacks vocos_emilia\.safetensors"):
        resolve_model("FlexiSLM/FlexiSLM-7B-Stage2")


@pytest.mark.parametrize("profile", ["flexislm-7b", "flexislm-0.5b"])
def test_the_shipped_profiles_name_hub_models(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, profile: str) -> None:
    spec = load_config(CHECKOUT / "configs" / f"{profile}.toml").model.spec
    monkeypatch.setitem(REPOSITORIES, spec, ["config.json"])
    assert resolve_model(spec).companions is not None
    assert spec in hub.repos()
