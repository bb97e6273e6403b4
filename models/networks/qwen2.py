"""The Qwen2 decoder that Thinker and Talker both are: whole sequences for training, cached steps for talking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kernels.attention import attend, attention_probabilities
from kernels.kv_cache import Append, KVCache
from kernels.rope import Rotation, apply_half, half_rotation, rope_angles
from streaming.layers.embedding import embedding
from streaming.layers.gated_mlp import GatedMLP


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a Qwen2 decoder. head_dim is hidden_size / num_heads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class HeadOfLayer:
    """One attention head, whose weights are wanted beside the output."""

    layer: int
    head: int


class RMSNorm(nn.Module):
    """x / rms(x) in float32, rounded to x's dtype, times the weight."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with biases on q, k, v and half-rotation RoPE."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [batch, heads, positions, head_dim], rotated keys and values [batch, kv_heads, ...]."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        cosine, sine = (turn.to(query.dtype) for turn in rotation)  # autocast may have changed it
        return apply_half(query, (cosine, sine)), apply_half(key, (cosine, sine)), value

    def merge(self, heads: Tensor) -> Tensor:
        return self.o_proj(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, watched_head: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Whole sequences; `watched_head`'s weights [batch, positions, positions] come back as well."""
        query, key, value = self.self_attn.project(self.input_layernorm(x), rotation)
        seen = attend(query, key, value, mask, causal=mask is None)
        watched = _watch(query, key, mask, mask is None, watched_head)
        return self._feed_forward(x + self.self_attn.merge(seen)), watched

    def step(
        self, x: Tensor, rotation: Rotation, cache: KVCache, layer: int, append: Append, watched_head: int | None
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = self.self_attn.project(self.input_layernorm(x), rotation)
        keys, values = cache.write(layer, append, key, value)
        seen = _attend_cached(query, keys, values, append)
        watched = _watch(query, keys, append.mask, append.causal, watched_head)
        return self._feed_forward(x + self.self_attn.merge(seen)), watched

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Qwen2Model(nn.Module):
    """Embeddings in, hidden states after the final norm out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, embeddings: Tensor, valid: Tensor | None = None, watch: HeadOfLayer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Causal pass over whole sequences, with gradients.

        embeddings [batch, positions, hidden] -> hidden [batch, positions, hidden] and, for the watched head, its
        attention weights [batch, positions, positions] in float32. Batches padded on the right need no `valid`:
        nothing real comes after padding. Others give `valid` [batch, positions] bool, True at real positions.
        """
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)
        rotation = self._rotation(positions[None], embeddings.dtype)
        mask = None
        if valid is not None:
            causal = positions[:, None] >= positions[None, :]
            own = positions[:, None] == positions[None, :]  # so that padding queries see something
            mask = (causal & valid[:, None, None, :]) | own
        x, watched = embeddings, None
        for index, layer in enumerate(self._layers()):
            x, seen = layer(x, rotation, mask, watch.head if watch is not None and watch.layer == index else None)
            watched = seen if seen is not None else watched
        return self.norm(x), watched

    def step(
        self, embeddings: Tensor, cache: KVCache, slots: Sequence[int], watch: HeadOfLayer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The next positions of the given slots, behind what their caches hold.

        embeddings [rows, positions, hidden] -> hidden of the same shape and the watched head's weights
        [rows, positions, cached + positions].
        """
        append = cache.plan(slots, embeddings.shape[1])
        rotation = self._rotation(append.positions, embeddings.dtype)
        x, watched = embeddings, None
        for index, layer in enumerate(self._layers()):
            head = watch.head if watch is not None and watch.layer == index else None
            x, seen = layer.step(x, rotation, cache, index, append, head)
            watched = seen if seen is not None else watched
        cache.commit(append)
        return self.norm(x), watched

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        return half_rotation(rope_angles(positions, self.config.head_dim, self.config.rope_theta), dtype)

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))

    def new_cache(self, slots: int, max_positions: int) -> KVCache:
        weight = self.embed_tokens.weight
        config = self.config
        return KVCache(
            config.num_layers, slots, max_positions, config.num_kv_heads, config.head_dim, weight.dtype, weight.device
        )


def _attend_cached(query: Tensor, keys: Tensor, values: Tensor, append: Append) -> Tensor:
    """Attention of new positions over a cache: query [rows, heads, count, head_dim] -> the same shape."""
    if append.mask is not None or append.causal:
        return attend(query, keys, values, append.mask, causal=append.causal)
    # A single position that sees everything: heads that share keys are queries of one head, and keys are read once.
    rows, heads, count, head_dim = query.shape
    shared = query.reshape(rows, keys.shape[1], -1, head_dim)
    return attend(shared, keys, values).reshape(rows, heads, count, head_dim)


def _watch(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, head: int | None) -> Tensor | None:
    if head is None:
        return None
    shared = head * key.shape[1] // query.shape[1]
    queries, keys = query[:, head : head + 1], key[:, shared : shared + 1]
    return attention_probabilities(queries, keys, mask, causal=causal).squeeze(1)
