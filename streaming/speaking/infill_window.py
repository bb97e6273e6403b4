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

from kernels.rope import Rotation, apply_half
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
        self._turns = tuple(zeros(rows, 1, own, head_dim) for _ in range(2))
        self._bare_turns = tuple(zeros(1, 1, shape.target, head_dim) for _ in range(2))
        self._mask = zeros(rows, 1, 1, shape.frames)
        self._bare_mask = zeros(rows, 1, 1, shape.target)
        self._weight = zeros(rows, shape.target, 1, dtype=torch.float32)
        self._place = torch.arange(shape.frames, device=device)

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
        for kept, made in zip(self._turns, network.rotation(positions, self.keys.dtype), strict=True):
            kept.copy_(made)
        for kept, made in zip(self._bare_turns, network.rotation(own[None], self.keys.dtype), strict=True):
            kept.copy_(made)
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
        rows, own = shape.rows, shape.target + (shape.prefix if whole else 0)
        x = torch.cat((self.clean, self.x), 1) if whole else self.x
        first = network.mel_mlp(x.to(dtype)) + self._condition[:, -own:]
        parts = [first.flatten(0, 1)]
        if with_bare:
            parts.append((network.mel_mlp(self.x.to(dtype)) + self._nothing).flatten(0, 1))
        y = torch.cat(parts) if with_bare else parts[0]
        turns = (self._turns[0][:, :, -own:], self._turns[1][:, :, -own:])
        for index, layer in enumerate(network.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(y, gain[2 * index])
            stacked = attention.stacked(normed)  # [frames, 3 heads, head_dim]
            seen = [self._attend(index, stacked[: rows * own].unflatten(0, (rows, own)), turns)]
            if with_bare:
                seen.append(self._attend_bare(stacked[rows * own :].unflatten(0, (rows, shape.target))))
            y = y + attention.o_proj(torch.cat(seen) if with_bare else seen[0])
            y = y + layer.mlp(layer.post_attention_layernorm(y, gain[2 * index + 1]))
        out = network.mel_out_mlp(network.norm(y, gain[-1])).float()
        velocity = out[: rows * own].unflatten(0, (rows, own))[:, -shape.target :]
        return velocity, out[rows * own :].unflatten(0, (rows, shape.target)) if with_bare else None

    def _attend(self, layer: int, stacked: Tensor, turns: Rotation) -> Tensor:
        """stacked [rows, frames, 3 heads, head_dim] over prompt, prefix and target -> [rows * frames, hidden]."""
        query, key, value = stacked.transpose(1, 2).chunk(3, dim=1)
        keys, values = self.keys[:, layer], self.values[:, layer]
        own = stacked.shape[1]
        keys[:, :, -own:] = apply_half(key, turns)
        values[:, :, -own:] = value
        seen = F.scaled_dot_product_attention(apply_half(query, turns), keys, values, attn_mask=self._mask)
        return seen.transpose(1, 2).flatten(2).flatten(0, 1)

    def _attend_bare(self, stacked: Tensor) -> Tensor:
        query, key, value = stacked.transpose(1, 2).chunk(3, dim=1)
        turns = (self._bare_turns[0], self._bare_turns[1])
        seen = F.scaled_dot_product_attention(
            apply_half(query, turns), apply_half(key, turns), value, attn_mask=self._bare_mask
        )
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
