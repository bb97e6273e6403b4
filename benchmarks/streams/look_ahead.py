"""How far every streaming network looks ahead, measured: the input changes from some moment on, and the earliest output
that changes tells how much of the future it had seen.

An output frame is counted from where it begins. Networks of official weights are measured at toy size with the weights
of `tests/golden`; how far they look does not depend on the size, but for Vocos, whose windows say it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.golden.codec import TINY_SENSEVOICE, front_end
from benchmarks.golden.files import COMMITTED, Golden
from benchmarks.golden.speech import TINY_FLOW
from benchmarks.streams.costs import infill
from models.checkpoints.omni_checkpoint import load_omni_encoder
from streaming.flexicodec.fbank import FEATURES
from streaming.flexicodec.sensevoice import SenseVoiceEncoder
from streaming.flexicodec.sensevoice_chunks import ChunkDials, ChunkedSenseVoice
from streaming.hearing.log_mel import StreamingWhisperMel
from streaming.merging.causal_merger import CausalMerger
from streaming.speaking.chunk_plan import ChunkPlan
from streaming.speaking.flow import Voicebox
from streaming.speaking.flow_decoder import FlowDecoder
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice
from streaming.speaking.mel24k import HOP_SAMPLES
from streaming.speaking.vocoder_window import VocoderStream, WindowDials
from streaming.speaking.vocos import Vocos, VocosConfig
from worker.ears.block import BlockEar
from worker.voices.embedded import CHUNKS, EmbeddedVoice
from worker.voices.voice import Latency

SAMPLE_MS, MEL_MS, FRAME_MS, LFR_MS, OUTPUT_MEL_MS, CODE_MS = 1 / 16.0, 10.0, 40.0, 60.0, 20.0, 80.0
CODES = 64

Network = Callable[[Tensor], Tensor]


def look_ahead_ms(network: Network, x: Tensor, in_ms: float, out_ms: float, places: range) -> float:
    """How many ms before a change of the input the output changes, at worst over `places`.

    x [1, n, ...], one value per `in_ms`; the network gives [1, m, ...], one value per `out_ms`.
    """
    before = network(x)
    worst = 0.0
    for place in places:
        changed = x.clone()
        changed[:, place:] = changed[:, place:].flip(1) + 0.1
        worst = max(worst, place * in_ms - first_change(before, network(changed)) * out_ms)
    return round(worst, 1)


def codes_look_ahead_ms(network: Network, codes: Tensor, codebook_size: int, places: range) -> float:
    """The same for decoders of codes int64 [1, n] of one 80 ms frame each, to 50 Hz mel [1, 4 n, 128]."""
    before = network(codes)
    worst = 0.0
    for place in places:
        changed = codes.clone()
        changed[:, place:] = (changed[:, place:] + 1) % codebook_size
        worst = max(worst, place * CODE_MS - first_change(before, network(changed)) * OUTPUT_MEL_MS)
    return round(worst, 1)


def first_change(before: Tensor, after: Tensor) -> int:
    """The first place [1, place, ...] where the two differ by more than 1e-4 of the largest value."""
    different = (before - after).abs().flatten(2).amax(-1)[0] if before.dim() > 2 else (before - after).abs()[0]
    return int((different > 1e-4 * float(before.abs().max())).nonzero()[0])


@torch.inference_mode()
def embedded(ear: BlockEar, voice: EmbeddedVoice, samples: Tensor) -> dict[str, float]:
    """The networks of a causal model; samples [1, n] at 16 kHz, 4 s or more of speech."""
    mel = ear.mel(samples)
    flow = voice.flow
    size, longest = flow.voicebox.config.codebook_size, max(flow.plan.lengths)
    codes = torch.randint(size, (1, CODES), generator=torch.Generator().manual_seed(0))
    sound = flow(codes, torch.ones_like(codes))
    block = ear.encoder.block_mel_frames
    return {
        "features": look_ahead_ms(ear.mel, samples, SAMPLE_MS, MEL_MS, range(16_000, 16_160, 20)),
        "encoder": look_ahead_ms(ear.encoder, mel, MEL_MS, FRAME_MS, range(5 * block, 6 * block)),
        "merger": merger_wait_ms(ear.merger, ear.encoder(mel)[0]),
        "flow": codes_look_ahead_ms(
            lambda c: flow(c, torch.ones_like(c)),
            codes,
            size,
            range(CODES // 2, CODES // 2 + 2 * longest),
        ),
        "flow_first_chunk": codes_look_ahead_ms(
            lambda c: flow(c, torch.ones_like(c)), codes, size, range(1, flow.plan.length(0) + flow.plan.ahead(0))
        ),
        "vocoder": look_ahead_ms(voice.vocoder, sound, OUTPUT_MEL_MS, OUTPUT_MEL_MS / HOP_SAMPLES, range(40, 44)),
    }


@torch.inference_mode()
def first_sound_ms(voice: EmbeddedVoice) -> dict[Latency, float]:
    """Speech that the Talker must have made before the first sample is heard, in each profile of latency.

    That is all an answer waits for: when a turn ends, hearing flushes what its look-ahead had held back.
    """
    return {latency: _sound_begins_ms(voice, plan) for latency, plan in CHUNKS.items()}


def _sound_begins_ms(voice: EmbeddedVoice, plan: ChunkPlan) -> float:
    decoder = FlowDecoder(voice.flow.voicebox, voice.flow.dials, plan).eval()
    speaking = EmbeddedVoice(decoder, voice.vocoder)
    stream = speaking.begin()
    pushed = 0
    while not stream.samples:
        stream.push(0, 1)
        pushed += 1
        while stream.ready:
            speaking.render([stream])
    return pushed * CODE_MS


def merger_wait_ms(merger: CausalMerger, frames: Tensor) -> float:
    """How long after the last frame of a group its embedding comes, at worst, when frames [T, H] come one by one."""
    state, ended, worst = merger.initial_state(frames.shape[1]), 0, 0
    for index in range(len(frames)):
        merged, state = merger.step(frames[index : index + 1], state, 8.0)
        for duration in merged.durations_frames:
            ended += duration
            worst = max(worst, index + 1 - ended)
    return worst * FRAME_MS


@torch.inference_mode()
def official() -> dict[str, float]:
    """The networks of official weights."""
    golden = Golden(COMMITTED / "flexicodec")
    samples = golden["audio"]["b_16k"][None, :40_000]
    frontend = front_end(golden)
    features = torch.randn(1, 80, FEATURES, generator=torch.Generator().manual_seed(0))
    omni = load_omni_encoder(COMMITTED / "flexislm" / "audio_encoder_64", dtype=torch.float32)
    mel = torch.randn(1, 600, omni.config.num_mel_bins, generator=torch.Generator().manual_seed(0))
    sense = ChunkedSenseVoice(tiny_sensevoice(golden), ChunkDials())
    chunk = sense.dials.chunk_frames + sense.dials.look_ahead_frames
    return {
        "whisper_mel": look_ahead_ms(StreamingWhisperMel(), samples, SAMPLE_MS, MEL_MS, range(16_000, 16_160, 20)),
        "omni_encoder": look_ahead_ms(omni, mel, MEL_MS, FRAME_MS, range(209, 400, 19)),
        "sensevoice_features": look_ahead_ms(frontend, samples, SAMPLE_MS, LFR_MS, range(16_000, 16_960, 40)),
        "sensevoice_chunks": look_ahead_ms(sense, features, LFR_MS, LFR_MS, range(chunk, 2 * chunk)),
        "infill": _infill_look_ahead(golden),
        "vocoder_window": _vocoder_look_ahead(golden),
    }


def tiny_sensevoice(golden: Golden) -> SenseVoiceEncoder:
    """The golden weights without what comes after the codec's output."""
    stored = golden.weights("sensevoice_tiny")
    blocks = 2 + max(int(key.split(".")[2]) for key in stored if key.startswith("encoder.encoders."))
    encoder = SenseVoiceEncoder(replace(TINY_SENSEVOICE, num_blocks=blocks))
    encoder.load_state_dict({key: stored[key] for key in encoder.state_dict()})
    return encoder


def _infill_look_ahead(golden: Golden) -> float:
    voicebox = Voicebox(TINY_FLOW)
    voicebox.load_state_dict(golden.weights("voicebox_tiny"))
    tensors = golden["voicebox_tiny"]
    prompt = PromptVoice(tensors["codes"][0, : tensors["prompt"].shape[1] // 4], tensors["prompt"][0])
    dials = InfillDials(steps=3)
    decoder = InfillDecoder(voicebox.requires_grad_(False), dials)
    codes = torch.randint(TINY_FLOW.codebook_size, (1, CODES), generator=torch.Generator().manual_seed(0))
    first = sum(dials.chunk_frames)
    places = range(first, first + dials.chunk_frames[-1] + dials.look_ahead_frames)
    return codes_look_ahead_ms(
        lambda c: infill(decoder, prompt, c[0].tolist())[None], codes, TINY_FLOW.codebook_size, places
    )


def _vocoder_look_ahead(golden: Golden) -> float:
    """Frame by frame and without previews, as at worst."""
    vocoder = Vocos(VocosConfig(dim=64, hidden=128, num_layers=3))
    vocoder.load_state_dict(golden.weights("vocos_tiny"))

    def sound(mel: Tensor) -> Tensor:
        stream = VocoderStream(vocoder, WindowDials())
        parts = [stream.push(frame) for frame in mel[0].split(1)]
        return torch.cat([*parts, stream.flush()])[None]

    mel = golden["vocos_tiny"]["in.mel"].transpose(1, 2)
    return look_ahead_ms(sound, mel, OUTPUT_MEL_MS, OUTPUT_MEL_MS / HOP_SAMPLES, range(40, 44))
