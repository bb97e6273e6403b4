"""The voice of the embedded model: duration-tagged codes in, 24 kHz samples out, chunk by chunk.

    (code, duration) ─► frames at 12.5 Hz ─► chunk-causal flow decoder ─► mel at 50 Hz ─► causal vocoder ─► samples
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import torch

from agent.wire import TokenSpan
from streaming.flow_decoder import FlowDecoder
from streaming.mel24k import HOP_SAMPLES, SAMPLE_RATE_HZ
from streaming.unmerge import MAX_DURATION_FRAMES, UPSAMPLING
from streaming.vocos import Vocos
from worker.parts import Pcm

FRAME_SAMPLES = UPSAMPLING * HOP_SAMPLES
"""Output samples of one 12.5 Hz frame."""


class Voice:
    """The networks of speaking; every answer gets a `VoiceStream` of its own."""

    sample_rate = SAMPLE_RATE_HZ

    def __init__(self, flow: FlowDecoder, vocoder: Vocos) -> None:
        self.flow = flow
        self.vocoder = vocoder

    def begin(self) -> VoiceStream:
        return VoiceStream(self)


class VoiceStream:
    """One answer's sound. flow_ms and vocoder_ms: time spent so far; samples: given out so far."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._frames = voice.flow.frames()
        self._flow = voice.flow.initial_state(1)
        self._vocoder = voice.vocoder.initial_state(1)
        self._late = voice.vocoder.delay_samples
        self._unheard: deque[tuple[int, TokenSpan]] = deque()
        self._pushed_frames = 0
        self._rendered_frames = 0
        self._ended = False
        self._flushed = False
        self.samples = 0
        self.flow_ms = 0.0
        self.vocoder_ms = 0.0

    @property
    def ready(self) -> bool:
        """Whether `render` has a chunk to make."""
        missing = self._pushed_frames - self._rendered_frames
        wanted = self._voice.flow.code_frames + self._voice.flow.look_ahead_frames
        return missing >= wanted or (self._ended and not self._flushed)

    @property
    def pushed_frames(self) -> int:
        return self._pushed_frames

    def push(self, code: int, duration_frames: int) -> TokenSpan | None:
        """The next code as it will be spoken: durations over the decoder's longest are cut, a code that lasts 0 frames
        is dropped (None)."""
        if duration_frames < 1:
            return None
        span = TokenSpan(code, min(duration_frames, MAX_DURATION_FRAMES))
        self._frames.push(span.code, span.duration_frames)
        self._pushed_frames += span.duration_frames
        self._unheard.append((self._pushed_frames * FRAME_SAMPLES, span))
        return span

    def end(self) -> None:
        """No more codes will come."""
        self._frames.end()
        self._ended = True

    @torch.inference_mode()
    def render(self) -> Pcm:
        """Samples [n] float32 of the next chunk, n may be 0; of the vocoder's tail after the last one."""
        started = time.perf_counter()
        chunk = self._frames.take()
        if chunk is None:
            tail, self._vocoder = self._voice.vocoder.flush(self._vocoder)
            self._flushed = True
            self.vocoder_ms += (time.perf_counter() - started) * 1e3
            if not self._pushed_frames:
                return np.zeros(0, np.float32)
            return self._give(tail[0].numpy())
        mel, self._flow = self._voice.flow.step(chunk, self._flow)
        frames = chunk.real_frames(self._voice.flow.code_frames)[0]
        made = time.perf_counter()
        sound, self._vocoder = self._voice.vocoder.step(mel[:, : UPSAMPLING * frames], self._vocoder)
        self._rendered_frames += frames
        self.flow_ms += (made - started) * 1e3
        self.vocoder_ms += (time.perf_counter() - made) * 1e3
        return self._give(sound[0].numpy())

    def heard_tokens(self) -> tuple[TokenSpan, ...]:
        """Tokens whose last sample was given out since the last call."""
        tokens = []
        while self._unheard and self._unheard[0][0] <= self.samples:
            tokens.append(self._unheard.popleft()[1])
        return tuple(tokens)

    @property
    def finished(self) -> bool:
        return self._flushed

    def _give(self, sound: Pcm) -> Pcm:
        """Drops what the vocoder's delay put before the first sample."""
        skipped = min(self._late, len(sound))
        self._late -= skipped
        self.samples += len(sound) - skipped
        return sound[skipped:]
