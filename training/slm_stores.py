"""What the language model's stages read from disk: recordings, and finished weights to go on from."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.checkpoints.flexislm_checkpoint import load_flexislm
from models.checkpoints.packing import load_packed
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig
from training.features import Clip, held_out, load_recordings, load_store
from training.hard_data import load_copies, places_without_speakers
from training.recogniser import likeliest_phrasing
from training.slm_config import SlmConfig
from training.slm_data import Examples
from training.speech_codes import load_codes

_PARTS = {"thinker.": "thinker.", "talker_model.": "talker.", "input_merging_transformer.": "merger."}


def load_finished(directory: Path) -> dict[str, Tensor]:
    """Weights of a finished model by the names they have in training; those of the encoder begin with `encoder.`."""
    model = load_flexislm(directory, dtype=torch.float32)
    weights = {
        trained + name.removeprefix(part): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        for part, trained in _PARTS.items()
        if name.startswith(part)
    }
    return weights | {
        f"encoder.{name}": value for name, value in load_packed(directory / "encoder.safetensors").items()
    }


def first_weights(config: SlmConfig) -> dict[str, Tensor]:
    """What a run of this configuration begins from."""
    if config.model:
        return load_finished(Path(config.model))
    if config.start_from:
        return dict(torch.load(config.start_from, weights_only=False)["average"])
    average = torch.load(config.encoder, weights_only=False)["average"]
    return {f"encoder.{name}": value for name, value in average.items()}


def transcribe(
    recordings: list[tuple[Clip, dict[str, str]]], weights: dict[str, Tensor]
) -> list[tuple[Clip, dict[str, str]]]:
    """The recordings with the likeliest words for their slots; held-out ones stay without."""
    encoder = BlockCausalEncoder(EncoderConfig())
    encoder.load_state_dict({n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")})
    encoder.eval()
    return [
        (clip if held_out(clip.name) else replace(clip, text=likeliest_phrasing(encoder, clip, slots)), slots)
        for clip, slots in recordings
    ]


def load_examples(config: SlmConfig) -> Examples:
    """The configured stores; texts only, without speech, where `codes` is ""."""
    recordings = load_recordings(Path(config.clips), Path(config.labels))
    if config.transcribed:
        recordings = transcribe(recordings, first_weights(config))
    synthetic, copies = load_store(Path(config.speech)), list[tuple[Clip, dict[str, str]]]()
    for folder in config.more_speech:
        synthetic += load_store(Path(folder))
    if config.hard:
        more, copies = load_copies(Path(config.hard), Path(config.clips), recordings)
        synthetic += more
    return Examples(
        Tokenizer.from_file(config.tokenizer),
        synthetic,
        recordings,
        [text for folder in (config.codes, *config.more_codes) if folder for text in load_codes(Path(folder))],
        random.Random(config.seed),
        config.shares,
        copies,
        places_without_speakers(Path(config.hard)) if config.hard else (),
        config.history,
    )
