"""Weights in one byte: small error, exact shapes and names."""

from __future__ import annotations

import torch

from streaming.layers.compact import compact, expand


def test_matrices_come_back_within_half_a_step_of_their_row() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a.weight": torch.randn(64, 96, generator=generator) * torch.logspace(-4, 1, 64).unsqueeze(1),
        "conv.weight": torch.randn(32, 16, 9, generator=generator),
        "a.bias": torch.randn(64, generator=generator),
        "small.weight": torch.randn(3, 5, generator=generator),
        "zeros.weight": torch.zeros(64, 64),
    }
    again = expand(compact(weights))
    assert again.keys() == weights.keys()
    for name, value in weights.items():
        assert again[name].dtype == torch.float32 and again[name].shape == value.shape
        error = (again[name] - value).abs()
        if name in ("a.weight", "conv.weight", "zeros.weight"):
            step = value.flatten(1).abs().amax(1, keepdim=True) / 127
            assert bool((error.flatten(1) <= 0.501 * step).all()), name
        else:
            torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-4)


def test_storing_twice_changes_nothing_more() -> None:
    weights = {"w": torch.randn(128, 64, generator=torch.Generator().manual_seed(1))}
    once = expand(compact(weights))
    torch.testing.assert_close(expand(compact(once)), once, rtol=1e-5, atol=1e-6)


def test_a_matrix_takes_half_the_room_of_float16() -> None:
    stored = compact({"w": torch.randn(256, 256)})
    assert sum(value.numel() * value.element_size() for value in stored.values()) < 1.02 * 256 * 256
