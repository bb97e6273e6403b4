"""From a model's name to a loaded pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import nn

import models
from models.checkpoint import load_flexislm, load_tokenizer
from models.config import ENCODER_RATE_HZ, read_config
from models.errors import CheckpointError
from models.packing import load_packed
from models.tokenizer import TextTokenizer
from streaming.causal_merger import CausalMerger
from streaming.encoder import BlockCausalEncoder, EncoderConfig
from streaming.flow_decoder import FlowDecoder, FlowDials
from streaming.merger import InterleavedMergingTransformer
from streaming.rate_control import RateController
from streaming.voice_files import VoiceFileError, load_flow, load_vocoder
from worker.hearing import Ear, Spelling
from worker.pipeline import Networks, Pipeline
from worker.voice import Voice

EMBEDDED = "embedded"


class ModelError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""


def load_model(spec: str, sessions: int = 1) -> Pipeline:
    """'embedded' or a directory laid out like `models/embedded`, for `sessions` callers at once. Raises ModelError."""
    directory = Path(models.__file__).parent / "embedded" if spec == EMBEDDED else Path(spec)
    if not directory.is_dir():
        raise ModelError(f"{spec} is no model: give 'embedded' or the directory of a checkpoint")
    try:
        with _without_first_weights():
            return Pipeline(_networks(directory, spec), sessions)
    except (CheckpointError, VoiceFileError) as error:
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


def _networks(directory: Path, name: str) -> Networks:
    config = read_config(directory / "config.json")
    slm = load_flexislm(directory, dtype=torch.float32)
    tokenizer = load_tokenizer(directory, config)
    merging = slm.input_merging_transformer
    if not isinstance(merging, InterleavedMergingTransformer) or not config.input_merging_transformer_causal:
        raise ModelError(f"{directory} has a merger that needs whole utterances; the worker runs causal mergers only")
    controller = RateController(ENCODER_RATE_HZ, config.agogic.max_group_frames)
    encoder = _encoder(directory, config.agogic.encoder)
    ear = Ear(encoder, CausalMerger(merging, slm.audio_embed_transform, controller), _spelling(tokenizer))
    flow = FlowDecoder(load_flow(directory / "flow.safetensors"), FlowDials()).eval()
    voice = Voice(flow, load_vocoder(directory / "vocoder.safetensors"))
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
