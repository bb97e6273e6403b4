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
    """frame_size: width of the encoder's frames; hidden: of the recurrent state."""

    frame_size: int = 256
    hidden: int = 96


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
