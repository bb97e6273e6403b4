"""Block-causal audio encoder of the embedded model: log-mel at 100 Hz in, frames at 25 Hz out, two CTC heads.

Four mel frames make one encoder frame (two stride-2 convolutions that look left only across that grid). Attention sees
the open block and a bounded past; RoPE positions count frames from the start of the stream. Emformer (arXiv 2010.10759)
has the block pattern, Nozaki and Komatsu (arXiv 2104.02724) the self-conditioned CTC. The heads tell characters and
text pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.rope import apply_half, half_rotation, rope_angles
from streaming.layers.module import StreamingModule

MEL_FRAMES_PER_FRAME = 4
BLOCKS_TOGETHER = 8
"""Blocks that a long piece is encoded by in one pass; more of them save nothing and take memory."""
FEW_FRAMES = 32
"""Frames a row up to which the depthwise convolution is one product and one sum; with more, its terms are added up one
by one, because the product of all of them leaves the cache."""


class EncoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes; `block_frames` and `left_frames` are in 25 Hz frames, `middle_layer` carries the intermediate CTC head."""

    mel_bins: int = 80
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    feed_forward: int = 768
    kernel: int = 7
    block_frames: int = 8
    left_frames: int = 48
    characters: int = 29
    pieces: int = 1025
    middle_layer: int = 3
    rope_base: float = 10_000.0
    dropout: float = 0.0


@dataclass(frozen=True)
class EncoderState:
    """pending [rows, p, mel_bins] mel frames short of a block; position [rows] int64: frames encoded so far. What is
    seen on the left by the convolutions of the beginning, mel_left [rows, 1, mel_bins] and half_left [rows, 1, hidden];
    by each layer's convolution, [rows, layers, kernel - 1, hidden] normalised frames; by its attention, past [rows,
    layers, 2, heads, left_frames, head_dim] keys and values, newest last."""

    pending: Tensor
    mel_left: Tensor
    half_left: Tensor
    position: Tensor
    convolution: Tensor
    past: Tensor


@dataclass(frozen=True)
class EncoderOutput:
    """frames [rows, n, hidden] after the final norm; logits [rows, n, classes] of characters (last and middle layer)
    and of pieces."""

    frames: Tensor
    characters: Tensor
    middle_characters: Tensor
    pieces: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.frames, self.characters, self.middle_characters, self.pieces


class EncoderLayer(nn.Module):
    """Attention, causal depthwise convolution and feed-forward, each behind a LayerNorm and a residual."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.config = config
        self.attention_norm = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.convolution_norm = nn.LayerNorm(d)
        self.depthwise = nn.Parameter(torch.randn(config.kernel, d) / config.kernel)
        self.pointwise = nn.Linear(d, d)
        self.feed_forward_norm = nn.LayerNorm(d)
        self.up = nn.Linear(d, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, d)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each [rows, heads, n, head_dim]."""
        rows, n, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, n, 3, self.config.heads, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q, k = apply_half(qkv[:2], rotation)
        return q, k, qkv[2]

    def convolve(self, x: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """x plus its causal convolution given `left` [rows, kernel - 1, hidden] normalised frames; and the new left."""
        n = x.shape[1]
        window = torch.cat((left, self.convolution_norm(x)), dim=1)
        return x + self.dropout(self.pointwise(F.silu(self._mix(window, n)))), window[:, n:]

    def _mix(self, window: Tensor, n: int) -> Tensor:
        if n <= FEW_FRAMES:  # what costs here is the number of calls
            return (window.unfold(1, self.config.kernel, 1) * self.depthwise.t()).sum(-1)
        mixed = window[:, :n] * self.depthwise[0]
        for tap in range(1, self.config.kernel):
            mixed = torch.addcmul(mixed, window[:, tap : tap + n], self.depthwise[tap])
        return mixed

    def feed(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(F.silu(self.up(self.feed_forward_norm(x)))))


class BlockCausalEncoder(StreamingModule[EncoderState]):
    """`forward` on whole clips; `step` on pieces of any size. Rows stepped together must be in phase unless each piece
    is a whole number of blocks."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if config.left_frames % config.block_frames:
            raise ValueError(
                f"left_frames {config.left_frames} must be a multiple of block_frames {config.block_frames}"
            )
        d = config.hidden_size
        self.config = config
        self.halve_mel = nn.Linear(3 * config.mel_bins, d)
        self.halve_hidden = nn.Linear(3 * d, d)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.middle_norm = nn.LayerNorm(d)
        self.middle_characters = nn.Linear(d, config.characters)
        self.self_condition = nn.Linear(config.characters, d)
        self.final_norm = nn.LayerNorm(d)
        self.characters = nn.Linear(d, config.characters)
        self.pieces = nn.Linear(d, config.pieces)

    @property
    def block_mel_frames(self) -> int:
        return self.config.block_frames * MEL_FRAMES_PER_FRAME

    def _halve(self, x: Tensor, left: Tensor, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Stride-2 convolution of width 3 over [rows, 2m, c] whose left neighbour is `left` [rows, 1, c]."""
        even, odd = x[:, 0::2], x[:, 1::2]
        before = torch.cat((left, odd[:, :-1]), dim=1)
        return F.gelu(linear(torch.cat((before, even, odd), dim=-1))), odd[:, -1:]

    def _heads(self, x: Tensor, middle: Tensor) -> EncoderOutput:
        frames = self.final_norm(x)
        return EncoderOutput(frames, self.characters(frames), middle, self.pieces(frames))

    def _condition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.middle_characters(self.middle_norm(x))
        return x + self.self_condition(middle.float().softmax(-1).to(x.dtype)), middle

    def encode(self, mel: Tensor, lengths: Tensor | None = None) -> EncoderOutput:
        """Whole clips: mel [rows, T, mel_bins], zero-padded on the right; `lengths` [rows] true mel frames.

        Gives ceil(T / 4) frames per row; frames past a row's ceil(length / 4) are undefined.
        """
        rows, mel_frames, _ = mel.shape
        frames = -(-mel_frames // MEL_FRAMES_PER_FRAME)
        blocks = -(-frames // self.config.block_frames)
        mel = F.pad(mel, (0, 0, 0, blocks * self.block_mel_frames - mel_frames))
        x, _ = self._halve(mel, mel.new_zeros(rows, 1, mel.shape[2]), self.halve_mel)
        x, _ = self._halve(x, x.new_zeros(rows, 1, x.shape[2]), self.halve_hidden)
        true_frames = torch.full((rows,), frames) if lengths is None else -(-lengths // MEL_FRAMES_PER_FRAME)
        mask = self._block_mask(blocks, true_frames.to(x.device))
        positions = torch.arange(x.shape[1], device=x.device)
        rotation = self._rotation(positions[None], x)
        middle = x
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            x = x + layer.dropout(layer.out(self._block_attention(*layer.project(x, rotation), mask)))
            x, _ = layer.convolve(x, x.new_zeros(rows, self.config.kernel - 1, x.shape[2]))
            x = layer.feed(x)
            if i + 1 == self.config.middle_layer:
                x, middle = self._condition(x)
        encoded = self._heads(x, middle)
        return EncoderOutput(*(part[:, :frames] for part in encoded.parts()))

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Frames [rows, ceil(T / 4), hidden] of whole clips, see `encode`."""
        return self.encode(mel, lengths).frames

    def _rotation(self, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return half_rotation(rope_angles(positions, x.shape[2] // self.config.heads, self.config.rope_base), x.dtype)

    def _block_mask(self, blocks: int, true_frames: Tensor) -> Tensor:
        """[rows, 1, blocks, 1, left + block] True where a block may look."""
        span = self.config.left_frames + self.config.block_frames
        block = torch.arange(blocks, device=true_frames.device)[:, None]
        start = block * self.config.block_frames - self.config.left_frames
        keys = start + torch.arange(span, device=true_frames.device)
        # A block wholly past the row's end sees its own padding: its output is undefined, but must not be NaN.
        end = torch.maximum(true_frames[:, None, None], keys[None, :, -1:] + 1 - self.config.block_frames + 1)
        return ((keys >= 0) & (keys < end))[:, None, :, None, :]

    def _block_attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        rows, heads, n, size = q.shape
        block = self.config.block_frames
        q = q.view(rows, heads, n // block, block, size)
        k, v = self._windows(k), self._windows(v)
        scores = (q @ k.transpose(-1, -2)) / size**0.5
        weights = scores.masked_fill(~mask, -1e4).softmax(-1).to(v.dtype)
        mixed = weights @ v
        return mixed.reshape(rows, heads, n, size).transpose(1, 2).reshape(rows, n, heads * size)

    def _windows(self, x: Tensor) -> Tensor:
        """Keys or values [rows, heads, n, d] as each block sees them: [rows, heads, blocks, left + block, d]."""
        block, past = self.config.block_frames, self.config.left_frames // self.config.block_frames
        blocks = F.pad(x, (0, 0, self.config.left_frames, 0)).unflatten(2, (-1, block))
        count = blocks.shape[2] - past
        # Shifted copies, not unfold: its backward pass is the dearest part of a training step on a CPU.
        return torch.cat([blocks[:, :, i : i + count] for i in range(past + 1)], dim=3)

    def initial_state(self, batch: int) -> EncoderState:
        c, like = self.config, self.final_norm.weight
        return EncoderState(
            like.new_zeros(batch, 0, c.mel_bins),
            like.new_zeros(batch, 1, c.mel_bins),
            like.new_zeros(batch, 1, c.hidden_size),
            torch.zeros(batch, dtype=torch.int64, device=like.device),
            like.new_zeros(batch, c.layers, c.kernel - 1, c.hidden_size),
            like.new_zeros(batch, c.layers, 2, c.heads, c.left_frames, c.hidden_size // c.heads),
        )

    def step_heads(self, mel: Tensor, state: EncoderState) -> tuple[EncoderOutput, EncoderState]:
        """Encodes every block that `mel` [rows, T, mel_bins] completes; T may be 0."""
        mel = torch.cat((state.pending, mel), dim=1)
        blocks = mel.shape[1] // self.block_mel_frames
        parts = []
        for piece in mel[:, : blocks * self.block_mel_frames].split(BLOCKS_TOGETHER * self.block_mel_frames, dim=1):
            if piece.shape[1]:
                encoded, state = self._blocks(piece, state)
                parts.append(encoded)
        state = replace(state, pending=mel[:, blocks * self.block_mel_frames :])
        return self._join(parts, mel), state

    def step(self, x: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        encoded, state = self.step_heads(x, state)
        return encoded.frames, state

    def flush_heads(self, state: EncoderState) -> tuple[EncoderOutput, EncoderState]:
        """The open block, as if the clip ended here; the state returned has nothing pending."""
        mel = state.pending
        if not mel.shape[1]:
            return self._join([], mel), state
        mel = F.pad(mel, (0, 0, 0, -mel.shape[1] % MEL_FRAMES_PER_FRAME))
        encoded, state = self._blocks(mel, state)
        return encoded, replace(state, pending=mel[:, :0])

    def flush(self, state: EncoderState) -> tuple[Tensor, EncoderState]:
        encoded, state = self.flush_heads(state)
        return encoded.frames, state

    def _join(self, parts: list[EncoderOutput], like: Tensor) -> EncoderOutput:
        if len(parts) == 1:
            return parts[0]
        if parts:
            return EncoderOutput(
                *(torch.cat(pieces, dim=1) for pieces in zip(*(p.parts() for p in parts), strict=True))
            )
        c = self.config
        classes = (c.hidden_size, c.characters, c.characters, c.pieces)
        return EncoderOutput(*(like.new_zeros(like.shape[0], 0, n) for n in classes))

    def _blocks(self, mel: Tensor, state: EncoderState) -> tuple[EncoderOutput, EncoderState]:
        """Some blocks, the last one complete or (at the end) open: mel [rows, 4n, mel_bins]."""
        x, mel_left = self._halve(mel, state.mel_left, self.halve_mel)
        x, half_left = self._halve(x, state.half_left, self.halve_hidden)
        rows, n, hidden = x.shape
        left = self.config.left_frames
        rotation = self._rotation(state.position[:, None] + torch.arange(n, device=x.device), x)
        seen = self._seen(n, state.position)
        past = state.past.new_empty(*state.past.shape[:4], left + n, state.past.shape[5])
        convolutions, middle = [], x
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            q, k, v = layer.project(x, rotation)
            cache = past[:, i]
            cache[..., :left, :] = state.past[:, i]  # only now: attention reads it while it is near
            cache[:, 0, :, left:] = k
            cache[:, 1, :, left:] = v
            mixed = F.scaled_dot_product_attention(q, cache[:, 0], cache[:, 1], attn_mask=seen)
            x = x + layer.out(mixed.transpose(1, 2).reshape(rows, n, hidden))
            x, convolution = layer.convolve(x, state.convolution[:, i])
            x = layer.feed(x)
            convolutions.append(convolution)
            if i + 1 == self.config.middle_layer:
                x, middle = self._condition(x)
        new = EncoderState(
            state.pending[:, :0],
            mel_left,
            half_left,
            state.position + n,
            torch.stack(convolutions, dim=1),
            past[..., n:, :],
        )
        return self._heads(x, middle), new

    def _seen(self, n: int, position: Tensor) -> Tensor | None:
        """bool [rows, 1, n or 1, left + n]: the cached frames that exist and the new ones, as each block may look; None
        where that is all of them."""
        left, block = self.config.left_frames, self.config.block_frames
        if n <= block and int(position.min()) >= left:
            return None
        key = torch.arange(-left, n, device=position.device)
        exists = (key >= -position[:, None])[:, None, None, :]
        if n <= block:
            return exists
        start = torch.arange(n, device=position.device)[:, None] // block * block
        return exists & (key >= start - left) & (key < start + block)
