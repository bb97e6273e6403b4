"""`agogic bench streaming`: what chunk by chunk costs, how far each network looks ahead, and whether seams show.

Look-ahead is measured, not read off the configuration: the input is changed from some moment on, and the earliest
output that changes tells how far the network saw. Costs compare the stream with one pass over the whole, in turns.
Seams compare the streamed voice with the one-shot decode of the same speech tokens.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streaming.causal_merger import CausalMerger
from streaming.encoder import BlockCausalEncoder
from streaming.flow_decoder import FlowDecoder
from streaming.mel24k import HOP_SAMPLES, Mel24k
from streaming.speech_mel import SpeechMel
from streaming.vocos import Vocos
from training.world import HELD_OUT_SEED, reply_pool
from worker.audio_files import read_question
from worker.hearing import BlockEar
from worker.loading import ModelError
from worker.parts import UNIT_SAMPLES
from worker.pipeline import Pipeline
from worker.turn import TurnSettings, ask_by_text
from worker.voice import EmbeddedVoice

MEL_MS, FRAME_MS, OUTPUT_MEL_MS = 10.0, 40.0, 20.0
CODE_FRAME_MS = 80.0
CLICK_FACTOR = 4.0
BORDER_FRAMES = 1

Work = Callable[[], object]


@torch.inference_mode()
def run(model: Pipeline, clips: list[Path], sentences: int = 4, rounds: int = 5) -> dict[str, object]:
    """lookahead_ms and cost_ratio by network; seam_ratio and clicks of the voice over `sentences` replies."""
    ear, voice = model.networks.ear, model.networks.voice
    if not isinstance(ear, BlockEar) or not isinstance(voice, EmbeddedVoice):
        raise ModelError("only models with causal networks are measured; give 'embedded'")
    samples = torch.from_numpy(read_question(clips[0]))[None]
    mel = ear.mel(samples)
    frames = ear.encoder(mel)
    spoken = [_speech(model, text) for text in reply_pool(sentences, HELD_OUT_SEED)]
    codes, durations = max(spoken, key=lambda tokens: tokens[0].shape[1])
    sound_mel = voice.flow(codes, durations)
    costs = {
        "features": _cost(rounds, lambda: ear.mel(samples), lambda: _mel_stream(ear.mel, samples)),
        "encoder": _cost(rounds, lambda: ear.encoder(mel), lambda: _encoder_stream(ear.encoder, mel)),
        "merger": _cost(
            rounds, lambda: ear.merger.forward(frames[0], 8.0), lambda: _merger_stream(ear.merger, frames[0])
        ),
        "flow": _cost(
            rounds, lambda: voice.flow(codes, durations), lambda: _flow_stream(voice.flow, codes, durations)
        ),
        "vocoder": _cost(
            rounds, lambda: voice.vocoder(sound_mel), lambda: _vocoder_stream(voice.vocoder, voice.flow, sound_mel)
        ),
    }
    hear = ear.encoder
    look_ahead = {
        "features": _look_ahead(ear.mel, samples, 1 / 16.0, MEL_MS, range(16_000, 16_160, 20)),
        "encoder": _look_ahead(hear, mel, MEL_MS, FRAME_MS, range(160, 160 + hear.block_mel_frames)),
        "merger": FRAME_MS,
        "flow": _flow_look_ahead(voice.flow, codes, durations),
        "vocoder": _look_ahead(voice.vocoder, sound_mel, OUTPUT_MEL_MS, OUTPUT_MEL_MS / HOP_SAMPLES, range(40, 44)),
    }
    border, inside, clicks = _seams(voice, spoken)
    return {
        "lookahead_ms": {name: round(value, 1) for name, value in look_ahead.items()},
        "cost_ratio": costs,
        "seam_ratio": round((border + 1e-6) / (inside + 1e-6), 3),
        "seam_distance": border,
        "clicks": clicks,
        "sentences": sentences,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cost(rounds: int, whole: Work, stream: Work) -> float:
    """Median time of the stream over that of the whole, measured in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for round_number in range(rounds + 1):
        for streamed, work in ((False, whole), (True, stream)):
            started = time.perf_counter()
            work()
            if round_number:
                times[streamed].append(time.perf_counter() - started)
    return round(statistics.median(times[True]) / statistics.median(times[False]), 3)


def _mel_stream(mel: SpeechMel, samples: Tensor) -> None:
    state = mel.initial_state(1)
    for piece in samples.split(UNIT_SAMPLES, dim=1):
        _, state = mel.step(piece, state)
    mel.flush(state)


def _encoder_stream(encoder: BlockCausalEncoder, mel: Tensor) -> None:
    state = encoder.initial_state(1)
    for piece in mel.split(encoder.block_mel_frames, dim=1):
        _, state = encoder.step_heads(piece, state)
    encoder.flush_heads(state)


def _merger_stream(merger: CausalMerger, frames: Tensor) -> None:
    state = merger.initial_state(frames.shape[1])
    for piece in frames.split(8):
        _, state = merger.step(piece, state, 8.0)
    merger.flush(state)


def _flow_stream(flow: FlowDecoder, codes: Tensor, durations: Tensor) -> None:
    frames, state = flow.frames(), flow.initial_state(1)
    for code, duration in zip(codes[0].tolist(), durations[0].tolist(), strict=True):
        frames.push(code, duration)
    frames.end()
    while (chunk := frames.take()) is not None:
        _, state = flow.step(chunk, state)


def _vocoder_stream(vocoder: Vocos, flow: FlowDecoder, mel: Tensor) -> None:
    state = vocoder.initial_state(1)
    for piece in mel.split(flow.voicebox.config.chunk_frames, dim=1):
        _, state = vocoder.step(piece, state)
    vocoder.flush(state)


def _look_ahead(
    network: Callable[[Tensor], Tensor], x: Tensor, in_ms: float, out_ms: float, places: range
) -> float:
    """How many ms before a change of the input the output changes, at worst; x [1, n, ...], one value per `in_ms`."""
    before = network(x)
    worst = 0.0
    for place in places:
        changed = x.clone()
        changed[:, place:] = changed[:, place:].flip(1) + 0.1
        worst = max(worst, place * in_ms - _first_change(before, network(changed)) * out_ms)
    return worst


def _flow_look_ahead(flow: FlowDecoder, codes: Tensor, durations: Tensor) -> float:
    """The same for the flow decoder, whose input is codes."""
    before = flow(codes, durations)
    worst = 0.0
    for place in range(codes.shape[1] // 2, codes.shape[1] // 2 + 4):
        changed = codes.clone()
        changed[:, place:] = (changed[:, place:] + 1) % flow.voicebox.config.codebook_size
        at_ms = int(durations[0, :place].sum()) * CODE_FRAME_MS
        worst = max(worst, at_ms - _first_change(before, flow(changed, durations)) * OUTPUT_MEL_MS)
    return worst


def _first_change(before: Tensor, after: Tensor) -> int:
    different = (before - after).abs().flatten(2).amax(-1)[0] if before.dim() > 2 else (before - after).abs()[0]
    return int((different > 1e-4 * float(before.abs().max())).nonzero()[0])


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
        parts.append(torch.from_numpy(stream.render()))
        edges.append(stream.samples)
    return torch.cat(parts), edges[:-1]


def _clicks(sound: np.ndarray, whole: np.ndarray, edges: list[int]) -> int:
    """Borders whose second difference, within 5 ms, is far above anything usual in the one-shot decode."""
    usual = float(np.quantile(np.abs(np.diff(whole, 2)), 0.999)) + 1e-6
    jumps = np.abs(np.diff(sound, 2))
    return sum(bool((jumps[max(0, edge - 60) : edge + 60] > CLICK_FACTOR * usual).any()) for edge in edges)
