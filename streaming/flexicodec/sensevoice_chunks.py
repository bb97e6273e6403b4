"""SenseVoice's encoder in chunks: bounded look-ahead for weights that were trained to see the whole utterance.

The sequence (four query rows, then frames at 16.67 Hz) is cut into chunks. A chunk goes through all blocks together
with `look_ahead_frames` behind it, and sees

    the query rows | the newest `left_frames` before it | the chunk | its look-ahead

in attention, and as much of that as its kernel covers in the memory convolution. The look-ahead is thrown away and made
anew as part of the next chunk, so that what was given out never changes and no layer adds look-ahead of its own
(Emformer, arXiv 2010.10759, section 3). One chunk as long as the utterance is the encoder itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming.flexicodec.sensevoice import FEATURES, QUERY_ROWS, SenseVoiceBlock, SenseVoiceEncoder
from streaming.layers.module import StreamingModule

QUERIES = len(QUERY_ROWS)


@dataclass(frozen=True)
class ChunkDials:
    """Lengths in frames of 60 ms. Raises ValueError."""

    chunk_frames: int = 16
    look_ahead_frames: int = 8
    left_frames: int = 64

    def __post_init__(self) -> None:
        if self.chunk_frames < QUERIES or self.look_ahead_frames < 0 or self.left_frames < 0:
            raise ValueError(
                f"chunks hold at least {QUERIES} frames, look-ahead and left context at least 0, not {self}"
            )


@dataclass(frozen=True)
class BlockMemory:
    """Of one block: keys and values [rows, QUERIES, d_model] of the query rows and [rows, left, d_model] of the newest
    frames, newest last, zeros where there were none. left is `left_frames` or half the kernel, whichever is more."""

    query_keys: Tensor
    query_values: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class ChunkedState:
    """pending [rows, p, 560]: scaled features that wait for their chunk's look-ahead, p below chunk + look-ahead;
    position [rows] int64: places of the sequence, queries included, that went out."""

    pending: Tensor
    position: Tensor
    blocks: tuple[BlockMemory, ...]


class ChunkedSenseVoice(StreamingModule[ChunkedState]):
    """Normalised features [rows, T, 560] -> vectors [rows, T, d_model], `chunk + look-ahead` frames late at most.

    Rows stepped together must be in phase: past their first chunk all or none, and by whole chunks where some rest.
    """

    def __init__(self, encoder: SenseVoiceEncoder, dials: ChunkDials) -> None:
        super().__init__()
        self.encoder, self.dials = encoder, dials
        self.reach = encoder.config.kernel_size // 2
        self.left = max(dials.left_frames, self.reach)

    def forward(self, x: Tensor) -> Tensor:
        head, state = self.step(x, self.initial_state(x.shape[0]))
        return torch.cat((head, self.flush(state)[0]), dim=1)

    def initial_state(self, batch: int) -> ChunkedState:
        width, rows = self.encoder.config.d_model, self.encoder.embed.weight
        queries = self.encoder.prepend_queries(rows.new_zeros(batch, 0, FEATURES))
        memory = BlockMemory(
            *(rows.new_zeros(batch, frames, width) for frames in (QUERIES, QUERIES, self.left, self.left))
        )
        position = torch.zeros(batch, dtype=torch.int64, device=rows.device)
        return ChunkedState(queries, position, (memory,) * self.encoder.config.num_blocks)

    def step(self, x: Tensor, state: ChunkedState) -> tuple[Tensor, ChunkedState]:
        """The vectors of every chunk that x [rows, n, 560] completes together with its look-ahead; n may be 0."""
        chunk, parts = self.dials.chunk_frames, []
        pending = torch.cat((state.pending, x), dim=1)
        while pending.shape[1] >= chunk + self.dials.look_ahead_frames:
            vectors, state = self._chunk(pending[:, : chunk + self.dials.look_ahead_frames], chunk, state)
            parts.append(vectors)
            pending = pending[:, chunk:]
        new = ChunkedState(pending, state.position, state.blocks)
        return self._join(parts, x), new

    def flush(self, state: ChunkedState) -> tuple[Tensor, ChunkedState]:
        """The rest, as if nothing followed; the state returned has nothing pending."""
        pending, parts, like = state.pending, [], state.pending
        while pending.shape[1]:
            chunk = min(self.dials.chunk_frames, pending.shape[1])
            vectors, state = self._chunk(pending[:, : chunk + self.dials.look_ahead_frames], chunk, state)
            parts.append(vectors)
            pending = pending[:, chunk:]
        return self._join(parts, like), ChunkedState(pending, state.position, state.blocks)

    def _join(self, parts: list[Tensor], like: Tensor) -> Tensor:
        nothing = like.new_zeros(like.shape[0], 0, self.encoder.config.d_model)
        return torch.cat((nothing, *parts), dim=1)

    def _chunk(self, window: Tensor, kept: int, state: ChunkedState) -> tuple[Tensor, ChunkedState]:
        """Vectors of the first `kept` places of window [rows, n, 560], without those of the queries."""
        config, stack = self.encoder.config, self.encoder.encoder
        first = int(state.position.max()) == 0
        place = state.position[:, None] + torch.arange(window.shape[1], device=window.device)
        x = window * math.sqrt(config.d_model) + position_code_at(place, FEATURES).to(window.dtype)
        seen = self._seen(window.shape[1], state.position)
        memories = []
        blocks = cast(list[SenseVoiceBlock], [*stack.encoders0, *stack.encoders])
        for block, memory in zip(blocks, state.blocks, strict=True):
            attended, memory = self._attend(block, block.norm1(x), seen, memory, kept, first)
            x = x + attended if block.keeps_width else attended
            x = x + block.feed_forward(block.norm2(x))
            memories.append(memory)
        vectors = stack.after_norm(x[:, QUERIES if first else 0 : kept])
        return vectors, ChunkedState(state.pending[:, :0], state.position + kept, tuple(memories))

    def _attend(
        self, block: SenseVoiceBlock, x: Tensor, seen: Tensor, memory: BlockMemory, kept: int, first: bool
    ) -> tuple[Tensor, BlockMemory]:
        """`MemoryAttention` over memory and window, [rows, n, d_model], and the memory with the kept places."""
        attention = block.self_attn
        query, key, value = attention.linear_q_k_v(x).chunk(3, dim=-1)
        keys, values = torch.cat((memory.keys, key), dim=1), torch.cat((memory.values, value), dim=1)
        attended = F.scaled_dot_product_attention(
            *(
                part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                for part in (
                    query, torch.cat((memory.query_keys, keys), dim=1), torch.cat((memory.query_values, values), dim=1)
                )
            ),
            attn_mask=seen,
        )  # fmt: skip
        near = F.pad(values[:, self.left - self.reach :], (0, 0, 0, self.reach)).transpose(1, 2)
        convolved = F.conv1d(near, attention.fsmn_block.weight, groups=value.shape[2]).transpose(1, 2)
        newest = slice(kept, kept + self.left)
        new = BlockMemory(
            key[:, :QUERIES] if first else memory.query_keys,
            value[:, :QUERIES] if first else memory.query_values,
            keys[:, newest],
            values[:, newest],
        )
        return attention.linear_out(attended.transpose(1, 2).flatten(2)) + value + convolved, new

    def _seen(self, frames: int, position: Tensor) -> Tensor:
        """bool [rows, 1, 1, QUERIES + left + frames]: queries once they left the newest frames, frames that exist."""
        device, dials = position.device, self.dials
        age = torch.arange(self.left, 0, -1, device=device)
        kept = (age <= position[:, None]) & (age <= dials.left_frames)
        query = torch.arange(QUERIES, device=device) < position[:, None] - dials.left_frames
        window = torch.ones(position.shape[0], frames, dtype=torch.bool, device=device)
        return torch.cat((query, kept, window), dim=1)[:, None, None, :]


def position_code_at(place: Tensor, width: int) -> Tensor:
    """Sinusoids [rows, n, width] of places [rows, n] that count from 0; the network counts from 1."""
    half = width // 2
    scale = torch.exp(torch.arange(half, dtype=torch.float32, device=place.device) * (-math.log(10_000.0) / (half - 1)))
    angle = (place + 1).float()[..., None] * scale
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
