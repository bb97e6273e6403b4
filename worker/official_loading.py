"""Official checkpoints with their companions: everything is looked at before anything is read."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import msgspec
import torch

from kernels.packed_linear import pack_linears
from models.checkpoints.expected_speed import Work, free_memory, needed_bytes, official_work
from models.checkpoints.flexislm_checkpoint import load_flexislm, load_tokenizer
from models.checkpoints.hub import Companions
from models.checkpoints.inventory import Sizes, inspect_files
from models.checkpoints.omni_checkpoint import load_omni_encoder
from models.errors import CheckpointError
from streaming.speaking.infill import InfillDials
from worker.audio_files import read_question
from worker.ears.omni import OmniEar
from worker.pipeline import Networks
from worker.voices.embedded import Latency
from worker.voices.official import OfficialVoice, load_official_voice

PROMPT_FILE = "prompt.wav"
"""A recording of this name in the checkpoint's directory is its voice where the caller names none."""

INFILL: dict[Latency, InfillDials] = {
    "usual": InfillDials(),
    "low": InfillDials(chunk_frames=(1, 2, 4, 8, 16), look_ahead_frames=1),
}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _StatedDtype(msgspec.Struct, frozen=True):
    torch_dtype: str | None = None
    dtype: str | None = None


def load_official(
    directory: Path,
    name: str,
    companions: Companions,
    sessions: int,
    prompt: Path | None,
    *,
    speaks: bool,
    latency: Latency,
) -> Networks:
    """The networks of an official checkpoint, on the first GPU where there is one.

    prompt: the recording it is to sound like; `speaks` False does without and can only write. Sampling is the official
    one: top-k 20, top-p 0.9. Raises `CheckpointError` or `AudioFileError`.
    """
    recording = _prompt_recording(directory, prompt) if speaks else None
    audio = None if recording is None else torch.from_numpy(read_question(recording))
    inventory = inspect_files(directory, name, companions)
    for problem in inventory.problems:
        raise CheckpointError(problem)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = stated_dtype(directory)
    voice_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if inventory.sizes is not None:
        work = official_work(device.type == "cuda", dtype.itemsize)
        _check_memory(directory, inventory.sizes, sessions, device, work)
    voice: OfficialVoice | None = None
    if audio is not None:
        # First, because the codec that it needs for a moment is larger than what stays of it.
        voice = load_official_voice(
            companions, audio, INFILL[latency], prompt_cache=_cache_file(companions, audio), device=device,
            dtype=voice_dtype,
        )  # fmt: skip
    slm = load_flexislm(directory, dtype=dtype, device=device)
    encoder = load_omni_encoder(companions.audio_encoder, dtype=dtype, device=device)
    pack_linears(slm)
    pack_linears(encoder)
    tokenizer = load_tokenizer(directory, slm.config)
    return Networks(name, slm, tokenizer, OmniEar(encoder, slm), voice, uniform=random.Random(0).random)


def stated_dtype(directory: Path) -> torch.dtype:
    """The type that config.json names for computing; bfloat16, that of the released weights, where it names none."""
    try:
        stated = msgspec.json.decode((directory / "config.json").read_bytes(), type=_StatedDtype)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{directory}/config.json cannot be read ({error}); download it again") from None
    return _DTYPES.get(stated.torch_dtype or stated.dtype or "", torch.bfloat16)


def _prompt_recording(directory: Path, prompt: Path | None) -> Path:
    if prompt is not None:
        return prompt
    own = directory / PROMPT_FILE
    if own.exists():
        return own
    raise CheckpointError(
        f"{directory} speaks like a recording and has none: give one of 3 to 10 s with --voice (model.voice in the "
        f"configuration), or put it there as {PROMPT_FILE}"
    )


def _check_memory(directory: Path, sizes: Sizes, sessions: int, device: torch.device, work: Work) -> None:
    needed = needed_bytes(sizes, work, sessions)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_memory()
    if needed > free:
        place = "GPU" if device.type == "cuda" else "machine"
        raise CheckpointError(
            f"{directory} needs {needed / 1e9:.1f} GB of memory for {sessions} callers and this {place} has "
            f"{free / 1e9:.1f} GB free; take a smaller model or another {place}"
        )


def _cache_file(companions: Companions, audio: torch.Tensor) -> Path:
    """Where the features of a prompt are kept: named after the recording and the codec that reads it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    codec = companions.codec.codec.stat()
    key = hashlib.sha256(audio.numpy().tobytes() + f"{codec.st_size} {codec.st_mtime_ns}".encode())
    return root / "agogic" / "voices" / f"{key.hexdigest()[:24]}.safetensors"
