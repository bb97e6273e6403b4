"""Official, non-causal weights chunk by chunk: each chunk of mel is filled in behind a prompt and what was made before.

Voicebox was trained to continue a clean mel prefix, so a chunk is solved with the prefix [prompt | last generated mel]
and a few frames of look-ahead that are solved too and thrown away. Noise belongs to the absolute frame, so that the
overlap of two windows starts from the same numbers. The first chunk is small, later ones grow. An utterance that fits
one chunk is exactly the one-shot solution.

Vocos with symmetric weights gets the same treatment: `VocosWindow` re-computes a little around each chunk, and is exact
when its context covers the receptive field.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming.flow import Voicebox
from streaming.flow_decoder import SpeechCodeError
from streaming.mel24k import HOP_SAMPLES, MEL_BINS, N_FFT
from streaming.unmerge import UPSAMPLING
from streaming.vocos import Vocos

_NOISE_FRAMES = 1024


@dataclass(frozen=True)
class InfillDials:
    """Frames are 12.5 Hz. A chunk is made once its own frames and the look-ahead are there; each is `growth` times the
    one before, up to `largest_chunk_frames`. `left_context_frames` of finished mel stand before it, behind the prompt.
    """

    steps: int = 15
    guidance: float = 2.0
    rescale: float = 0.75
    first_chunk_frames: int = 4
    growth: float = 1.5
    largest_chunk_frames: int = 25
    look_ahead_frames: int = 3
    left_context_frames: int = 25


@dataclass(frozen=True)
class VoicePrompt:
    """Whose voice: codes int64 [G] and durations int64 [G] of a recording and its mel [frames, 128]."""

    codes: Tensor
    durations: Tensor
    mel: Tensor


class InfillDecoder:
    """One utterance. Push codes, `end`, and `take` mel [frames, 128] until None."""

    def __init__(self, voicebox: Voicebox, dials: InfillDials, prompt: VoicePrompt | None, seed: int = 0) -> None:
        self.voicebox, self.dials = voicebox, dials
        weight = voicebox.cond_emb.weight
        noise = torch.randn(_NOISE_FRAMES, MEL_BINS, generator=torch.Generator().manual_seed(seed))
        self._noise = noise.to(weight.device, weight.dtype)
        if prompt is None:
            self._prompt_codes, self._prompt_mel = [], self._noise[:0]
        else:
            self._prompt_codes = torch.repeat_interleave(prompt.codes, prompt.durations).tolist()
            # A recording's mel is often some frames longer than its codes; keeping those would shift the condition.
            frames = min(len(prompt.mel), UPSAMPLING * len(self._prompt_codes))
            self._prompt_mel = prompt.mel[: frames - frames % UPSAMPLING].to(weight.device, weight.dtype)
            self._prompt_codes = self._prompt_codes[: frames // UPSAMPLING]
        self._past_codes: deque[int] = deque(maxlen=dials.left_context_frames or None)
        self._past_mel = self._noise[:0]
        self._waiting: deque[int] = deque()
        self._chunk_frames = float(dials.first_chunk_frames)
        self._made_frames = 0
        self._ended = False

    def push(self, code: int, duration_frames: int) -> None:
        """The next code. Raises SpeechCodeError."""
        size = self.voicebox.config.codebook_size
        if not 0 <= code < size or duration_frames < 1:
            raise SpeechCodeError(
                f"speech code {code} lasting {duration_frames} frames: codes are 0 to {size - 1}, durations at least 1"
            )
        self._waiting.extend([code] * duration_frames)

    def end(self) -> None:
        """No more codes will come."""
        self._ended = True

    @torch.inference_mode()
    def take(self) -> Tensor | None:
        """Mel of the next chunk, or None while codes are missing or nothing is left."""
        chunk, ahead = int(self._chunk_frames), self.dials.look_ahead_frames
        if not self._waiting or (len(self._waiting) < chunk + ahead and not self._ended):
            return None
        window = list(self._waiting)[: chunk + ahead]
        made = min(chunk, len(window))
        codes = torch.tensor([[*self._prompt_codes, *self._past_codes, *window]], device=self._noise.device)
        prefix = torch.cat((self._prompt_mel, self._past_mel)).unsqueeze(0)
        condition = self.voicebox.condition(codes, torch.ones_like(codes))
        frame = torch.arange(len(window) * UPSAMPLING, device=self._noise.device)
        noise = self._noise[(self._made_frames * UPSAMPLING + frame) % _NOISE_FRAMES].unsqueeze(0)
        mel = self.voicebox.solve(
            condition,
            noise,
            steps=self.dials.steps,
            prompt=prefix if prefix.shape[1] else None,
            guidance=self.dials.guidance,
            rescale=self.dials.rescale,
        )[0, : made * UPSAMPLING]
        for _ in range(made):
            self._remember(self._waiting.popleft())
        kept = len(self._past_codes) * UPSAMPLING
        self._past_mel = torch.cat((self._past_mel, mel))[-kept:] if kept else self._noise[:0]
        self._made_frames += made
        self._chunk_frames = min(self._chunk_frames * self.dials.growth, self.dials.largest_chunk_frames)
        return mel

    def _remember(self, code: int) -> None:
        if self.dials.left_context_frames:
            self._past_codes.append(code)


class VocosWindow:
    """Symmetric Vocos weights on a stream: mel in, the samples that no later frame can change out.

    `context_frames` on both sides of a frame are re-computed; from `exact_context(vocos)` on, nothing is lost.
    """

    def __init__(self, vocos: Vocos, context_frames: int) -> None:
        self.vocos, self.context_frames = vocos, context_frames
        self._mel: Tensor | None = None
        self._left = 0

    @staticmethod
    def exact_context(vocos: Vocos) -> int:
        """Frames to each side that a frame's samples depend on: three for each convolution, two for the transform."""
        return 3 * (vocos.config.num_layers + 1) + (N_FFT - HOP_SAMPLES) // 2 // HOP_SAMPLES + 1

    @torch.inference_mode()
    def push(self, mel: Tensor) -> Tensor:
        """mel [frames, 128] -> samples [480 * n] of the n frames that now have their right context."""
        self._mel = mel if self._mel is None else torch.cat((self._mel, mel))
        ready = len(self._mel) - self.context_frames
        return self._render(ready) if ready > self._left else mel.new_zeros(0)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """The samples of the frames still held back."""
        return torch.zeros(0) if self._mel is None else self._render(len(self._mel))

    def _render(self, until: int) -> Tensor:
        assert self._mel is not None
        sound = self.vocos(self._mel.unsqueeze(0))[0, self._left * HOP_SAMPLES : until * HOP_SAMPLES]
        cut = max(0, until - self.context_frames)
        self._mel = self._mel[cut:]
        self._left = until - cut
        return sound
