"""What working piece by piece costs: the time of each network's stream over the time of its `forward` on the whole.

Both do the same work in the same run, in turns, and the least processor time of each counts, so that other work on the
machine does not. `cost_ratio` is that of one session with pieces as the worker feeds them: `UNIT_SAMPLES` of sound, and
the blocks of the encoder and frames of the merger that they complete; calls of the flow decoder's plan. Other pieces
and eight sessions at once show where the price comes from: a product of few rows reads all weights for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from streaming.hearing.encoder import BlockCausalEncoder
from streaming.hearing.speech_mel import SpeechMel
from streaming.hearing.windows import SAMPLE_RATE
from streaming.merging.causal_merger import CausalMerger
from streaming.speaking.chunk_plan import ChunkPlan
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.flow_decoder import FlowChunk, FlowDecoder
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.unmerge import UPSAMPLING
from streaming.speaking.vocos import Vocos
from worker.ears.block import BlockEar
from worker.parts import UNIT_SAMPLES
from worker.voices.embedded import EmbeddedVoice

ROWS = 8
MEL_HZ, OUTPUT_MEL_HZ = 100, 50
MERGER_HZ = 8.0
TOGETHER = (1, 2, 4, 8)
WINDOW_MS = 32
FRAME_S = 0.08
UNIT_MS = str(1000 * UNIT_SAMPLES // SAMPLE_RATE)
INFILL_SIZE = FlowConfig(hidden=256, num_layers=2, num_heads=4, ffn_dim=1024, mlp_dim=256, codebook_size=256)
INFILL_PROMPT_FRAMES, INFILL_FRAMES = 40, 48
"""12.5 Hz: a prompt of 3.2 s and an answer of 3.8 s."""
WHOLE_FRAMES = 100_000

Work = Callable[[], object]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Spoken:
    """An utterance and an answer: samples [1, n] at 16 kHz, and codes and durations int64 [1, G]."""

    samples: Tensor
    codes: Tensor
    durations: Tensor


def ratios(rounds: int, whole: Work, streams: Mapping[str, Work]) -> dict[str, float]:
    """Least time of each stream over that of the whole."""
    works = [whole, *streams.values()]
    least = [float("inf")] * len(works)
    for work in works:
        work()
    for _ in range(rounds):
        for index, work in enumerate(works):
            started = time.process_time()
            work()
            least[index] = min(least[index], time.process_time() - started)
    return {name: round(seconds / least[0], 3) for name, seconds in zip(streams, least[1:], strict=True)}


def measure(ear: BlockEar, voice: EmbeddedVoice, turns: Sequence[Spoken], rounds: int) -> dict[str, object]:
    """cost_ratio by network as the service works, over all turns; the same for 8 rows at once; and by length of the
    pieces in ms."""
    mels = [ear.mel(turn.samples) for turn in turns]
    frames = [ear.encoder(mel)[0] for mel in mels]
    sounds = [voice.flow(turn.codes, turn.durations) for turn in turns]
    calls = [_calls(voice.flow, turn, 1) for turn in turns]
    sizes = [_mel_frames(made) for made in calls]
    block, block_frames = ear.encoder.block_mel_frames, ear.encoder.config.block_frames
    block_ms = 1000 * block // MEL_HZ
    chunk = voice.flow.voicebox.config.chunk_frames
    pieces_ms = [n * block_ms for n in TOGETHER]

    def hear(piece_ms: int) -> Work:
        samples = piece_ms * SAMPLE_RATE // 1000
        return _each(lambda turn: _hear(ear.mel, turn.samples, samples), turns)

    def encode(blocks: int) -> Work:
        return _each(lambda mel: _encode(ear.encoder, mel, blocks * block), mels)

    def merge(blocks: int) -> Work:
        return _each(lambda part: _merge(ear.merger, part, blocks * block_frames), frames)

    def decode(chunks: int) -> Work:
        plan = ChunkPlan(voice.flow.plan.lengths, voice.flow.plan.look_ahead, (chunks,))
        decoder = FlowDecoder(voice.flow.voicebox, voice.flow.dials, plan).eval()
        return _each(lambda made: _decode(decoder, made), [_calls(decoder, turn, 1) for turn in turns])

    by_piece = {
        "features": ratios(
            rounds, _each(lambda turn: ear.mel(turn.samples), turns), {str(n): hear(n) for n in (WINDOW_MS, *pieces_ms)}
        ),
        "encoder": ratios(rounds, _each(ear.encoder, mels), {str(n * block_ms): encode(n) for n in TOGETHER}),
        "merger": ratios(
            rounds,
            _each(lambda part: ear.merger.forward(part, MERGER_HZ), frames),
            {str(n * block_ms): merge(n) for n in TOGETHER},
        ),
        "flow": ratios(
            rounds,
            _each(lambda turn: voice.flow(turn.codes, turn.durations), turns),
            {"plan": _each(lambda made: _decode(voice.flow, made), calls)}
            | {str(n * chunk * 1000 // OUTPUT_MEL_HZ): decode(n) for n in TOGETHER},
        ),
        "vocoder": ratios(
            rounds,
            _each(voice.vocoder, sounds),
            {"plan": _each(lambda at: _vocode(voice.vocoder, sounds[at], sizes[at]), range(len(turns)))}
            | {
                str(n * chunk * 1000 // OUTPUT_MEL_HZ): _each(partial(_vocode_in, voice.vocoder, n * chunk), sounds)
                for n in TOGETHER
            },
        ),
    }
    service = {
        "features": by_piece["features"][UNIT_MS],
        "encoder": by_piece["encoder"][UNIT_MS],
        "merger": by_piece["merger"][UNIT_MS],
        "flow": by_piece["flow"]["plan"],
        "vocoder": by_piece["vocoder"]["plan"],
        "infill": infill_cost(max(1, rounds // 3)),
    }
    return {
        "cost_ratio": service,
        "cost_ratio_8_rows": _eight_rows(ear, voice, turns[0], rounds),
        "cost_ratio_by_piece_ms": by_piece,
        "turns_s": [round(turn.samples.shape[1] / SAMPLE_RATE, 1) for turn in turns],
        "answers_s": [round(int(turn.durations.sum()) * FRAME_S, 1) for turn in turns],
    }


def _eight_rows(ear: BlockEar, voice: EmbeddedVoice, spoken: Spoken, rounds: int) -> dict[str, float]:
    """The same of eight sessions in step, against one pass over the whole of all of them; the merger has none of
    several rows, so against a pass for each."""
    samples, codes, durations = (
        part.expand(ROWS, -1).contiguous() for part in (spoken.samples, spoken.codes, spoken.durations)
    )
    batch = Spoken(samples, codes, durations)
    mel, calls = ear.mel(samples), _calls(voice.flow, spoken, ROWS)
    sound = voice.flow(codes, durations)
    blocks = UNIT_SAMPLES * MEL_HZ // SAMPLE_RATE // ear.encoder.block_mel_frames
    unit_mel, unit_frames = blocks * ear.encoder.block_mel_frames, blocks * ear.encoder.config.block_frames
    frames = ear.encoder(mel)
    sizes = _mel_frames(calls)
    pairs: dict[str, tuple[Work, Work]] = {
        "features": (lambda: ear.mel(samples), lambda: _hear(ear.mel, samples, UNIT_SAMPLES)),
        "encoder": (lambda: ear.encoder(mel), lambda: _encode(ear.encoder, mel, unit_mel)),
        "merger": (
            lambda: [ear.merger.forward(row, MERGER_HZ) for row in frames],
            lambda: _merge_together(ear.merger, frames, unit_frames),
        ),
        "flow": (lambda: voice.flow(batch.codes, batch.durations), lambda: _decode(voice.flow, calls)),
        "vocoder": (lambda: voice.vocoder(sound), lambda: _vocode(voice.vocoder, sound, sizes)),
    }
    return {name: ratios(rounds, whole, {name: stream})[name] for name, (whole, stream) in pairs.items()}


def infill_subject() -> tuple[Voicebox, PromptVoice, list[int]]:
    """Untrained full-attention weights, of which only the sizes matter here, a prompt, and codes to say."""
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(UPSAMPLING * INFILL_PROMPT_FRAMES, MEL_BINS, generator=generator)
    prompt = PromptVoice(torch.randint(256, (INFILL_PROMPT_FRAMES,), generator=generator), mel)
    codes = torch.randint(256, (INFILL_FRAMES,), generator=generator).tolist()
    return Voicebox(INFILL_SIZE).eval(), prompt, codes


def infill_cost(rounds: int) -> float:
    """Mode (a) as shipped, with the keys and values that its voice has made of the prompt, against the official
    one-shot decode, which uses nothing again."""
    voicebox, prompt, codes = infill_subject()
    at_once = InfillDecoder(voicebox, InfillDials(chunk_frames=(WHOLE_FRAMES,), prefix_every=1, keep_prompt=False))
    chunked = InfillDecoder(voicebox, InfillDials())
    stream: Mapping[str, Work] = {"infill": lambda: infill(chunked, prompt, codes)}
    return ratios(rounds, lambda: infill(at_once, prompt, codes), stream)["infill"]


def infill(decoder: InfillDecoder, prompt: PromptVoice, codes: list[int]) -> Tensor:
    """Mel [4 n, 128] of codes that last one frame each, made as they come."""
    stream, parts = decoder.begin(prompt), []
    for code in codes:
        stream.push(code, 1)
        while stream.ready:
            parts.append(decoder.render([stream])[0].mel)
    stream.end()
    while stream.ready:
        parts.append(decoder.render([stream])[0].mel)
    return torch.cat(parts)


def _hear(mel: SpeechMel, samples: Tensor, piece_samples: int) -> None:
    state = mel.initial_state(samples.shape[0])
    for piece in samples.split(piece_samples, dim=1):
        _, state = mel.step(piece, state)
    mel.flush(state)


def _encode(encoder: BlockCausalEncoder, mel: Tensor, piece_frames: int) -> None:
    state = encoder.initial_state(mel.shape[0])
    for piece in mel.split(piece_frames, dim=1):
        _, state = encoder.step_heads(piece, state)
    encoder.flush_heads(state)


def _merge(merger: CausalMerger, frames: Tensor, piece_frames: int) -> None:
    state = merger.initial_state(frames.shape[1])
    for piece in frames.split(piece_frames):
        _, state = merger.step(piece, state, MERGER_HZ)
    merger.flush(state)


def _merge_together(merger: CausalMerger, frames: Tensor, piece_frames: int) -> None:
    rows = frames.shape[0]
    states, rates = [merger.initial_state(frames.shape[2]) for _ in range(rows)], [MERGER_HZ] * rows
    for piece in frames.split(piece_frames, dim=1):
        states = [state for _, state in merger.step_together(list(piece), states, rates)]
    for state in states:
        merger.flush(state)


def _calls(flow: FlowDecoder, spoken: Spoken, rows: int) -> list[FlowChunk]:
    """The decoder's calls, as its plan has them, for `rows` sessions that say the same."""
    frames, calls = flow.frames(), []
    for code, duration in zip(spoken.codes[0].tolist(), spoken.durations[0].tolist(), strict=True):
        frames.push(code, duration)
    frames.end()
    while (call := frames.take()) is not None:
        calls.append(FlowChunk.stack([call] * rows))
    return calls


def _mel_frames(calls: list[FlowChunk]) -> list[int]:
    return [call.layout.start.shape[1] * UPSAMPLING for call in calls]


def _each(work: Callable[[Item], object], items: Iterable[Item]) -> Work:
    kept = list(items)
    return lambda: [work(item) for item in kept]


def _decode(flow: FlowDecoder, calls: list[FlowChunk]) -> None:
    state = flow.initial_state(calls[0].codes.shape[0])
    for call in calls:
        _, state = flow.step(call, state)


def _vocode(vocoder: Vocos, mel: Tensor, sizes: list[int]) -> None:
    """`sizes` names the lengths of the first pieces; what is left is the last one."""
    ends = torch.tensor(sizes).cumsum(0)
    _vocode_pieces(vocoder, torch.tensor_split(mel, ends[ends < mel.shape[1]], dim=1))


def _vocode_in(vocoder: Vocos, piece_frames: int, mel: Tensor) -> None:
    _vocode_pieces(vocoder, mel.split(piece_frames, dim=1))


def _vocode_pieces(vocoder: Vocos, pieces: Sequence[Tensor]) -> None:
    *first, last = pieces
    state = vocoder.initial_state(last.shape[0])
    for piece in first:
        _, state = vocoder.step(piece, state)
    vocoder.finish(last, state)
