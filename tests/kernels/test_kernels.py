"""Fused kernels against their plain references, and a decoder with its cache."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.attention import attend, attend_reference, attention_probabilities
from kernels.block_pool import CacheFullError
from kernels.paged_attention import GatheredPages
from kernels.paged_cache import PagedCache
from kernels.rope import apply_half, apply_interleaved, half_rotation, interleaved_rotation, rope_angles
from kernels.sampling import draw, filtered_probabilities
from models.networks.qwen2 import DecoderConfig, HeadOfLayer, Qwen2Model

PAGES = GatheredPages(4)
CONFIG = DecoderConfig(
    vocab_size=11, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, rope_theta=1e4
)


@pytest.fixture(scope="module")
def decoder() -> Qwen2Model:
    torch.manual_seed(0)
    return Qwen2Model(CONFIG).eval()


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_equals_the_reference(causal: bool) -> None:
    query, key, value = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    fused = attend(query, key, value, causal=causal)
    torch.testing.assert_close(fused, attend_reference(query, key, value, causal=causal))
    mask = torch.rand(2, 1, 7, 7) > 0.5
    mask |= torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(attend(query, key, value, mask), attend_reference(query, key, value, mask))


@pytest.mark.parametrize("halves", [True, False])
def test_rotation_keeps_lengths_and_depends_on_distance_only(halves: bool) -> None:
    x, y = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def rotate(x: Tensor, angles: Tensor) -> Tensor:
        if halves:
            return apply_half(x, half_rotation(angles, x.dtype))
        return apply_interleaved(x, interleaved_rotation(angles))

    def score(first: int, second: int) -> float:
        a = rotate(x, rope_angles(torch.tensor([[first]]), 8, 1e4))
        b = rotate(y, rope_angles(torch.tensor([[second]]), 8, 1e4))
        torch.testing.assert_close(a.norm(), x.norm())
        return float((a * b).sum())

    assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-5)


def step(decoder: Qwen2Model, x: Tensor, cache: PagedCache, slots: list[int]) -> Tensor:
    """One more position x [rows, hidden] of some slots, without the host."""
    for slot in slots:
        cache.reserve(slot, cache.held[slot] + 1)
    plan = cache.decode(torch.tensor(slots), cache.width(slots))
    hidden, _ = decoder.decode(x.clone(), cache, plan, PAGES)
    for slot in slots:
        cache.stepped(slot)
    return hidden


def test_cached_steps_equal_the_whole_pass(decoder: Qwen2Model) -> None:
    x = torch.randn(9, 32)
    cache = decoder.new_cache(2, 16, page=4)
    watch = HeadOfLayer(layer=1, head=3)
    with torch.inference_mode():
        whole, weights = decoder(x[None], watch=watch)
        assert weights is not None
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 9))
        for part in x.split([4, 3, 1, 1]):
            start = cache.held[1]
            y, row = decoder.prefill(part, cache, [1], [len(part)], PAGES, watch)
            end = cache.held[1]
            torch.testing.assert_close(y, whole[0, start:end], rtol=1e-4, atol=1e-5)
            assert row is not None
            torch.testing.assert_close(row[0, :end], weights[0, end - 1, :end], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("slots", [[0, 1, 2], [2, 0], [3, 1, 0], [2]])
def test_desynchronised_slots_do_not_see_each_other(decoder: Qwen2Model, slots: list[int]) -> None:
    inputs = {slot: torch.randn(3 + 2 * slot, 32) for slot in slots}
    cache = decoder.new_cache(4, 16, page=4)
    with torch.inference_mode():
        ahead = torch.cat([x[:-1] for x in inputs.values()])
        decoder.prefill(ahead, cache, slots, [len(x) - 1 for x in inputs.values()], PAGES)
        together = step(decoder, torch.stack([inputs[slot][-1] for slot in slots]), cache, slots)
        for row, slot in enumerate(slots):
            alone, _ = decoder(inputs[slot][None])
            torch.testing.assert_close(together[row], alone[0, -1], rtol=1e-4, atol=1e-5)


def test_a_row_that_has_nothing_to_do_leaves_its_slot_alone(decoder: Qwen2Model) -> None:
    x = torch.randn(5, 32)
    cache = decoder.new_cache(2, 16, page=4)
    with torch.inference_mode():
        decoder.prefill(x[:4], cache, [0], [4], PAGES)
        cache.reserve(0, 8)
        before = cache.values[:, :, 1:].clone()
        plan = cache.decode(torch.tensor([0, cache.idle]), 2, inactive=torch.tensor([True, False]))
        decoder.decode(torch.randn(2, 32), cache, plan, PAGES)
        assert torch.equal(cache.values[:, :, 1:], before)
        assert cache.lengths.tolist() == [4, 0, 0]
        cache.check()


def test_rolling_back_forgets_what_came_after(decoder: Qwen2Model) -> None:
    x, detour = torch.randn(6, 32), torch.randn(5, 32)
    cache = decoder.new_cache(1, 16, page=4)
    with torch.inference_mode():
        decoder.prefill(x[:4], cache, [0], [4], PAGES)
        decoder.prefill(detour, cache, [0], [5], PAGES)
        cache.truncate(0, 4)
        y, _ = decoder.prefill(x[4:], cache, [0], [2], PAGES)
        torch.testing.assert_close(y, decoder(x[None])[0][0, 4:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be cut"):
        cache.truncate(0, 7)


def test_a_full_slot_says_so(decoder: Qwen2Model) -> None:
    cache = decoder.new_cache(1, 4)
    with pytest.raises(CacheFullError, match="start a new one"), torch.inference_mode():
        decoder.prefill(torch.randn(5, 32), cache, [0], [5], PAGES)
    assert cache.held == [0]


def test_joined_products_are_the_products_one_by_one(decoder: Qwen2Model) -> None:
    fused = copy.deepcopy(decoder)
    fused.fuse()
    fused.fuse()
    assert not any("q_proj" in name or "gate_proj" in name for name in fused.state_dict())
    x = torch.randn(1, 7, 32)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x)[0], decoder(x)[0], rtol=1e-4, atol=1e-5)


def test_left_padding_is_not_seen_and_gradients_flow(decoder: Qwen2Model) -> None:
    x = torch.randn(1, 5, 32, requires_grad=True)
    padded = torch.cat((torch.full((1, 2, 32), 7.0), x), dim=1)
    valid = torch.arange(7)[None] >= 2
    hidden, _ = decoder(padded, valid)
    # RoPE depends on distances only, so that shifted positions give the same.
    torch.testing.assert_close(hidden[:, 2:], decoder(x)[0], rtol=1e-4, atol=1e-4)
    hidden[:, 2:].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_watched_weights_are_those_attention_uses() -> None:
    query, key, value = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    weights = attention_probabilities(query, key, causal=True)
    torch.testing.assert_close(weights @ value, attend(query, key, value, causal=True))


def test_filtering_keeps_ties_and_the_first_token_past_the_nucleus() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert (filtered_probabilities(logits, top_k=2) > 0).tolist() == [True, True, True, False]
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    assert (filtered_probabilities(logits, top_p=0.6) > 0).tolist() == [False, True, True, False]
    assert (filtered_probabilities(logits, top_p=0.01) > 0).tolist() == [False, True, False, False]


def test_drawing_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.75, 0.0]).expand(4, 4)
    assert draw(probabilities, torch.tensor([0.0, 0.2499, 0.25, 0.9999])).tolist() == [1, 1, 2, 2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_that_nobody_fills_take_no_memory(dtype: torch.dtype) -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    before = resident_mb()
    cache = PagedCache(4, 64, 2048, 4, 64, dtype)
    assert cache.values.dtype == dtype and cache.values.nbytes > 400e6
    assert resident_mb() - before < 50
    assert not cache.values[2, 0, 63].any() and not cache.values[3, 1, 0].any()
