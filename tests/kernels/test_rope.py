"""Rotary embeddings against the rotation written out, and made once for everybody."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.rope import (
    _inverse_frequencies,
    apply_half,
    apply_interleaved,
    half_rotation,
    interleaved_rotation,
    rope_angles,
)

HEAD_DIM = 8


def rotate_half(x: Tensor, angles: Tensor) -> Tensor:
    return apply_half(x, half_rotation(angles, x.dtype))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Pair (j, j + head_dim / 2) of x [batch, heads, frames, head_dim] as a complex number, turned by its angle."""
    pairs = torch.complex(x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :])
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_halves_turn_as_complex_numbers_do() -> None:
    x = torch.randn(2, 3, 5, HEAD_DIM)
    angles = rope_angles(torch.randint(2000, (2, 5)), HEAD_DIM, 1e4)
    torch.testing.assert_close(rotate_half(x, angles), rotated(x, angles), rtol=1e-5, atol=1e-6)


def test_several_tensors_turn_at_once() -> None:
    stacked = torch.randn(2, 1, 3, 5, HEAD_DIM)
    angles = rope_angles(torch.arange(5)[None], HEAD_DIM, 1e4)
    together = apply_half(stacked, half_rotation(angles, stacked.dtype))
    assert torch.equal(together, torch.stack([rotate_half(x, angles) for x in stacked]))


@pytest.mark.parametrize("base", [1e4, 1e6])
def test_angles_first_made_while_serving_serve_training(base: float) -> None:
    _inverse_frequencies.cache_clear()
    with torch.inference_mode():
        rope_angles(torch.arange(3), HEAD_DIM, base)
    x = torch.randn(1, 1, 3, HEAD_DIM, requires_grad=True)
    rate = torch.ones((), requires_grad=True)
    angles = rate * rope_angles(torch.arange(3)[None], HEAD_DIM, base)
    rotate_half(x, angles).square().sum().backward()
    assert x.grad is not None and rate.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())
    torch.testing.assert_close(rate.grad, torch.zeros(()), rtol=0, atol=1e-4)


def test_neighbours_turn_as_complex_numbers_do() -> None:
    stacked = torch.randn(2, 2, 5, 3, HEAD_DIM).transpose(2, 3)  # as projections come, not in order in memory
    angles = rope_angles(torch.randint(2000, (2, 5)), HEAD_DIM, 1e4)
    even, odd = stacked[..., 0::2], stacked[..., 1::2]
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    expected = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)
    torch.testing.assert_close(apply_interleaved(stacked, interleaved_rotation(angles)), expected, rtol=1e-5, atol=1e-6)
    low = apply_interleaved(stacked.bfloat16(), interleaved_rotation(angles))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=2e-2, atol=2e-2)
