"""From a model's name to a loaded pipeline, in one way for all of the family: what differs is which ear hears and which
voice speaks.

A directory that brings its own codec is laid out like `models/embedded`; any other is an official checkpoint, whose
audio encoder, flow decoder and vocoder are found or fetched (`models.checkpoints.hub`) and whose voice is that of a
recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernels.packed_linear import pack_linears
from models.checkpoints.flexislm_checkpoint import load_flexislm, load_tokenizer
from models.checkpoints.hub import ModelFiles, resolve_model
from models.checkpoints.voice_files import VoiceFileError
from models.errors import CheckpointError
from models.networks.flexislm import FlexiSLM
from models.networks.tokenizer import TextTokenizer
from worker.audio_files import AudioFileError
from worker.ears.ear import Ear
from worker.pipeline import Networks, Pipeline
from worker.placement import Placement, place
from worker.voices.voice import Latency, Voice


class ModelError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""


def load_model(
    spec: str,
    sessions: int = 1,
    voice_prompt: Path | None = None,
    *,
    speaks: bool = True,
    exact_at_end: bool = False,
    latency: Latency = "usual",
) -> Pipeline:
    """'embedded', a checkpoint directory or a hub id, for `sessions` callers at once. Raises ModelError.

    voice_prompt: the recording that an official model is to sound like; without one it takes `prompt.wav` of its
    directory. speaks: False where only written answers are wanted, which need no recording. exact_at_end: see
    `BlockEar`; official models always are. latency: how soon an answer is heard, against how well it begins.
    """
    try:
        files = resolve_model(spec)
        placement = place(files, sessions)
        # First, because the codec that an official voice needs for a moment is larger than what stays of it.
        voice = _voice(files, placement, voice_prompt, latency) if speaks or files.companions is None else None
        slm = load_flexislm(files.directory, dtype=placement.dtype, device=placement.device)
        slm.fuse()
        if placement.packed:
            pack_linears(slm)
        elif placement.products is not None:
            # Not the Talker's condition: over inputs that wide a row rounds by how many there are.
            for part in (slm.thinker, slm.talker_model.model, slm.talker_model.talker_length_decoder):
                pack_linears(part, placement.products)
        tokenizer = load_tokenizer(files.directory, slm.config)
        ear = _ear(files, placement, slm, tokenizer, exact_at_end)
        # The embedded model speaks best what is likeliest; official weights are made to be drawn from.
        draws = files.companions is not None
        pipeline = Pipeline(Networks(files.name, slm, tokenizer, ear, voice, draws), sessions, placement.back_ends)
        pipeline.warm_up()
        return pipeline
    except (CheckpointError, VoiceFileError, AudioFileError) as error:
        raise ModelError(str(error)) from error


# The other side of each choice is not even imported: the embedded model starts sooner without it.


def _ear(files: ModelFiles, placement: Placement, slm: FlexiSLM, tokenizer: TextTokenizer, exact_at_end: bool) -> Ear:
    if files.companions is None:
        from worker.ears.block import load_block_ear

        return load_block_ear(files.directory, slm, tokenizer, exact_at_end)
    from worker.ears.omni import load_omni_ear

    return load_omni_ear(files.companions.audio_encoder, slm, packed=placement.packed)


def _voice(files: ModelFiles, placement: Placement, prompt: Path | None, latency: Latency) -> Voice[Any]:
    if files.companions is None:
        from worker.voices.embedded import load_embedded_voice

        return load_embedded_voice(files.directory, latency)
    from worker.voices.official import load_recorded_voice

    device, steps = placement.device, placement.back_ends.steps
    return load_recorded_voice(files.directory, files.companions, prompt, latency, device=device, steps=steps)
