"""From duration-tagged codes to 50 Hz conditions for the flow decoder, frame by frame with a short look-ahead.

Codes are repeated by their durations to 12.5 Hz frames; each frame knows its place in its code and the code's length. A
convolution looks `look_ahead_frames` ahead, a causal transformer looks back, each frame unfolds into four at 50 Hz, and
causal ConvNeXt blocks smooth them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.layers.convnext import HISTORY, ConvNeXtBlock
from streaming.layers.embedding import embedding
from streaming.layers.module import StreamingModule
from streaming.layers.transformer import ProjectedTransformer, TransformerConfig, TransformerState
from streaming.speaking.chunk_plan import Layout
from streaming.speaking.mel24k import HOP_SAMPLES

MAX_DURATION_FRAMES = 8
UPSAMPLING = 4
OUTPUT_FRAME_SAMPLES = UPSAMPLING * HOP_SAMPLES
"""24 kHz samples of one 12.5 Hz frame."""


@dataclass(frozen=True)
class UnmergeConfig:
    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    context_frames: int
    look_ahead_frames: int
    smoothing_blocks: int


@dataclass
class Frames:
    """12.5 Hz frames of codes. vectors [batch, frames, dim] (the codes' embeddings); position and duration int64
    [batch, frames]: place within the code from 0, and the code's length; real bool [batch, frames].
    """

    vectors: Tensor
    position: Tensor
    duration: Tensor
    real: Tensor


@dataclass
class UnmergeState:
    previous: Tensor  # [rows, dim, 1], the last frame's input to the look-ahead convolution
    transformer: TransformerState
    smoothing: tuple[Tensor, ...]  # per block [rows, HISTORY, dim]


def repeat_codes(durations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which code each frame belongs to, its place in the code, the code's length, and whether the frame is real.

    durations int64 [batch, G], 0 for absent codes -> four tensors [batch, L], L the longest sum.
    """
    ends = durations.cumsum(1)
    length = int(ends[:, -1].max())
    time = torch.arange(length, device=durations.device)
    owner = (ends.unsqueeze(2) <= time).sum(1).clamp_max(durations.shape[1] - 1)
    held = durations.gather(1, owner)
    position = time - (ends - durations).gather(1, owner)
    real = time < ends[:, -1:]
    return owner, torch.where(real, position, 0), torch.where(real, held, 0), real


class Unmerge(StreamingModule[UnmergeState]):
    """Frames -> [batch, 4 * frames, dim].

    `step` takes `look_ahead_frames` more frames than it consumes: the next call begins with those again.
    """

    def __init__(self, config: UnmergeConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.position_embedding = embedding(MAX_DURATION_FRAMES, dim)
        self.duration_embedding = embedding(MAX_DURATION_FRAMES + 1, dim)
        self.look_ahead = nn.Conv1d(dim, dim, 2 + config.look_ahead_frames)
        self.transformer = ProjectedTransformer(
            TransformerConfig(
                dim, dim, config.num_heads, config.num_layers, config.ffn_dim, dim, "causal", config.context_frames
            )
        )
        self.unfold = nn.Linear(dim, UPSAMPLING * dim)
        self.smoothing = nn.ModuleList(ConvNeXtBlock(dim, 2 * dim, causal=True) for _ in range(config.smoothing_blocks))

    def forward(self, x: Frames, layout: Layout | None = None) -> Tensor:
        """With a `layout`, frames at the end of a chunk look no further than it says."""
        embedded = F.pad(self._embed(x), (1, self.config.look_ahead_frames))
        y = self.unfold_frames(self.transformer(self._look_ahead_within(embedded, layout)))
        for block in self.smoothing:
            y = block(y)
        return y

    def initial_state(self, batch: int) -> UnmergeState:
        zeros = self.position_embedding.weight.new_zeros
        return UnmergeState(
            zeros(batch, self.config.dim, 1),
            self.transformer.initial_state(batch),
            tuple(zeros(batch, HISTORY, self.config.dim) for _ in self.smoothing),
        )

    def step(self, x: Frames, state: UnmergeState, layout: Layout | None = None) -> tuple[Tensor, UnmergeState]:
        """Consumes all but the last `look_ahead_frames` of x; absent frames (after the end) have real = False.

        `layout` [rows, consumed] tells the chunks of the consumed frames; without one each looks as far as it can.
        """
        embedded = torch.cat((state.previous, self._embed(x)), dim=2)
        consumed = x.real.shape[1] - self.config.look_ahead_frames
        seen = self._look_ahead_within(embedded, layout)
        y, transformer = self.transformer.step(seen, state.transformer)
        y = self.unfold_frames(y)
        pasts = []
        for block, past in zip(self.smoothing, state.smoothing, strict=True):
            y, past = block.step(y, past)
            pasts.append(past)
        new = UnmergeState(embedded[:, :, consumed : consumed + 1], transformer, tuple(pasts))
        return y, new

    def _look_ahead_within(self, embedded: Tensor, layout: Layout | None) -> Tensor:
        """The look-ahead convolution, [batch, frames, dim], on zeros wherever a chunk may not look."""
        width = self.look_ahead.kernel_size[0]
        windows = embedded.unfold(2, width, 1)
        if layout is not None:
            place = torch.arange(windows.shape[2])[:, None] - 1 + torch.arange(width)
            seen = (place < layout.visible[..., None]).to(embedded.device)
            windows = windows * seen if seen.dim() == 2 else windows * seen.unsqueeze(1)
        flat = windows.transpose(1, 2).flatten(2)
        return F.linear(flat, self.look_ahead.weight.flatten(1), self.look_ahead.bias)

    def unfold_frames(self, y: Tensor) -> Tensor:
        return self.unfold(y).unflatten(2, (UPSAMPLING, -1)).flatten(1, 2)

    def _embed(self, x: Frames) -> Tensor:
        """[batch, dim, frames]; zeros where there is no frame."""
        y = x.vectors + self.position_embedding(x.position) + self.duration_embedding(x.duration)
        return (y * x.real.unsqueeze(2)).transpose(1, 2)
