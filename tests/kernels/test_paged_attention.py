"""Every back end against the reference, over random tables, lengths and pieces; and how one is chosen."""

from __future__ import annotations

import importlib.machinery
import math
import sys
import types
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import paged_attention
from kernels.attention import attend_reference
from kernels.block_pool import page_names
from kernels.paged_attention import (
    BackendError,
    FlashAttention,
    GatheredPages,
    PagedAttention,
    ReferencePages,
    TorchVarlen,
    attention_named,
)
from kernels.paged_cache import PagedCache

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def kernel_with_cache(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    cache_seqlens: Tensor,
    block_table: Tensor,
    causal: bool,
) -> Tensor:
    """flash_attn_with_kvcache as its documentation has it: query [rows, queries, heads, head_dim]."""
    assert causal and cache_seqlens.dtype == block_table.dtype == torch.int32
    rows = [
        one(own, keys, values, table, int(length))
        for own, table, length in zip(query, block_table, cache_seqlens, strict=True)
    ]
    return torch.stack(rows)


def kernel_packed(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    block_table: Tensor,
) -> Tensor:
    """flash_attn_varlen_func with a block table: causal masks are aligned to the last key."""
    lengths = cu_seqlens_k.diff().tolist()
    counts = cu_seqlens_q.diff().tolist()
    assert causal and max(counts) == max_seqlen_q and max(lengths) == max_seqlen_k
    parts = torch.split(query, counts)
    return torch.cat(
        [
            one(*given)
            for given in zip(parts, [keys] * len(parts), [values] * len(parts), block_table, lengths, strict=True)
        ]
    )


def kernel_varlen(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> Tensor:
    """torch's varlen_attn with a block table."""
    counts = cu_seq_q.diff().tolist()
    assert cu_seq_k is None and window_size == (-1, 0) and num_splits == 1 and block_table.is_contiguous()
    assert max(counts) == max_q and int(seqused_k.max()) <= max_k
    assert enable_gqa == (query.shape[1] != keys.shape[2])
    parts = torch.split(query, counts)
    return torch.cat(
        [
            one(*given)
            for given in zip(
                parts, [keys] * len(parts), [values] * len(parts), block_table, seqused_k.tolist(), strict=True
            )
        ]
    )


def one(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, length: int) -> Tensor:
    """query [queries, heads, head_dim] at the end of `length` positions on the table's pages."""
    key, value = (pages[table.long()].flatten(0, 1)[:length].transpose(0, 1)[None] for pages in (keys, values))
    mask = torch.ones(len(query), length, dtype=torch.bool).tril(length - len(query))
    return attend_reference(query.transpose(0, 1)[None], key, value, mask)[0].transpose(0, 1)


BACKENDS: list[Callable[[], PagedAttention]] = [
    GatheredPages,
    ReferencePages,
    lambda: FlashAttention(kernel_with_cache, kernel_packed),
    lambda: TorchVarlen(kernel_varlen),
]


@settings(max_examples=25, deadline=None)
@given(
    number=st.integers(0, len(BACKENDS) - 1),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    shared=st.booleans(),
    head_dim=st.sampled_from([64, 128, 160]),
    groups=st.sampled_from([1, 2, 7]),
    cut=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_pieces_and_steps_give_what_the_whole_sequence_gives(
    number: int, lengths: list[int], shared: bool, head_dim: int, groups: int, cut: float, seed: int
) -> None:
    """Sequences are prefilled in two pieces packed with others', shared, and go on by single steps."""
    torch.manual_seed(seed)
    attention, kv_heads = BACKENDS[number](), 2
    rows = len(lengths)
    cache = PagedCache(1, rows + 1, 40, kv_heads, head_dim, page=8)
    whole = [(torch.randn(n, groups * kv_heads, head_dim), torch.randn(2, n, kv_heads, head_dim)) for n in lengths]
    got: list[list[Tensor]] = [[] for _ in lengths]

    def prefill(spans: list[tuple[int, int, int]]) -> None:
        spans = [span for span in spans if span[2] > span[1]]
        if spans:
            plan = cache.prefill([row for row, _, _ in spans], [end - start for _, start, end in spans])
            cache.write(0, plan.where, *torch.cat([whole[row][1][:, start:end] for row, start, end in spans], 1))
            seen = attention.prefill(
                torch.cat([whole[row][0][start:end] for row, start, end in spans]), cache.layers[0], plan
            )
            cache.commit(plan)
            for (row, _, _), part in zip(spans, torch.split(seen, plan.counts), strict=True):
                got[row].append(part)

    heads = [int(cut * (n - 1)) for n in lengths]
    middles = [head + (n - 1 - head) // 2 for head, n in zip(heads, lengths, strict=True)]
    prefill([(row, 0, end) for row, end in enumerate(heads)])
    if shared and heads[0]:
        names = page_names(list(range(heads[0])), 8)
        cache.publish(0, names)
        cache.adopt(rows, names)  # somebody else holds the same pages from now on
    prefill([(row, *span) for row, span in enumerate(zip(heads, middles, strict=True))])
    while going := [row for row in range(rows) if cache.held[row] < lengths[row]]:
        for row in going:
            cache.reserve(row, cache.held[row] + 1)
        where = cache.in_place(going[0]) if len(going) == 1 and attention.masked else None
        step = cache.decode(torch.tensor(going), cache.width(going), masked=attention.masked, in_place=where)
        at = [cache.held[row] for row in going]
        cache.write(0, step.where, *torch.stack([whole[row][1][:, n] for row, n in zip(going, at, strict=True)], 1))
        query = torch.stack([whole[row][0][n] for row, n in zip(going, at, strict=True)])
        for row, seen in zip(going, attention.decode(query, cache.layers[0], step), strict=True):
            got[row].append(seen[None])
        cache.advance(step)
        for row in going:
            cache.stepped(row)
    cache.check()
    for (query, both), parts in zip(whole, got, strict=True):
        key, value = (part.transpose(0, 1)[None] for part in both)
        expected = attend_reference(query.transpose(0, 1)[None], key, value, causal=True)[0].transpose(0, 1)
        torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-4, atol=1e-5)


def test_the_stand_ins_take_what_the_packages_take() -> None:
    """torch's own function is here to compare with; flash-attn is not."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    theirs = inspect.signature(varlen_attn).parameters
    for name, parameter in inspect.signature(kernel_varlen).parameters.items():
        if name not in ("query", "keys", "values"):
            assert theirs[name].kind == parameter.kind


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    monkeypatch.delenv(paged_attention.CHOICE, raising=False)


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in contents.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {"flash_attn_with_kvcache": kernel_with_cache, "flash_attn_varlen_func": kernel_packed}
    install(monkeypatch, "flash_attn", __version__="2.8.3", **functions)


@pytest.mark.usefixtures("gpu")
def test_the_best_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(dtype: torch.dtype = torch.bfloat16, head_dims: tuple[int, ...] = (128, 160)) -> str:
        return attention_named(CUDA, dtype, head_dims).name

    assert chosen() == "torch-varlen"
    flash(monkeypatch)
    assert chosen() == "flash-attn"
    assert chosen(torch.float32) == chosen(head_dims=(288,)) == "sdpa"
    monkeypatch.setenv(paged_attention.CHOICE, "torch-varlen")
    assert chosen() == "torch-varlen"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.delenv(paged_attention.CHOICE)
    assert chosen() == "sdpa"


def test_a_processor_gathers_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paged_attention.CHOICE, raising=False)
    assert attention_named(CPU, torch.float32, (64,)).name == "sdpa"
    assert attention_named(CPU, torch.float32, (64,), "reference").name == "reference"


def test_cudnn_is_kept_out_of_attention_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paged_attention.CHOICE, "sdpa")
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        attention_named(CPU, torch.float32, (64,))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        attention_named(CUDA, torch.float32, (64,))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("name", "device", "dtype", "head_dim", "says"),
    [
        ("flashy", CUDA, torch.bfloat16, 64, "no attention back end; take auto, flash-attn"),
        ("flash-attn", CUDA, torch.bfloat16, 64, "not installed"),
        ("flash-attn", CPU, torch.bfloat16, 64, "needs a GPU"),
        ("torch-varlen", CUDA, torch.float32, 64, "float16 or bfloat16"),
        ("torch-varlen", CUDA, torch.bfloat16, 36, "no kernel for heads of 36"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, says: str
) -> None:
    with pytest.raises(BackendError, match=says) as caught:
        attention_named(device, dtype, (head_dim,), name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_a_flash_attn_without_block_tables_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise AssertionError

    install(monkeypatch, "flash_attn", __version__="2.3.0", flash_attn_with_kvcache=old, flash_attn_varlen_func=old)
    with pytest.raises(BackendError, match=r"flash-attn 2\.3\.0 takes no block tables; install 2\.7"):
        attention_named(CUDA, torch.bfloat16, (64,), "flash-attn")
    assert attention_named(CUDA, torch.bfloat16, (64,)).name == "torch-varlen"


def test_scores_are_scaled_by_the_head() -> None:
    query = torch.full((1, 1, 64), 1.0)
    cache = PagedCache(1, 1, 8, 1, 64, page=8)
    plan = cache.prefill([0], [2])
    new = torch.stack((torch.stack((torch.ones(64), torch.zeros(64))), torch.stack((torch.ones(64), torch.zeros(64)))))
    cache.write(0, plan.where, *new[:, :, None])
    seen = GatheredPages().prefill(query.expand(2, 1, 64), cache.layers[0], plan)
    weight = math.exp(8) / (math.exp(8) + 1)
    torch.testing.assert_close(seen[1, 0], torch.full((64,), weight))
