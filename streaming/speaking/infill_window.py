"""The windows of in-filling as rows of fixed places, and the work on them that can be recorded.

    row     prompt | prefix | target          the prompt is remembered, prefix and target go through the network
    bare    target                            as guidance asks for: without prompt, prefix and codes

`prepare` turns codes into conditions once; `period` goes as many steps as one prefix lasts, so that other work can cut
in between two periods. Guided and bare frames are packed one behind the other, so that a product reads its weights once
for both; only attention tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.packed_linear import add_product
from streaming.speaking.flow import Voicebox
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.unmerge import UPSAMPLING


@dataclass(frozen=True)
class WindowShape:
    """50 Hz frames of the places, the same in all rows."""

    rows: int
    prompt: int
    prefix: int
    target: int

    @property
    def frames(self) -> int:
        return self.prompt + self.prefix + self.target


@dataclass(frozen=True)
class Guidance:
    """scale: how far velocities are pushed away from those without condition; rescale: how far their spread is pulled
    back."""

    scale: float
    rescale: float


class WindowBatch:
    """Rows of windows in tensors that stay where they are.

    Filled by the host: codes int64 [rows, (prefix + target) / 4], lengths int64 [3, rows] of the filled places, clean
    float32 [rows, prefix, 128], x float32 [rows, target, 128]: the noise and then the mel, and number int64 [1]: the
    period that comes next. keys and values [rows, layers, heads, frames, head_dim] hold the remembered prompt first.
    """

    def __init__(self, voicebox: Voicebox, shape: WindowShape) -> None:
        config, weight, rows = voicebox.config, voicebox.cond_emb.weight, shape.rows
        self.shape, self._voicebox = shape, voicebox
        device = weight.device

        def zeros(*size: int, dtype: torch.dtype = weight.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        own, head_dim = shape.prefix + shape.target, config.hidden // config.num_heads
        self.codes = zeros(rows, own // UPSAMPLING, dtype=torch.int64)
        self.lengths = zeros(3, rows, dtype=torch.int64)
        self.clean = zeros(rows, shape.prefix, MEL_BINS, dtype=torch.float32)
        self.x = zeros(rows, shape.target, MEL_BINS, dtype=torch.float32)
        self.number = zeros(1, dtype=torch.int64)
        self.keys, self.values = (
            zeros(rows, config.num_layers, config.num_heads, shape.frames, head_dim) for _ in range(2)
        )
        # What `prepare` makes of these.
        self._condition = zeros(rows, own, config.hidden)
        self._nothing = zeros(1, 1, config.hidden)
        self._turns_whole = zeros(2, rows * (own + shape.target), 1, head_dim)  # of guided and bare frames, packed
        self._turns_between = zeros(2, rows * 2 * shape.target, 1, head_dim)
        self._mask = zeros(rows, 1, 1, shape.frames)
        self._bare_mask = zeros(rows, 1, 1, shape.target)
        self._weight = zeros(rows, shape.target, 1, dtype=torch.float32)
        self._place = torch.arange(shape.frames, device=device)
        # The rotations' table of frequencies is made by who asks first, which must not be a recorded step.
        voicebox.diff_estimator.rotation(self._place[None, :1], weight.dtype)

    def prepare(self) -> None:
        """Conditions, rotations and masks of what the host has filled in."""
        network, shape = self._voicebox.diff_estimator, self.shape
        prompt, prefix, target = self.lengths[:, :, None].unbind(0)
        held, own = self._place[: shape.prefix], self._place[: shape.target]
        in_target = own < target
        seen = torch.cat((self._place[: shape.prompt] < prompt, held < prefix, in_target), 1)
        self._mask.copy_(_bias(seen, self._mask.dtype))
        self._bare_mask.copy_(_bias(in_target, self._mask.dtype))
        self._weight.copy_(in_target[:, :, None])
        positions = torch.cat((prompt + held, prompt + prefix + own), 1)
        placed = [network.rotation(where, self.keys.dtype) for where in (positions, own.expand(shape.rows, -1))]
        turns, bare = (torch.stack(factors)[:, :, 0] for factors in placed)  # [2, rows, frames, head_dim]
        between = turns[:, :, -shape.target :]
        self._turns_whole.copy_(torch.cat((turns.flatten(1, 2), bare.flatten(1, 2)), 1)[:, :, None])
        self._turns_between.copy_(torch.cat((between.flatten(1, 2), bare.flatten(1, 2)), 1)[:, :, None])
        vectors = self._voicebox.cond_emb(self.codes)[:, :, None].expand(-1, -1, UPSAMPLING, -1).flatten(1, 2)
        self._condition.copy_(network.cond_mlp(vectors))
        self._nothing.copy_(network.cond_mlp(torch.zeros_like(self._nothing)))

    def period(self, gains: Tensor, guided: Sequence[bool], guidance: Guidance, steps: int) -> None:
        """One prefix and the steps that go on with it: gains [periods, steps of each, norms, hidden] at all times;
        whether each of the period's steps is guided; of so many `steps` in all."""
        own = gains.index_select(0, self.number)[0]
        for index, with_bare in enumerate(guided):
            gain = own[index]
            velocity, bare = self._pass(gain, whole=index == 0, with_bare=with_bare)
            if bare is not None:
                further = velocity + guidance.scale * (velocity - bare)
                ratio = self._spread(velocity) / self._spread(further)
                velocity = guidance.rescale * further * ratio + (1 - guidance.rescale) * further
            self.x.add_(velocity, alpha=1 / steps)
        self.number.add_(1)

    def _pass(self, gain: Tensor, *, whole: bool, with_bare: bool) -> tuple[Tensor, Tensor | None]:
        """Velocities float32 [rows, target, 128] with the condition and, if asked for, without."""
        network, shape, dtype = self._voicebox.diff_estimator, self.shape, self.keys.dtype
        own = shape.target + (shape.prefix if whole else 0)
        guided = shape.rows * own
        x = torch.cat((self.clean, self.x), 1) if whole else self.x
        parts = [(network.mel_mlp(x.to(dtype)) + self._condition[:, -own:]).flatten(0, 1)]
        if with_bare:
            parts.append((network.mel_mlp(self.x.to(dtype)) + self._nothing).flatten(0, 1))
        y = torch.cat(parts)
        straight, crossed = (self._turns_whole if whole else self._turns_between)[:, : len(y)].unbind(0)
        heads = self.keys.shape[2]
        for index, layer in enumerate(network.layers):
            attention = layer.self_attn
            stacked = attention.stacked(layer.input_layernorm.fused(y, gain[2 * index]))  # [frames, 3 heads, head_dim]
            turned = stacked[:, : 2 * heads]
            torch.addcmul(turned * straight, turned.roll(turned.shape[-1] // 2, -1), crossed, out=turned)
            seen = [self._attend(index, stacked[:guided].unflatten(0, (shape.rows, own)))]
            if with_bare:
                seen.append(self._attend_bare(stacked[guided:].unflatten(0, (shape.rows, shape.target))))
            y = add_product(y, torch.cat(seen) if with_bare else seen[0], attention.o_proj)
            inner = layer.mlp.inner(layer.post_attention_layernorm.fused(y, gain[2 * index + 1]))
            y = add_product(y, inner, layer.mlp.down_proj)
        out = network.mel_out_mlp(network.norm.fused(y, gain[-1])).float()
        velocity = out[:guided].unflatten(0, (shape.rows, own))[:, -shape.target :]
        return velocity, out[guided:].unflatten(0, (shape.rows, shape.target)) if with_bare else None

    def _attend(self, layer: int, stacked: Tensor) -> Tensor:
        """Rotated heads [rows, frames, 3 heads, head_dim] over prompt, prefix and target -> [rows * frames, hidden]."""
        query, key, value = stacked.transpose(1, 2).chunk(3, dim=1)
        keys, values = self.keys[:, layer], self.values[:, layer]
        own = stacked.shape[1]
        keys[:, :, -own:] = key
        values[:, :, -own:] = value
        seen = F.scaled_dot_product_attention(query, keys, values, attn_mask=self._mask)
        return seen.transpose(1, 2).flatten(2).flatten(0, 1)

    def _attend_bare(self, stacked: Tensor) -> Tensor:
        query, key, value = stacked.transpose(1, 2).chunk(3, dim=1)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bare_mask)
        return seen.transpose(1, 2).flatten(2).flatten(0, 1)

    def _spread(self, x: Tensor) -> Tensor:
        """Standard deviation over the real frames of each row, unbiased: [rows, 1, 1]."""
        count = self._weight.sum((1, 2), keepdim=True) * MEL_BINS
        mean = (x * self._weight).sum((1, 2), keepdim=True) / count
        square = ((x - mean).square() * self._weight).sum((1, 2), keepdim=True)
        # A row that nobody uses has no frames, and must stay finite all the same.
        return (square / (count - 1).clamp_min(1)).sqrt().clamp_min(1e-20)


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of places seen bool [rows, places]; lowest rather than infinite, so that a row
    nobody uses stays finite."""
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, lowest)[:, None, None]
