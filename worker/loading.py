"""From a model's name to a loaded pipeline.

A directory that brings its own codec is laid out like `models/embedded`; any other is an official checkpoint, whose
audio encoder, flow decoder and vocoder are found or fetched (`models.checkpoints.hub`) and whose voice is that of a
recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import nn

from models.checkpoints.flexislm_checkpoint import load_flexislm, load_tokenizer
from models.checkpoints.hub import resolve_model
from models.checkpoints.packing import load_packed
from models.checkpoints.voice_files import VoiceFileError, load_flow, load_vocoder
from models.errors import CheckpointError
from models.networks.config import ENCODER_RATE_HZ
from models.networks.tokenizer import TextTokenizer
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig
from streaming.merging.causal_merger import CausalMerger
from streaming.merging.merger import InterleavedMergingTransformer
from streaming.merging.rate_control import RateController
from streaming.speaking.flow_decoder import FlowDecoder, FlowDials
from worker.audio_files import AudioFileError
from worker.ears.block import BlockEar, Spelling
from worker.pipeline import Networks, Pipeline
from worker.voices.embedded import CHUNKS, EmbeddedVoice, Latency

EMBEDDED = "embedded"


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
        with _without_first_weights():
            if files.companions is None:
                return Pipeline(_embedded(files.directory, spec, exact_at_end, latency), sessions)
            from worker.official_loading import load_official  # the embedded model starts sooner without it

            networks = load_official(
                files.directory, files.name, files.companions, sessions, voice_prompt, speaks=speaks, latency=latency
            )
            return Pipeline(networks, sessions)
    except (CheckpointError, VoiceFileError, AudioFileError) as error:
        raise ModelError(str(error)) from error


@contextmanager
def _without_first_weights() -> Iterator[None]:
    """Embeddings are made without random numbers, which the checkpoint would overwrite: on the meta device drawing them
    imports torch's compiler, 2 s and 100 MB of it."""
    draw = nn.Embedding.reset_parameters
    setattr(nn.Embedding, "reset_parameters", lambda table: None)  # noqa: B010 - a method, to the type checker
    try:
        yield
    finally:
        setattr(nn.Embedding, "reset_parameters", draw)  # noqa: B010


def _embedded(directory: Path, name: str, exact_at_end: bool, latency: Latency) -> Networks:
    slm = load_flexislm(directory, dtype=torch.float32)
    config = slm.config
    tokenizer = load_tokenizer(directory, config)
    merging = slm.input_merging_transformer
    if not isinstance(merging, InterleavedMergingTransformer) or not config.input_merging_transformer_causal:
        raise CheckpointError(f"{directory}/config.json lacks a causal merger, which an embedded model must have")
    controller = RateController(ENCODER_RATE_HZ, config.agogic.max_group_frames)
    encoder = _encoder(directory, config.agogic.encoder)
    merger = CausalMerger(merging, slm.audio_embed_transform, controller)
    ear = BlockEar(encoder, merger, _spelling(tokenizer), exact_at_end)
    flow = FlowDecoder(load_flow(directory / "flow.safetensors"), FlowDials(), CHUNKS[latency]).eval()
    voice = EmbeddedVoice(flow, load_vocoder(directory / "vocoder.safetensors"))
    return Networks(name, slm, tokenizer, ear, voice, uniform=None)


def _encoder(directory: Path, raw: msgspec.Raw) -> BlockCausalEncoder:
    try:
        config = msgspec.json.decode(raw, type=EncoderConfig)
    except msgspec.MsgspecError as error:
        path = directory / "config.json"
        raise CheckpointError(f"{path} does not describe the encoder ({error}); restore it") from error
    encoder = BlockCausalEncoder(config)
    path = directory / "encoder.safetensors"
    try:
        encoder.load_state_dict(load_packed(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit its config ({reason}); restore both") from error
    return encoder.requires_grad_(False).eval()


def _spelling(tokenizer: TextTokenizer) -> Spelling:
    return lambda path: tokenizer.decode(path).strip()
