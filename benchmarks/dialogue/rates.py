"""`agogic bench rates`: how exactly a requested frame rate is met, on both sides, and what a lower one saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.progress import Progress
from streaming.merging.grouping import group_frames, neighbour_similarity
from training.world import HELD_OUT_SEED, reply_pool
from worker.audio_files import read_question
from worker.ears.block import BlockEar
from worker.loading import ModelError
from worker.pipeline import Pipeline
from worker.turn import TurnSettings, ask_by_text

RATES_HZ = (12.5, 8.0, 6.25, 5.0, 4.0)
LONG_CLIP_S = 5.0
TOLERANCE_FRAMES = 1

Starts = NDArray[np.bool_]
"""Which frames [T] of an utterance start a group."""


def run(model: Pipeline, clips: list[Path], sentences: int, progress: Progress | None = None) -> dict[str, object]:
    """The clips are one conversation; `sentences` held-out replies are spoken at each rate.

    worst_clip_error is the largest relative error of a clip of at least 5 s; boundary_agreement the share of offline
    top-k boundaries with a causal one within one frame; step_ratio and time_ratio compare 6.25 with 12.5 Hz.
    """
    frames = [encode(model, path) for path in clips]
    given = [_input(model, frames, hz) for hz in RATES_HZ]
    spoken = []
    for number, hz in enumerate(RATES_HZ, 1):
        spoken.append(_output(model, hz, sentences))
        if progress is not None:
            progress(number, len(RATES_HZ))
    fine, coarse = spoken[RATES_HZ.index(12.5)], spoken[RATES_HZ.index(6.25)]
    return {
        "clips": len(clips),
        "sentences": sentences,
        "input": given,
        "output": spoken,
        "step_ratio": round(coarse["talker_steps"] / fine["talker_steps"], 3),
        "time_ratio": round(coarse["talker_ms"] / fine["talker_ms"], 3),
    }


def causal_ear(model: Pipeline) -> BlockEar:
    ear = model.networks.ear
    if not isinstance(ear, BlockEar):
        raise ModelError("this model groups whole utterances; rates are measured on causal models")
    return ear


@torch.inference_mode()
def encode(model: Pipeline, path: Path) -> Tensor:
    """Encoder frames [T, H] of a clip, which are the same in the stream."""
    ear = causal_ear(model)
    frames: Tensor = ear.encoder(ear.mel(torch.from_numpy(read_question(path))[None]))[0]
    return frames


def _input(model: Pipeline, clips: list[Tensor], hz: float) -> dict[str, float]:
    controller = causal_ear(model).merger.controller
    found, exact = [], []
    base_hz, state = controller.base_hz, controller.initial_state()
    for frames in clips:
        state = controller.next_utterance(state)
        found.append(controller.whole(neighbour_similarity(frames).numpy(), state, hz))
        exact.append(np.zeros(len(frames), dtype=np.bool_))
        exact[-1][group_frames(frames, hz, base_hz, max_group=controller.max_group).starts.numpy()] = True
    realised = [float(starts.mean() * base_hz) for starts in found]
    long = [rate for rate, frames in zip(realised, clips, strict=True) if len(frames) >= LONG_CLIP_S * base_hz]
    groups, total = sum(int(starts.sum()) for starts in found), sum(len(frames) for frames in clips)
    return {
        "requested_hz": hz,
        "realised_hz": round(groups / total * base_hz, 3),
        "worst_clip_error": round(max((abs(value / hz - 1) for value in long), default=0.0), 4),
        "boundary_agreement": round(agreement(exact, found), 4),
    }


def agreement(exact: Sequence[Starts], found: Sequence[Starts]) -> float:
    """Share of the exact boundaries after the first frame that have a found one within one frame."""
    hits = []
    for wanted, given in zip(exact, found, strict=True):
        places, others = np.flatnonzero(wanted)[1:], np.flatnonzero(given)
        hits.append(np.abs(places[:, None] - others[None]).min(axis=1) <= TOLERANCE_FRAMES)
    return float(np.concatenate(hits).mean())


def _output(model: Pipeline, hz: float, sentences: int) -> dict[str, float]:
    tokens = frames = steps = 0
    talker_ms = 0.0
    worst = 0.0
    for text in reply_pool(sentences, HELD_OUT_SEED):
        turn = ask_by_text(model, model.repetition(text), TurnSettings(output_hz=hz))
        stats = turn.stats
        tokens += stats.speech_tokens
        frames += stats.speech_frames
        steps += stats.talker_steps
        talker_ms += stats.talker_ms
        worst = max(worst, abs(stats.realised_output_hz / hz - 1))
    return {
        "requested_hz": hz,
        "realised_hz": round(model.codec_frame_rate_hz * tokens / max(1, frames), 3),
        "worst_sentence_error": round(worst, 4),
        "talker_steps": steps,
        "talker_ms": round(talker_ms, 1),
    }
