"""Has the speaker finished? A small network over the audio encoder's frames, read where the voice pauses.

It hears what was said (the frames carry it, they are what the transcript is read from), how it was said and for how
long it has been quiet: as means of the frames that forget the past sooner or later. Its answer is only meant for
moments of silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.layers.module import StreamingModule


class TurnEndConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """frame_size: width of the encoder's frames; hidden: of the layer over all means; spans_frames: after so many the
    means have forgotten about two thirds; pauses: logits that pauses inside turns get, rising, as evenly spaced
    quantiles."""

    frame_size: int = 256
    hidden: int = 96
    spans_frames: tuple[float, ...] = (1.0, 3.0, 8.0, 24.0, 75.0)
    pauses: tuple[float, ...] = ()


@dataclass(frozen=True)
class TurnEndState:
    """means [rows, spans, frame_size]."""

    means: Tensor


class TurnEnd(StreamingModule[TurnEndState]):
    """Encoder frames [rows, n, frame_size] at 25 Hz -> logits [rows, n]: the turn is over, if it is quiet now."""

    def __init__(self, config: TurnEndConfig) -> None:
        super().__init__()
        self.config = config
        self.keep = tuple(math.exp(-1 / span) for span in config.spans_frames)
        self.mix = nn.Linear(len(self.keep) * config.frame_size, config.hidden)
        self.done = nn.Linear(config.hidden, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.step(frames, self.initial_state(frames.shape[0]))[0]

    def initial_state(self, batch: int) -> TurnEndState:
        return TurnEndState(self.done.weight.new_zeros(batch, len(self.keep), self.config.frame_size))

    def step(self, x: Tensor, state: TurnEndState) -> tuple[Tensor, TurnEndState]:
        rows, n, _ = x.shape
        if not n:
            return x.new_zeros(rows, 0), state
        keep = x.new_tensor(self.keep)[:, None, None]
        age = torch.arange(n, device=x.device)[:, None] - torch.arange(n, device=x.device)
        weights = torch.where(age >= 0, (1 - keep) * keep ** age.clamp_min(0), 0.0)
        left = (keep[:, 0] ** torch.arange(1, n + 1, device=x.device)).T
        means = torch.einsum("sij,rjh->rish", weights, x) + left[None, :, :, None] * state.means[:, None]
        return self.judge(means), TurnEndState(means[:, -1])

    def judge(self, means: Tensor) -> Tensor:
        """Logits [...] of means [..., spans, frame_size]."""
        return self.done(F.gelu(self.mix(means.flatten(-2))))[..., 0]  # type: ignore[no-any-return]

    def certainty(self, logits: Tensor) -> Tensor:
        """logits -> 0..1, the share of pauses inside turns that look less finished: who ends a turn above c cuts in on
        1 - c of them."""
        pauses = logits.new_tensor(self.config.pauses)
        above = torch.bucketize(logits, pauses, right=True)
        low, high = pauses[(above - 1).clamp_min(0)], pauses[above.clamp_max(len(pauses) - 1)]
        part = ((logits - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        return ((above - 1 + part) / (len(pauses) - 1)).clamp(0, 1)
