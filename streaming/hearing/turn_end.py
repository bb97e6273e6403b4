"""Has the speaker finished? A small recurrent network over the audio encoder's frames, read where the voice pauses.

It hears what was said (the frames carry it, they are what the transcript is read from), how it was said and for how
long it has been quiet. Its answer is only meant for moments of silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from streaming.layers.module import StreamingModule, keep_inactive


class TurnEndConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """frame_size: width of the encoder's frames; hidden: of the recurrent state; pauses: logits that pauses inside turns
    get, rising, as evenly spaced quantiles."""

    frame_size: int = 256
    hidden: int = 96
    pauses: tuple[float, ...] = ()


@dataclass(frozen=True)
class TurnEndState:
    """hidden [rows, hidden]."""

    hidden: Tensor


class TurnEnd(StreamingModule[TurnEndState]):
    """Encoder frames [rows, n, frame_size] at 25 Hz -> logits [rows, n]: the turn is over, if it is quiet now."""

    def __init__(self, config: TurnEndConfig) -> None:
        super().__init__()
        self.config = config
        self.narrow = nn.Linear(config.frame_size, config.hidden)
        self.recurrent = nn.GRU(config.hidden, config.hidden, batch_first=True)
        self.done = nn.Linear(config.hidden, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.step(frames, self.initial_state(frames.shape[0]))[0]

    def initial_state(self, batch: int) -> TurnEndState:
        return TurnEndState(self.done.weight.new_zeros(batch, self.config.hidden))

    def step(self, x: Tensor, state: TurnEndState, active: Tensor | None = None) -> tuple[Tensor, TurnEndState]:
        if not x.shape[1]:
            return x.new_zeros(x.shape[0], 0), state
        out, last = self.recurrent(torch.tanh(self.narrow(x)), state.hidden[None].contiguous())
        return self.done(out)[..., 0], keep_inactive(TurnEndState(last[0]), state, active)

    def certainty(self, logits: Tensor) -> Tensor:
        """logits -> 0..1, the share of pauses inside turns that look less finished: who ends a turn above c cuts in on
        1 - c of them."""
        pauses = logits.new_tensor(self.config.pauses)
        above = torch.bucketize(logits, pauses, right=True)
        low, high = pauses[(above - 1).clamp_min(0)], pauses[above.clamp_max(len(pauses) - 1)]
        part = ((logits - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        return ((above - 1 + part) / (len(pauses) - 1)).clamp(0, 1)
