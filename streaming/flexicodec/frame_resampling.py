"""Linear interpolation of feature frames from 16.67 Hz to 12.5 Hz, as FlexiCodec does between SenseVoice and merging.

The original fits the ratio to the utterance (T frames to int(T / 1.33333)), so that each output depends on the total
length. Streaming fixes the ratio at 4/3, where four frames always become three; the two agree exactly where T is a
multiple of four, and drift apart by at most one input frame elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streaming.layers.module import StreamingModule

DOWNSAMPLE_FACTOR = 1.33333
BLOCK_IN, BLOCK_OUT = 4, 3


def resampled_length(frames: int) -> int:
    """Frames at 12.5 Hz that the codec makes of `frames` at 16.67 Hz."""
    return int(frames / DOWNSAMPLE_FACTOR)


def resample_frames(x: Tensor, frames: int) -> Tensor:
    """x [batch, T, channels] at `frames` evenly spread points (pixel centres aligned): [batch, frames, channels]."""
    count = x.shape[1]
    if frames == 0:
        return x[:, :0]
    # float32 positions, as the original interpolation computes them
    step = torch.tensor(count / frames, dtype=torch.float32)
    position = ((torch.arange(frames, dtype=torch.float32) + 0.5) * step - 0.5).clamp_min(0).to(x.device)
    lower = position.floor().long().clamp_max(count - 1)
    fraction = (position - lower)[:, None].to(x.dtype)
    upper = (lower + 1).clamp_max(count - 1)
    return (1 - fraction) * x[:, lower] + fraction * x[:, upper]


@dataclass
class ResamplerState:
    """The frames of each row's unfinished block of four, left-aligned."""

    pending: Tensor  # [rows, 3, channels]
    count: Tensor  # [rows] int64, 0..3


class FrameResampler(StreamingModule[ResamplerState]):
    """[rows, frames, channels] at 16.67 Hz -> 12.5 Hz at the fixed ratio 4/3.

    Output j is made as soon as the second of its two input frames is there. Rows stepped together must complete equally
    many frames, which chunks of a multiple of four guarantee.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Whole utterances; T frames become floor(3 T / 4)."""
        first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return self._interpolate(x, first, x.shape[1] * BLOCK_OUT // BLOCK_IN)

    def initial_state(self, batch: int) -> ResamplerState:
        return ResamplerState(torch.zeros(batch, BLOCK_IN - 1, self.channels), torch.zeros(batch, dtype=torch.int64))

    def step(self, x: Tensor, state: ResamplerState) -> tuple[Tensor, ResamplerState]:
        rows, frames = x.shape[:2]
        # A row's frames of the open block, then the new ones, without the gap that a shorter block leaves.
        index = torch.arange(BLOCK_IN - 1 + frames, device=x.device).expand(rows, -1)
        gap = (BLOCK_IN - 1 - state.count)[:, None]
        index = torch.where(index < state.count[:, None], index, (index + gap).clamp_max(index.shape[1] - 1))
        joined = torch.cat((state.pending, x), dim=1)
        joined = joined.gather(1, index[:, :, None].expand(-1, -1, self.channels))
        total = state.count + frames
        emitted = state.count * BLOCK_OUT // BLOCK_IN  # outputs of the open block that went out already
        made = total * BLOCK_OUT // BLOCK_IN - emitted
        if made.numel() and int(made.min()) != int(made.max()):
            raise ValueError(f"rows stepped together complete unequal numbers of frames: feed multiples of {BLOCK_IN}")
        y = self._interpolate(joined, emitted, int(made[0]) if made.numel() else 0)
        start = total // BLOCK_IN * BLOCK_IN
        tail = (start[:, None] + torch.arange(BLOCK_IN - 1, device=x.device)).clamp_max(joined.shape[1] - 1)
        pending = joined.gather(1, tail[:, :, None].expand(-1, -1, self.channels))
        return y, ResamplerState(pending, total - start)

    def flush(self, state: ResamplerState) -> tuple[Tensor, ResamplerState]:
        """Nothing is held back: an incomplete block has no further output."""
        return state.pending[:, :0], self.initial_state(state.count.shape[0])

    def _interpolate(self, x: Tensor, first: Tensor, count: int) -> Tensor:
        """Outputs first..first+count-1 of each row, where x starts at a block border."""
        number = first[:, None] + torch.arange(count, device=x.device)
        block, phase = number // BLOCK_OUT, number % BLOCK_OUT
        lower = (block * BLOCK_IN + phase)[:, :, None].expand(-1, -1, x.shape[2])
        fraction = ((2 * phase + 1) / 6)[:, :, None].to(x.dtype)
        last = x.shape[1] - 1
        return (1 - fraction) * x.gather(1, lower.clamp_max(last)) + fraction * x.gather(1, (lower + 1).clamp_max(last))
