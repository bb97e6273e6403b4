"""From a model's name to files on disk: the embedded model, a directory, or a hub id, with all that belongs to it.

A FlexiSLM checkpoint alone cannot hear or speak: it needs the audio encoder, FlexiCodec with SenseVoice, the flow
decoder and the vocoder. They are looked for beside and inside the checkpoint's directory, as the official instructions
lay them out, and fetched from the hub where they are not there. Downloads are resumed, show their progress and go into
the hub's cache; `offline` uses only what is there already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from models.checkpoints.flexicodec_checkpoint import CodecFiles
from models.errors import CheckpointError

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path(__file__).parents[1] / "embedded"
EMBEDDED_CODEC = "codec.safetensors"

_HUB_ID = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True)
class HubFolder:
    """Files of a hub repository, and the folder that a local copy of them is expected in."""

    repo: str
    files: tuple[str, ...]
    folder: str


AUDIO_ENCODER = HubFolder(
    "FlexiSLM/Qwen2_5-Omni-Audio_Encoder", ("config.json", "*.safetensors*"), "Qwen2_5-Omni-Audio_Encoder"
)
SENSEVOICE = HubFolder("FunAudioLLM/SenseVoiceSmall", ("model.pt", "am.mvn"), "SenseVoiceSmall")
VOICE_CODEC = HubFolder(
    "jiaqili3/flexicodec", ("nartts_flexicodec_only.safetensors", "12hz_v1_half_config.yaml"), "FlexiCodec"
)
"""The codec that FlexiSLM and the flow decoder were trained with; an older one than `BEST_CODEC`."""
BEST_CODEC = HubFolder("jiaqili3/flexicodec", ("12hz_v1_half.safetensors", "12hz_v1_half_config.yaml"), "FlexiCodec")
FLOW = HubFolder("jiaqili3/flexicodec", ("nartts.safetensors",), "FlexiCodec")
VOCODER = HubFolder("amphion/dualcodec-tts", ("vocos_emilia.safetensors",), "FlexiCodec")
CHECKPOINT_FILES = ("*.json", "*.safetensors", "merges.txt", "vocab.json")


@dataclass(frozen=True)
class Companions:
    """What a FlexiSLM checkpoint needs beside itself."""

    audio_encoder: Path
    codec: CodecFiles
    flow: Path
    vocoder: Path


@dataclass(frozen=True)
class ModelFiles:
    """`companions` is None for a model that brings everything in its own directory, as the embedded one does."""

    name: str
    directory: Path
    companions: Companions | None


def resolve_model(spec: str, *, offline: bool = False) -> ModelFiles:
    """The files of 'embedded', of a directory, or of a hub id ("ORG/NAME" or "ORG/NAME@REVISION").

    Raises `CheckpointError` with one sentence where something is missing and cannot be fetched.
    """
    directory = find_checkpoint(spec, offline=offline)
    companions = None if is_embedded(spec, directory) else find_companions(directory, offline=offline)
    return ModelFiles(spec, directory, companions)


def find_checkpoint(spec: str, *, offline: bool = False) -> Path:
    """The directory of a model's own files, whether or not its companions are there."""
    if spec == EMBEDDED:
        return EMBEDDED_DIRECTORY
    directory = Path(spec)
    if directory.is_dir():
        if not (directory / "config.json").exists():
            raise CheckpointError(f"{directory} holds no config.json; give the directory of a checkpoint")
        return directory
    repo, revision = _hub_id(spec)
    downloaded = _download(HubFolder(repo, CHECKPOINT_FILES, repo.split("/")[1]), revision, offline)
    if not (downloaded / "config.json").exists():
        raise CheckpointError(f"the hub repository {repo} holds no config.json; it is no checkpoint")
    return downloaded


def is_embedded(spec: str, directory: Path) -> bool:
    """Whether a model brings everything in its own directory, as the embedded one does."""
    return spec == EMBEDDED or (directory / EMBEDDED_CODEC).exists()


def resolve_codec(spec: str, *, offline: bool = False) -> CodecFiles:
    """The official codec of a directory or hub id.

    The codec's own repository gives its newest codec, anything else the one that FlexiSLM speaks.
    """
    directory = Path(spec)
    if directory.is_dir():
        for codec in (BEST_CODEC, VOICE_CODEC):
            if (directory / codec.files[0]).exists():
                return _codec_files(directory, codec, directory, offline)
        return find_codec(directory, VOICE_CODEC, offline)
    repo, revision = _hub_id(spec)
    if repo != BEST_CODEC.repo:
        return find_codec(None, VOICE_CODEC, offline)
    return _codec_files(_download(BEST_CODEC, revision, offline), BEST_CODEC, None, offline)


def find_companions(directory: Path, *, offline: bool = False) -> Companions:
    """What belongs to the checkpoint in `directory`, local copies first."""
    flow, vocoder = (find_part(directory, part, offline) / part.files[0] for part in (FLOW, VOCODER))
    return Companions(
        find_part(directory, AUDIO_ENCODER, offline), find_codec(directory, VOICE_CODEC, offline), flow, vocoder
    )


def find_codec(directory: Path | None, codec: HubFolder, offline: bool) -> CodecFiles:
    """The files of a codec, local copies first."""
    return _codec_files(find_part(directory, codec, offline), codec, directory, offline)


def _codec_files(folder: Path, codec: HubFolder, directory: Path | None, offline: bool) -> CodecFiles:
    weights, config = (folder / name for name in codec.files)
    semantic = find_part(directory, SENSEVOICE, offline)
    return CodecFiles(weights, semantic / "am.mvn", semantic / "model.pt", config if config.exists() else None)


def find_part(directory: Path | None, part: HubFolder, offline: bool) -> Path:
    """The folder that holds `part`: the checkpoint's directory, a folder in it or beside it, or the hub's cache."""
    if directory is not None:
        for place in (directory, directory / part.folder, directory.parent / part.folder):
            if _complete(place, part):
                return place
    return _download(part, None, offline)


def _complete(place: Path, part: HubFolder) -> bool:
    # The checkpoint has a config.json and shards of its own: they are not the audio encoder's.
    if part is AUDIO_ENCODER and place.name != part.folder:
        return False
    needed = [name for name in part.files if not name.endswith(".yaml")]
    return all(any(place.glob(name)) for name in needed)


def is_hub_id(spec: str) -> bool:
    """Whether `spec` has the form of a hub id and names no directory here."""
    return _HUB_ID.match(spec) is not None and not spec.startswith((".", "/")) and not Path(spec).is_dir()


def _hub_id(spec: str) -> tuple[str, str | None]:
    match = _HUB_ID.match(spec)
    if match is None or spec.startswith((".", "/")):
        raise CheckpointError(
            f"{spec} is no model: give 'embedded', a checkpoint directory, or a hub id such as ORG/NAME"
        )
    return match["repo"], match["revision"]


def _download(part: HubFolder, revision: str | None, offline: bool) -> Path:
    """Fetch, or find in the cache, the files of a hub repository. The hub's client resumes and draws the progress."""
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{part.repo}@{revision}" if revision else part.repo
    by_hand = f"hf download {part.repo} --local-dir {part.folder}"
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                part.repo, revision=revision, allow_patterns=list(part.files), local_files_only=offline
            )
        )
    except errors.LocalEntryNotFoundError:
        why = (
            "is not in the cache and may not be fetched"
            if offline
            else "is not in the cache and the hub cannot be reached"
        )
        raise CheckpointError(
            f"{where} {why}; go online once, or put it beside the checkpoint with: {by_hand}"
        ) from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{where} asks for a licence to be accepted; accept it on the hub and log in first"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"the hub repository {part.repo} has no revision {revision}; check the part after @"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"there is no hub repository {part.repo} (or it is private); check the name") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{where} could not be fetched ({reason}); try again, what has come is kept") from None
    missing = [name for name in part.files if not name.endswith(".yaml") and not any(folder.glob(name))]
    if missing and part.files is not CHECKPOINT_FILES:
        raise CheckpointError(f"{where} lacks {missing[0]}; download it with: {by_hand}")
    return folder
