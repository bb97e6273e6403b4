"""The voice of the embedded weights, chunk by chunk.

(code, duration) ─► frames at 12.5 Hz ─► chunk-causal flow decoder ─► 50 Hz mel ─► causal vocoder
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.checkpoints.voice_files import load_flow, load_vocoder
from streaming.layers.module import join_rows, split_rows
from streaming.speaking.chunk_plan import ChunkPlan
from streaming.speaking.flow_decoder import FlowChunk, FlowDecoder, FlowDials
from streaming.speaking.mel24k import SAMPLE_RATE_HZ
from streaming.speaking.unmerge import OUTPUT_FRAME_SAMPLES, UPSAMPLING
from streaming.speaking.vocos import Vocos
from worker.parts import Pcm
from worker.voices.voice import Latency, utter

CHUNKS: dict[Latency, ChunkPlan] = {
    "usual": ChunkPlan(lengths=(2, 4), look_ahead=(1, 2), together=(1, 4, 16)),
    "low": ChunkPlan(lengths=(1, 1, 2, 4), look_ahead=(0, 0, 1, 2), together=(1, 1, 1, 1, 4, 16)),
}
"""How an answer is cut: it is heard after three 12.5 Hz frames of speech, or after one. Calls make more chunks at once
as the sound in hand grows."""
CHUNKS_AMONG_OTHERS = 4
"""1.28 s, in a call that others have to wait for."""


class EmbeddedVoice:
    def __init__(self, flow: FlowDecoder, vocoder: Vocos) -> None:
        self.flow = flow
        self.vocoder = vocoder

    def warm_up(self, rows: int) -> None:
        utter(self)

    def begin(self) -> EmbeddedVoiceStream:
        return EmbeddedVoiceStream(self)

    @torch.inference_mode()
    def render(self, streams: Sequence[EmbeddedVoiceStream]) -> list[Pcm]:
        """Streams whose next chunks are equally long go through the networks as rows of one batch."""
        alike: dict[tuple[int, int, bool], list[tuple[EmbeddedVoiceStream, FlowChunk]]] = {}
        sounds: dict[EmbeddedVoiceStream, Pcm] = {}
        for stream in streams:
            chunk = stream.frames.take()
            if chunk is None:
                sounds[stream] = stream.flush()
            else:
                frames = chunk.real_frames(self.flow.look_ahead_frames)[0]
                alike.setdefault((chunk.codes.shape[1], frames, stream.frames.drained), []).append((stream, chunk))
        for (_, frames, last), members in alike.items():
            sounds |= self._render(members, frames, last)
        return [sounds[stream] for stream in streams]

    def _render(
        self, members: list[tuple[EmbeddedVoiceStream, FlowChunk]], frames: int, last: bool
    ) -> dict[EmbeddedVoiceStream, Pcm]:
        """Sound of chunks of one length, of which `frames` 12.5 Hz frames are real; `last`: nothing comes behind."""
        started = time.perf_counter()
        chunks = FlowChunk.stack([chunk for _, chunk in members])
        mel, flow = self.flow.step(chunks, join_rows([stream.flow for stream, _ in members]))
        made = time.perf_counter()
        vocoder = join_rows([stream.vocoder for stream, _ in members])
        speak = self.vocoder.finish if last else self.vocoder.step
        sound, vocoder = speak(mel[:, : UPSAMPLING * frames], vocoder)
        ended = time.perf_counter()
        given = {}
        flows, vocoders = split_rows(flow, len(members)), split_rows(vocoder, len(members))
        for index, (stream, _) in enumerate(members):
            stream.flow, stream.vocoder, stream.finished = flows[index], vocoders[index], last
            stream.flow_ms += (made - started) * 1e3 / len(members)
            stream.vocoder_ms += (ended - made) * 1e3 / len(members)
            given[stream] = stream.give(sound[index].numpy())
        return given


class EmbeddedVoiceStream:
    """frames, flow, vocoder: codes on their way into chunks, and the networks' states."""

    def __init__(self, voice: EmbeddedVoice) -> None:
        self.samples = 0
        self.flow_ms = 0.0
        self.vocoder_ms = 0.0
        self.frames = voice.flow.frames()
        self.flow = voice.flow.initial_state(1)
        self.vocoder = voice.vocoder.initial_state(1)
        self._networks = voice
        self._late = voice.vocoder.delay_samples
        self.finished = False
        self._ended = False

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        self.frames.hurried = hurried
        first = self.frames.plan.length(0) * OUTPUT_FRAME_SAMPLES - self._networks.vocoder.delay_samples
        self.frames.first_chunks = 1 if next_in_s * SAMPLE_RATE_HZ <= first else 2
        self.frames.most_chunks = max(self.frames.plan.together) if alone else CHUNKS_AMONG_OTHERS

    @property
    def ready(self) -> bool:
        return self.frames.ready or (self._ended and not self.finished)

    @property
    def next_samples(self) -> int:
        return self.frames.next_frames * OUTPUT_FRAME_SAMPLES

    @property
    def cuts(self) -> tuple[int, ...]:
        return tuple(frames * OUTPUT_FRAME_SAMPLES for frames in self.frames.cuts)

    def cut(self, samples: int) -> None:
        self.frames.cut(samples // OUTPUT_FRAME_SAMPLES)

    def push(self, code: int, duration_frames: int) -> None:
        self.frames.push(code, duration_frames)

    def end(self) -> None:
        self.frames.end()
        self._ended = True

    def flush(self) -> Pcm:
        """The vocoder's tail; nothing where no code ever came."""
        self.finished = True
        if not int(self.vocoder.frames):
            return np.zeros(0, np.float32)
        started = time.perf_counter()
        tail, self.vocoder = self._networks.vocoder.flush(self.vocoder)
        self.vocoder_ms += (time.perf_counter() - started) * 1e3
        return self.give(tail[0].numpy())

    def give(self, sound: Pcm) -> Pcm:
        """Drops what the vocoder's delay put before the first sample."""
        skipped = min(self._late, len(sound))
        self._late -= skipped
        self.samples += len(sound) - skipped
        return sound[skipped:]


def load_embedded_voice(directory: Path, latency: Latency) -> EmbeddedVoice:
    """Flow decoder and vocoder of a directory laid out like `models/embedded`. Raises `VoiceFileError`."""
    flow = FlowDecoder(load_flow(directory / "flow.safetensors"), FlowDials(), CHUNKS[latency]).eval()
    return EmbeddedVoice(flow, load_vocoder(directory / "vocoder.safetensors"))
