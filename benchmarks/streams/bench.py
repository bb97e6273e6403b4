"""`agogic bench streaming`: what chunk by chunk costs, how far each network looks ahead, and whether seams show.

`look_ahead` beside this file measures look-ahead, `costs` the costs. Seams compare the streamed voice with the one-shot
decode of the same speech tokens; `seams` has those of official weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.streams import costs as stream_costs
from benchmarks.streams import look_ahead, prefix_reuse, seams
from streaming.speaking.mel24k import HOP_SAMPLES, Mel24k
from training.world import HELD_OUT_SEED, reply_pool
from worker.audio_files import read_question
from worker.ears.block import BlockEar
from worker.loading import ModelError
from worker.pipeline import Pipeline
from worker.turn import TurnSettings, ask_by_text
from worker.voices.embedded import EmbeddedVoice

CLICK_FACTOR = 4.0
BORDER_FRAMES = 1


@torch.inference_mode()
def run(
    model: Pipeline,
    clips: list[Path],
    sentences: int = 4,
    rounds: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """lookahead_ms and cost_ratio by network; seam_ratio and clicks of the voice over `sentences` replies, and of
    official weights at toy size (`infill_*`)."""
    ear, voice = model.networks.ear, model.networks.voice
    if not isinstance(ear, BlockEar) or not isinstance(voice, EmbeddedVoice):
        raise ModelError("only models with causal networks are measured; give 'embedded'")
    questions = [torch.from_numpy(read_question(path))[None] for path in clips[:sentences]]
    spoken = [_speech(model, text) for text in reply_pool(sentences, HELD_OUT_SEED)]
    turns = [stream_costs.Spoken(samples, *tokens) for samples, tokens in zip(questions, spoken, strict=False)]
    border, inside, clicks = _seams(voice, spoken)
    infilled = seams.run()
    progress(1, 4)
    ahead_ms = look_ahead.embedded(ear, voice, questions[0]) | look_ahead.official()
    progress(2, 4)
    costs = stream_costs.measure(ear, voice, turns, rounds)
    progress(3, 4)
    reuse = prefix_reuse.run(max(1, rounds // 3))
    progress(4, 4)
    return {
        "lookahead_ms": ahead_ms,
        "first_sound_ms": look_ahead.first_sound_ms(voice),
        **costs,
        "prefix_reuse": reuse,
        "seam_ratio": round((border + 1e-6) / (inside + 1e-6), 3),
        "seam_distance": border,
        "clicks": clicks,
        "infill_seam_ratio": infilled["seam_ratio"],
        "infill_clicks": infilled["clicks"],
        "sentences": sentences,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _speech(model: Pipeline, text: str) -> tuple[Tensor, Tensor]:
    """Codes and durations [1, G] of a sentence as the Talker speaks it."""
    tokens = ask_by_text(model, model.repetition(text), TurnSettings()).tokens
    if not tokens:
        raise ModelError("the model says nothing; train it first")
    return torch.tensor([[t.code for t in tokens]]), torch.tensor([[t.duration_frames for t in tokens]])


def _seams(voice: EmbeddedVoice, spoken: list[tuple[Tensor, Tensor]]) -> tuple[float, float, int]:
    """Mean log-mel distance of stream and one-shot decode at chunk borders and elsewhere, and clicks at borders."""
    mel, borders, insides, clicks = Mel24k(), [], [], 0
    for codes, durations in spoken:
        whole = voice.vocoder(voice.flow(codes, durations))[0, : int(durations.sum()) * 4 * HOP_SAMPLES]
        sound, edges = _streamed(voice, codes, durations)
        distance = (mel(sound[None]) - mel(whole[None])).abs().mean(-1)[0]
        near = torch.zeros(len(distance), dtype=torch.bool)
        for edge in edges:
            centre = edge // HOP_SAMPLES
            near[max(0, centre - BORDER_FRAMES) : centre + BORDER_FRAMES + 1] = True
        borders += distance[near].tolist()
        insides += distance[~near].tolist()
        clicks += _clicks(sound.numpy(), whole.numpy(), edges)
    return float(np.mean(borders)), float(np.mean(insides)), clicks


def _streamed(voice: EmbeddedVoice, codes: Tensor, durations: Tensor) -> tuple[Tensor, list[int]]:
    """The streamed sound and the samples where one piece ended and the next began."""
    stream, parts, edges = voice.begin(), [], []
    for code, duration in zip(codes[0].tolist(), durations[0].tolist(), strict=True):
        stream.push(code, duration)
    stream.end()
    while not stream.finished:
        parts.append(torch.from_numpy(voice.render([stream])[0]))
        edges.append(stream.samples)
    return torch.cat(parts), edges[:-1]


def _clicks(sound: np.ndarray, whole: np.ndarray, edges: list[int]) -> int:
    """Borders whose second difference, within 5 ms, is far above anything usual in the one-shot decode."""
    usual = float(np.quantile(np.abs(np.diff(whole, 2)), 0.999)) + 1e-6
    jumps = np.abs(np.diff(sound, 2))
    return sum(bool((jumps[max(0, edge - 60) : edge + 60] > CLICK_FACTOR * usual).any()) for edge in edges)
