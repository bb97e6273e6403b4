"""The Qwen2 decoder that Thinker and Talker both are: whole sequences for training, cached steps for talking."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attend, attention_probabilities
from kernels.packed_linear import add_product
from kernels.paged_attention import CPU_PAGE, PagedAttention
from kernels.paged_cache import Decode, PagedCache
from kernels.rope import Rotation, apply_half, half_rotation, rope_angles
from streaming.layers.embedding import embedding
from streaming.layers.gated_mlp import GatedMLP, joined


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

    def fused(self, x: Tensor) -> Tensor:
        """The same in one kernel, which rounds to x's dtype once, after the weight."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with biases on q, k, v and half-rotation RoPE. Keys: q_proj, k_proj, v_proj, o_proj;
    after `fuse` the first three are one, qkv_proj."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [batch, heads, positions, head_dim], rotated keys and values [batch, kv_heads, ...]."""
        query, key, value = self.stacked(x).transpose(-2, -3).split((self.heads, self.kv_heads, self.kv_heads), dim=-3)
        cosine, sine = (turn.to(query.dtype) for turn in rotation)  # autocast may have changed it
        return apply_half(query, (cosine, sine)), apply_half(key, (cosine, sine)), value

    def stacked(self, x: Tensor) -> Tensor:
        """Queries, keys and values of x [..., hidden], not rotated: [..., heads + 2 kv_heads, head_dim]."""
        if hasattr(self, "qkv_proj"):
            together = self.qkv_proj(x)
        else:
            together = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        return together.unflatten(-1, (-1, self.head_dim))

    def merge(self, heads: Tensor) -> Tensor:
        return self.o_proj(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def fuse(self) -> None:
        """One product instead of three, for inference: the keys are those of no checkpoint any more."""
        if not hasattr(self, "qkv_proj"):
            self.qkv_proj = joined(self.q_proj, self.k_proj, self.v_proj)
            del self.q_proj, self.k_proj, self.v_proj


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
        x = x + self.self_attn.merge(seen)
        return x + self.mlp(self.post_attention_layernorm(x)), watched

    def step(
        self,
        x: Tensor,
        rotate: Callable[[Tensor], Tensor],
        write: Callable[[Tensor, Tensor], None],
        attend_to_pages: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """New tokens x [tokens, hidden], which may be changed in place, with a cache.

        rotate takes heads [tokens, heads, head_dim]; write takes keys and values [tokens, kv_heads, head_dim]. Returns
        x after the layer, and the rotated queries [tokens, heads, head_dim].
        """
        attention, mlp = self.self_attn, self.mlp
        both = attention.stacked(self.input_layernorm.fused(x))
        turning = attention.heads + attention.kv_heads
        query, key = rotate(both[:, :turning]).split((attention.heads, attention.kv_heads), dim=1)
        write(key, both[:, turning:])
        x = add_product(x, attend_to_pages(query).flatten(1), attention.o_proj)
        return add_product(x, mlp.inner(self.post_attention_layernorm.fused(x)), mlp.down_proj), query


class Qwen2Model(nn.Module):
    """Embeddings in, hidden states after the final norm out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # Factors of every position's frame and of its halves exchanged, [positions, 2, 1, head_dim]; and where a
        # rotated element comes from itself, and from its partner, [2, head_dim, head_dim].
        self._rotations: Tensor | None = None
        self._places: Tensor | None = None

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

    def prefill(
        self,
        embeddings: Tensor,
        cache: PagedCache,
        sequences: Sequence[int],
        counts: Sequence[int],
        attention: PagedAttention,
        watch: HeadOfLayer | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Further positions of some sequences, packed one behind the other, behind what the cache holds of each.

        embeddings [tokens, hidden] -> hidden of the same shape and, for the watched head, the attention weights of
        each sequence's last token, float32 [sequences, most positions held].
        """
        plan = cache.prefill(sequences, counts)
        assert self._rotations is not None
        straight, crossed = self._rotations.index_select(0, plan.positions).unbind(1)
        x, looked = self._through(
            embeddings.clone(),
            lambda heads: apply_half(heads, (straight, crossed)),
            plan.where,
            cache,
            lambda query, pages: attention.prefill(query, pages, plan),
            watch,
        )
        cache.commit(plan)
        if watch is None or looked is None:
            return x, None
        last = looked.index_select(0, plan.offsets[1:].to(torch.int64) - 1)
        pages = cache.layers[watch.layer]
        return x, _watch_pages(last[:, watch.head], pages, self._kv_head(watch), plan.table, plan.ends)

    def decode(
        self,
        embeddings: Tensor,
        cache: PagedCache,
        step: Decode,
        attention: PagedAttention,
        watch: HeadOfLayer | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The next position of each row, without the host; embeddings [rows, hidden], changed in place.

        Returns hidden of the same shape and the watched head's weights, float32 [rows, positions looked at].
        """
        x, looked = self._through(
            embeddings,
            partial(torch.bmm, mat2=self._turns(step.positions)),
            step.where,
            cache,
            lambda query, pages: attention.decode(query, pages, step),
            watch,
        )
        cache.advance(step)
        if watch is None or looked is None:
            return x, None
        pages = cache.layers[watch.layer]
        return x, _watch_pages(looked[:, watch.head], pages, self._kv_head(watch), step.table, step.ends)

    def _through(
        self,
        x: Tensor,
        rotate: Callable[[Tensor], Tensor],
        where: Tensor,
        cache: PagedCache,
        attend_to: Callable[[Tensor, Tensor], Tensor],
        watch: HeadOfLayer | None,
    ) -> tuple[Tensor, Tensor | None]:
        """All layers and the final norm; and the watched layer's queries."""
        looked = None
        for index, layer in enumerate(self._layers()):
            x, query = layer.step(
                x, rotate, partial(cache.write, index, where), partial(attend_to, pages=cache.layers[index])
            )
            if watch is not None and watch.layer == index:
                looked = query
        return self.norm.fused(x), looked

    def _turns(self, positions: Tensor) -> Tensor:
        """A step's rotations as matrices [rows, head_dim, head_dim]: one small product a layer instead of a kernel for
        each of its parts."""
        assert self._rotations is not None and self._places is not None
        straight, crossed = self._rotations.index_select(0, positions).unbind(1)
        return torch.addcmul(self._places[0] * straight, self._places[1], crossed)

    def _rotate_up_to(self, positions: int) -> None:
        """Makes the tables of steps for so many positions, once and beforehand: a step may make nothing that stays."""
        like, table = self.embed_tokens.weight, self._rotations
        if table is not None and len(table) >= positions and (table.device, table.dtype) == (like.device, like.dtype):
            return
        with torch.inference_mode(False), torch.no_grad():
            every = torch.arange(positions, device=like.device)[None]
            straight, crossed = self._rotation(every, like.dtype)
            self._rotations = torch.stack((straight[0, 0], crossed[0, 0]), dim=1)[:, :, None].contiguous()
            own = torch.eye(self.config.head_dim, dtype=like.dtype, device=like.device)
            self._places = torch.stack((own, own.roll(self.config.head_dim // 2, 0)))

    def _kv_head(self, watch: HeadOfLayer) -> int:
        return watch.head * self.config.num_kv_heads // self.config.num_heads

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        return half_rotation(rope_angles(positions, self.config.head_dim, self.config.rope_theta), dtype)

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))

    def fuse(self) -> None:
        """Joins products that read the same input, for inference; a checkpoint's keys fit no more."""
        for layer in self._layers():
            layer.self_attn.fuse()
            layer.mlp.fuse()

    def new_cache(self, sequences: int, max_positions: int, page: int = CPU_PAGE) -> PagedCache:
        weight, config = self.embed_tokens.weight, self.config
        self._rotate_up_to(max_positions)
        shape = (config.num_layers, sequences, max_positions, config.num_kv_heads, config.head_dim)
        return PagedCache(*shape, weight.dtype, weight.device, page=page)


def _watch_pages(query: Tensor, pages: Tensor, kv_head: int, table: Tensor, ends: Tensor) -> Tensor:
    """One head's weights, float32 [rows, positions of the table]: query [rows, head_dim] over all that rows hold."""
    rows, head_dim = query.shape
    keys = pages[0, :, :, kv_head].index_select(0, table.flatten().to(torch.int64)).view(rows, -1, head_dim).float()
    scores = (keys @ query.float()[:, :, None])[:, :, 0] / math.sqrt(head_dim)
    beyond = torch.arange(keys.shape[1], device=keys.device) >= ends[:, None]
    return scores.masked_fill_(beyond, float("-inf")).softmax(-1)


def _watch(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, head: int | None) -> Tensor | None:
    if head is None:
        return None
    shared = head * key.shape[1] // query.shape[1]
    queries, keys = query[:, head : head + 1], key[:, shared : shared + 1]
    return attention_probabilities(queries, keys, mask, causal=causal).squeeze(1)
