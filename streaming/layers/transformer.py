"""ProjectedTransformer: the pre-norm transformer of Mimi that FlexiCodec and FlexiSLM build everything on.

Per layer: x += s1 * Attn(LN1(x)); x += s2 * W2(gelu(W1(LN2(x)))), exact gelu, no biases but the norms', no final norm,
interleaved RoPE in float32 from position 0. State-dict keys are the official ones (FlexiSLM merger, FlexiCodec
bottleneck and aggregators).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attend
from kernels.rope import apply_interleaved, interleaved_rotation, rope_angles
from streaming.layers.module import StreamingModule

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
    """Cache of a causal transformer: the newest `context` positions, newest last, zeros where there were none."""

    past: Tensor  # [rows, layers, 2, heads, context, head_dim]: keys, already rotated, and values
    position: Tensor  # [rows] int64, frames seen so far


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE_AT_START))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """x plus the scaled branch."""
        return torch.addcmul(x, self.scale, branch)


class SelfAttention(nn.Module):
    """Multi-head attention with one stacked q|k|v projection."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values [batch, heads, frames, head_dim]; x is [batch, frames, d_model]."""
        stacked = F.linear(x, self.in_proj_weight).view(*x.shape[:2], 3, self.num_heads, -1)
        stacked = stacked.permute(2, 0, 3, 1, 4)
        query, key = apply_interleaved(stacked[:2], rotation)
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

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.self_attn.project(self.norm1(x), rotation)
        return self._finish(x, attend(query, key, value, mask))

    def step(self, x: Tensor, rotation: Tensor, mask: Tensor, past: Tensor) -> Tensor:
        """`past` [rows, 2, heads, past + new, head_dim]: keys and values so far; this call fills in its own frames."""
        query, key, value = self.self_attn.project(self.norm1(x), rotation)
        keys, values = past[:, 0], past[:, 1]
        keys[:, :, -x.shape[1] :] = key
        values[:, :, -x.shape[1] :] = value
        return self._finish(x, attend(query, keys, values, mask))

    def _finish(self, x: Tensor, heads: Tensor) -> Tensor:
        x = self.layer_scale_1(x, self.self_attn.merge(heads))
        return self.layer_scale_2(x, self.linear2(F.gelu(self.linear1(self.norm2(x)))))  # type: ignore[no-any-return]


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
        mask = self._mask(frames, x.device)
        if valid is not None:
            # Padding queries see themselves, so that no softmax row is empty.
            own = torch.eye(frames, dtype=torch.bool, device=x.device)
            mask = (valid[:, None, None, :] if mask is None else mask & valid[:, None, None, :]) | own
        rotation = self._rotation(torch.arange(frames, device=x.device).unsqueeze(0))
        x = self._project_in(x)
        for layer in self.transformer:
            x = layer(x, rotation, mask)
        return self._project_out(x)

    def initial_state(self, batch: int) -> TransformerState:
        config = self.config
        if config.mode != "causal":
            raise ValueError(f'a transformer of mode "{config.mode}" sees the future and cannot run step by step')
        weight = next(iter(self.transformer)).linear1.weight
        shape = (batch, config.num_layers, 2, config.num_heads, config.context, config.d_model // config.num_heads)
        zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return TransformerState(zeros, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def step(self, x: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """The next frames of every row: x [rows, frames, input_dim] -> [rows, frames, output_dim]."""
        frames = x.shape[1]
        if frames == 0:
            return x.new_zeros(x.shape[0], 0, self.config.output_dim), state
        past = _grown([state.past], frames)
        y = self._continue(x, past, state.position)
        new = TransformerState(past[..., frames:, :], state.position + frames)
        return y, new

    def step_ragged(
        self, x: Tensor, lengths: Sequence[int], states: Sequence[TransformerState]
    ) -> tuple[Tensor, list[TransformerState]]:
        """`step` of rows with states of their own, of which each takes only its first `lengths` frames.

        x [rows, frames, input_dim], padded on the right with finite numbers, to [rows, frames, output_dim], undefined
        in the padding; states of one row each. The new ones share their memory.
        """
        # Causal attention never reaches the padding behind a frame: only what becomes the past differs by row.
        past = _grown([state.past for state in states], x.shape[1])
        y = self._continue(x, past, torch.cat([state.position for state in states]))
        return y, [
            TransformerState(
                past[row : row + 1, ..., length : length + self.config.context, :], state.position + length
            )
            for row, (state, length) in enumerate(zip(states, lengths, strict=True))
        ]

    def _continue(self, x: Tensor, past: Tensor, position: Tensor) -> Tensor:
        """Outputs of frames that begin at `position` [rows]; fills in their places at the end of `past` (`_grown`)."""
        frames, context = x.shape[1], self.config.context
        positions = position[:, None] + torch.arange(frames, device=x.device)
        youngest, oldest = position.aminmax()
        held = min(context, int(oldest))  # what no row has needs no attention
        mask = _band((frames, held + frames), held + 1 - context, held, x.device)
        if int(youngest) < held:
            age = torch.arange(held, -frames, -1, device=x.device)
            mask = (mask & (age <= position[:, None])[:, None, :]).unsqueeze(1)
        rotation = self._rotation(positions)
        x = self._project_in(x)
        for index, layer in enumerate(self.transformer):
            x = layer.step(x, rotation, mask, past[:, index, :, :, context - held :])
        return self._project_out(x)

    def _mask(self, frames: int, device: torch.device) -> Tensor | None:
        context = self.config.context
        match self.config.mode:
            case "full":
                return None
            case "window":
                return _band((frames, frames), -(context // 2), context // 2, device)
            case "causal":
                return _band((frames, frames), 1 - context, 0, device)

    def _rotation(self, positions: Tensor) -> Tensor:
        return interleaved_rotation(rope_angles(positions, self.config.d_model // self.config.num_heads, ROPE_BASE))

    def _project_in(self, x: Tensor) -> Tensor:
        return self.input_proj(x) if self.config.input_dim != self.config.d_model else x

    def _project_out(self, x: Tensor) -> Tensor:
        return self.output_projs[0](x) if self.config.output_dim != self.config.d_model else x


def _band(shape: tuple[int, int], first: int, last: int, device: torch.device) -> Tensor:
    """bool `shape`, True where `first` <= column - row <= `last`."""
    return torch.ones(shape, dtype=torch.bool, device=device).tril_(last).triu_(first)


def _grown(pasts: Sequence[Tensor], frames: int) -> Tensor:
    """The rows of caches [rows, ..., context, head_dim] with room for `frames` more at their end: the one copy of them
    that a step makes."""
    rows, context = sum(past.shape[0] for past in pasts), pasts[0].shape[-2]
    grown = pasts[0].new_empty(rows, *pasts[0].shape[1:-2], context + frames, pasts[0].shape[-1])
    row = 0
    for past in pasts:
        grown[row : row + past.shape[0], ..., :context, :] = past
        row += past.shape[0]
    return grown
