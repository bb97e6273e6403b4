"""Causal transformer with relative positions (Transformer-XL style), the block of FlexiCodec-TTS's two encoders.

score_ij = ((q_i + u) k_j + (q_i + v) P r_{i-j}) / sqrt(head_dim), where r_d holds sines (even entries) and cosines (odd
entries) of d exp(-2k ln(10000) / width). Pre-norm, eps 1e-5, input times sqrt(width), a norm at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Flavour = Literal["text", "language"]
"""Two sets of official key names: "text" norm_mha / norm_ff with swish, "language" norm1 / norm2 with ReLU."""


@dataclass(frozen=True)
class RelativeEncoderConfig:
    width: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    flavour: Flavour


@dataclass
class RelativeState:
    """Keys and values so far, in room for `capacity` positions, and the projected distances, which never change."""

    keys: Tensor  # [layers, batch, heads, capacity, head_dim]
    values: Tensor  # like keys
    distances: Tensor  # [layers, heads, capacity, head_dim]
    position: int


def distance_codes(count: int, width: int, like: Tensor) -> Tensor:
    """r_0 .. r_{count-1}: [count, width]."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    angle = torch.arange(count, dtype=torch.float32)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).to(like)


class RelativeAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(num_heads, width // num_heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(num_heads, width // num_heads))

    def heads(self, x: Tensor) -> Tensor:
        """[..., frames, width] -> [..., heads, frames, head_dim]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, distances: Tensor, valid: Tensor | None) -> Tensor:
        """x [batch, n, width] are the last n of the K positions of key and value [batch, heads, K, head_dim].

        `distances` [heads, >= K, head_dim]; `valid` [batch, K] bool hides padding keys.
        """
        frames, total = x.shape[1], key.shape[2]
        query = self.heads(self.linear_q(x))
        by_content = (query + self.pos_bias_u[:, None]) @ key.transpose(-2, -1)
        by_distance = (query + self.pos_bias_v[:, None]) @ distances[:, :total].transpose(-2, -1)
        place = torch.arange(total, device=x.device)
        distance = place[total - frames :, None] - place
        by_distance = by_distance.gather(-1, distance.clamp_min(0).expand_as(by_distance))
        hidden = distance < 0
        if valid is not None:
            hidden = hidden | ~valid[:, None, None, :]
        score = (by_content + by_distance) / math.sqrt(query.shape[-1])
        attended = score.masked_fill(hidden, -torch.inf).softmax(-1) @ value
        return self.linear_out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class RelativeFeedForward(nn.Module):
    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, ffn_dim)
        self.w_2 = nn.Linear(ffn_dim, width)


class RelativeLayer(nn.Module):
    def __init__(self, config: RelativeEncoderConfig) -> None:
        super().__init__()
        self.flavour = config.flavour
        self.self_attn = RelativeAttention(config.width, config.num_heads)
        self.feed_forward = RelativeFeedForward(config.width, config.ffn_dim)
        names = ("norm_mha", "norm_ff") if config.flavour == "text" else ("norm1", "norm2")
        for name in names:
            self.add_module(name, nn.LayerNorm(config.width))

    def before_attention(self, x: Tensor) -> Tensor:
        return self.norm_mha(x) if self.flavour == "text" else self.norm1(x)  # type: ignore[no-any-return]

    def feed(self, x: Tensor) -> Tensor:
        if self.flavour == "text":
            return x + self.feed_forward.w_2(F.silu(self.feed_forward.w_1(self.norm_ff(x))))  # type: ignore[no-any-return]
        return x + self.feed_forward.w_2(F.relu(self.feed_forward.w_1(self.norm2(x))))  # type: ignore[no-any-return]


class RelativeEncoder(nn.Module):
    """[batch, frames, width] -> the same, causal; whole or in pieces over a key/value cache."""

    def __init__(self, config: RelativeEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(RelativeLayer(config) for _ in range(config.num_layers))
        self.after_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Whole sequences; `lengths` [batch] counts the real frames of a padded batch."""
        valid = None
        if lengths is not None:
            valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        codes = distance_codes(x.shape[1], self.config.width, x)
        x = x * math.sqrt(self.config.width)
        for layer in self.encoders:
            attention, normed = layer.self_attn, layer.before_attention(x)
            key, value = (attention.heads(linear(normed)) for linear in (attention.linear_k, attention.linear_v))
            x = layer.feed(x + attention(normed, key, value, attention.heads(attention.linear_pos(codes)), valid))
        return self.after_norm(x)  # type: ignore[no-any-return]

    def initial_state(self, batch: int, capacity: int) -> RelativeState:
        """Empty caches with room for `capacity` positions."""
        config = self.config
        codes = distance_codes(capacity, config.width, self.after_norm.weight)
        projected = [layer.self_attn.heads(layer.self_attn.linear_pos(codes)) for layer in self.encoders]
        shape = (config.num_layers, batch, config.num_heads, capacity, config.width // config.num_heads)
        return RelativeState(codes.new_zeros(shape), codes.new_zeros(shape), torch.stack(projected), 0)

    def step(self, x: Tensor, state: RelativeState) -> tuple[Tensor, RelativeState]:
        """The next frames of every row. Caches are written in place: an older state is no snapshot."""
        start, end = state.position, state.position + x.shape[1]
        if end > state.keys.shape[3]:
            raise ValueError(f"{end} positions do not fit into caches made for {state.keys.shape[3]}")
        x = x * math.sqrt(self.config.width)
        for index, layer in enumerate(self.encoders):
            attention, normed = layer.self_attn, layer.before_attention(x)
            state.keys[index, :, :, start:end] = attention.heads(attention.linear_k(normed))
            state.values[index, :, :, start:end] = attention.heads(attention.linear_v(normed))
            key, value = state.keys[index, :, :, :end], state.values[index, :, :, :end]
            x = layer.feed(x + attention(normed, key, value, state.distances[index], None))
        return self.after_norm(x), RelativeState(state.keys, state.values, state.distances, end)
