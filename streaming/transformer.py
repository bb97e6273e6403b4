"""ProjectedTransformer: the pre-norm transformer of Mimi that FlexiCodec and FlexiSLM build everything on.

Per layer: x += s1 * Attn(LN1(x)); x += s2 * W2(gelu(W1(LN2(x)))), exact gelu, no biases but the norms', no final norm,
interleaved RoPE in float32 from position 0. State-dict keys are the official ones (FlexiSLM merger, FlexiCodec
bottleneck and aggregators).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attend
from kernels.rope import rope_angles, rotate_interleaved
from streaming.module import StreamingModule, keep_inactive

ROPE_BASE = 10_000.0
LAYER_SCALE_AT_START = 0.01

AttentionMode = Literal["full", "window", "causal"]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a ProjectedTransformer.

    `mode` says what query i sees: "full" everything; "window" keys with |i - j| <= context // 2; "causal" keys with
    0 <= i - j < context. Projections exist exactly where `input_dim` / `output_dim` differ from `d_model`.
    """

    input_dim: int
    d_model: int
    num_heads: int
    num_layers: int
    ffn_dim: int
    output_dim: int
    mode: AttentionMode = "full"
    context: int = 0

    def __post_init__(self) -> None:
        if self.d_model % (2 * self.num_heads):
            raise ValueError(f"d_model {self.d_model} must be a multiple of twice num_heads {self.num_heads}")
        if self.mode != "full" and self.context < 1:
            raise ValueError(f'mode "{self.mode}" needs a context of at least 1 frame, not {self.context}')


@dataclass
class TransformerState:
    """Caches of a causal transformer: the newest `context` positions, newest last, zeros where there were none."""

    keys: Tensor  # [rows, layers, heads, context, head_dim], already rotated
    values: Tensor  # [rows, layers, heads, context, head_dim]
    position: Tensor  # [rows] int64, frames seen so far


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE_AT_START))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class SelfAttention(nn.Module):
    """Multi-head attention with one stacked q|k|v projection."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def project(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values [batch, heads, frames, head_dim]; x is [batch, frames, d_model]."""
        stacked = F.linear(x, self.in_proj_weight).view(*x.shape[:2], 3, self.num_heads, -1)
        stacked = stacked.permute(2, 0, 3, 1, 4)
        query, key = rotate_interleaved(stacked[:2], angles)
        return query, key, stacked[2]

    def merge(self, heads: Tensor) -> Tensor:
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.d_model, config.num_heads)
        self.norm1 = nn.LayerNorm(config.d_model, eps=1e-5)
        self.norm2 = nn.LayerNorm(config.d_model, eps=1e-5)
        self.linear1 = nn.Linear(config.d_model, config.ffn_dim, bias=False)
        self.linear2 = nn.Linear(config.ffn_dim, config.d_model, bias=False)
        self.layer_scale_1 = LayerScale(config.d_model)
        self.layer_scale_2 = LayerScale(config.d_model)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.self_attn.project(self.norm1(x), angles)
        return self.feed_forward(x + self.layer_scale_1(self.self_attn.merge(attend(query, key, value, mask))))

    def step(self, x: Tensor, angles: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`keys` and `values` [rows, heads, past + new, head_dim] hold the past; this call fills in its own frames."""
        query, key, value = self.self_attn.project(self.norm1(x), angles)
        keys[:, :, -x.shape[1] :] = key
        values[:, :, -x.shape[1] :] = value
        return self.feed_forward(x + self.layer_scale_1(self.self_attn.merge(attend(query, keys, values, mask))))

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale_2(self.linear2(F.gelu(self.linear1(self.norm2(x)))))  # type: ignore[no-any-return]


class LayerStack(nn.Module):
    """Holder that gives the layers their official key prefix `transformer.layers`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))

    def __iter__(self) -> Iterator[TransformerLayer]:
        return iter(cast(list[TransformerLayer], list(self.layers)))


class ProjectedTransformer(StreamingModule[TransformerState]):
    """[batch, frames, input_dim] -> [batch, frames, output_dim]; `step` needs mode "causal"."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = LayerStack(config)
        if config.input_dim != config.d_model:
            self.input_proj = nn.Linear(config.input_dim, config.d_model, bias=False)
        if config.output_dim != config.d_model:
            self.output_projs = nn.ModuleList([nn.Linear(config.d_model, config.output_dim, bias=False)])

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Whole sequences; `valid` [batch, frames] bool marks the real frames of a padded batch."""
        frames = x.shape[1]
        positions = torch.arange(frames, device=x.device)
        mask = self._mask(positions)
        if valid is not None:
            # Padding queries see themselves, so that no softmax row is empty.
            own = torch.eye(frames, dtype=torch.bool, device=x.device)
            mask = (valid[:, None, None, :] if mask is None else mask & valid[:, None, None, :]) | own
        angles = self._angles(positions.unsqueeze(0))
        x = self._project_in(x)
        for layer in self.transformer:
            x = layer(x, angles, mask)
        return self._project_out(x)

    def initial_state(self, batch: int) -> TransformerState:
        config = self.config
        if config.mode != "causal":
            raise ValueError(f'a transformer of mode "{config.mode}" sees the future and cannot run step by step')
        weight = next(iter(self.transformer)).linear1.weight
        shape = (batch, config.num_layers, config.num_heads, config.context, config.d_model // config.num_heads)
        zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return TransformerState(zeros, zeros.clone(), torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def step(self, x: Tensor, state: TransformerState, active: Tensor | None = None) -> tuple[Tensor, TransformerState]:
        """The next frames of every row: x [rows, frames, input_dim] -> [rows, frames, output_dim]."""
        frames, context = x.shape[1], self.config.context
        if frames == 0:
            return x.new_zeros(x.shape[0], 0, self.config.output_dim), state
        positions = state.position[:, None] + torch.arange(frames, device=x.device)
        past = min(context, int(state.position.max()))  # what no row has needs no attention
        distance = torch.arange(past, past + frames, device=x.device)[:, None] - torch.arange(
            past + frames, device=x.device
        )
        age = torch.arange(past, -frames, -1, device=x.device)
        near = (distance >= 0) & (distance < context)
        mask = (near & (age <= state.position[:, None])[:, None, :]).unsqueeze(1)
        angles = self._angles(positions)
        keys, values = _grown(state.keys, frames), _grown(state.values, frames)
        x = self._project_in(x)
        for index, layer in enumerate(self.transformer):
            x = layer.step(x, angles, mask, keys[:, index, :, context - past :], values[:, index, :, context - past :])
        new = TransformerState(keys[..., frames:, :], values[..., frames:, :], state.position + frames)
        return self._project_out(x), keep_inactive(new, state, active)

    def _mask(self, positions: Tensor) -> Tensor | None:
        if self.config.mode == "full":
            return None
        distance = positions[:, None] - positions[None, :]
        if self.config.mode == "window":
            return distance.abs() <= self.config.context // 2
        return (distance >= 0) & (distance < self.config.context)

    def _angles(self, positions: Tensor) -> Tensor:
        return rope_angles(positions, self.config.d_model // self.config.num_heads, ROPE_BASE)

    def _project_in(self, x: Tensor) -> Tensor:
        return self.input_proj(x) if self.config.input_dim != self.config.d_model else x

    def _project_out(self, x: Tensor) -> Tensor:
        return self.output_projs[0](x) if self.config.output_dim != self.config.d_model else x


def _grown(past: Tensor, frames: int) -> Tensor:
    """A cache [..., context, head_dim] with room for `frames` more at its end: the one copy of it that a step makes."""
    context = past.shape[-2]
    grown = past.new_empty(*past.shape[:-2], context + frames, past.shape[-1])
    grown[..., :context, :] = past
    return grown
