"""Attention over the pages of a cache: one interface, several back ends, one of which is chosen when a model is placed.

    flash-attn    flash_attn_with_kvcache and flash_attn_varlen_func with block tables; needs the package and a GPU
    torch-varlen  torch's own variable-length attention, where it takes a block table; needs a GPU
    sdpa          torch's fused attention over gathered pages: everywhere
    reference     written out in float32: what the others are tested against

AGOGIC_ATTENTION names one; without it the first that works here is taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import attend_reference
from kernels.paged_cache import Decode, PrefillPlan

CHOICE = "AGOGIC_ATTENTION"
CPU_PAGE, GPU_PAGE, FLASH_PAGE = 64, 64, 256
"""Positions of a page; flash-attn's kernels want a multiple of 256."""
LARGEST_FLASH_HEAD = 256


class BackendError(ValueError):
    """A back end that is not there or cannot do what is asked; the message says what to do."""


class PagedAttention(Protocol):
    """query [tokens, heads, head_dim] over pages [keys and values, pages, page, kv_heads, head_dim] -> as query.

    heads are a multiple of kv_heads; scale 1/sqrt(head_dim); the new keys and values are in the pages already.
    masked: whether `decode` wants the step's mask.
    """

    name: str
    page: int
    masked: bool

    def decode(self, query: Tensor, pages: Tensor, step: Decode) -> Tensor:
        """One token of each row, which sees all that its sequence holds and itself."""

    def prefill(self, query: Tensor, pages: Tensor, plan: PrefillPlan) -> Tensor:
        """Packed tokens, each of which sees what is before it in its sequence and itself."""


class GatheredPages:
    """torch's fused attention; pages are copied together first, unless a row alone has them side by side."""

    name = "sdpa"
    masked = True

    def __init__(self, page: int = CPU_PAGE) -> None:
        self.page = page

    def decode(self, query: Tensor, pages: Tensor, step: Decode) -> Tensor:
        rows, heads, head_dim = query.shape
        if step.in_place is not None:
            first, length = step.in_place
            held = pages[:, first:].flatten(1, 2)[:, None, :length]
        else:
            assert step.flat is not None
            held = pages.index_select(1, step.flat).view(2, rows, -1, *pages.shape[3:])
        key, value = held.transpose(2, 3).unbind(0)
        # Heads that share keys are queries of one head, so that keys are read once.
        shared = query.view(rows, key.shape[1], -1, head_dim)
        return F.scaled_dot_product_attention(shared, key, value, attn_mask=step.mask).reshape(rows, heads, head_dim)

    def prefill(self, query: Tensor, pages: Tensor, plan: PrefillPlan) -> Tensor:
        parts = [
            self._sequence(own.transpose(0, 1)[None], _held(pages, number, plan), start)
            for number, (own, start) in enumerate(zip(torch.split(query, plan.counts), plan.starts, strict=True))
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _sequence(self, query: Tensor, held: Tensor, start: int) -> Tensor:
        key, value = held[:, None].transpose(2, 3).unbind(0)
        mask = None if start == 0 else _causal(query.shape[2], start, query.device)
        seen = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=query.shape[1] != key.shape[1]
        )
        return seen[0].transpose(0, 1)


class ReferencePages(GatheredPages):
    """The same, written out."""

    name = "reference"

    def decode(self, query: Tensor, pages: Tensor, step: Decode) -> Tensor:
        rows, flat = query.shape[0], step.table.flatten()
        key, value = pages.index_select(1, flat).view(2, rows, -1, *pages.shape[3:]).transpose(2, 3).unbind(0)
        seen = torch.arange(key.shape[2], device=query.device) < step.ends[:, None]
        return attend_reference(query[:, :, None], key, value, seen[:, None, None])[:, :, 0]

    def _sequence(self, query: Tensor, held: Tensor, start: int) -> Tensor:
        key, value = held[:, None].transpose(2, 3).unbind(0)
        mask = _causal(query.shape[2], start, query.device)
        return attend_reference(query, key, value, mask)[0].transpose(0, 1)


class FlashAttention:
    """The flash-attn package, handed over as its two functions, so that it is imported by who chose it."""

    name = "flash-attn"
    page = FLASH_PAGE
    masked = False

    def __init__(self, with_cache: Callable[..., Tensor], packed: Callable[..., Tensor]) -> None:
        self._with_cache, self._packed = with_cache, packed

    def decode(self, query: Tensor, pages: Tensor, step: Decode) -> Tensor:
        seen = self._with_cache(
            query[:, None], pages[0], pages[1], cache_seqlens=step.short_ends, block_table=step.table, causal=True
        )
        return seen[:, 0]

    def prefill(self, query: Tensor, pages: Tensor, plan: PrefillPlan) -> Tensor:
        ends = F.pad(plan.ends.cumsum(0, dtype=torch.int32), (1, 0))
        longest = max(start + count for start, count in zip(plan.starts, plan.counts, strict=True))
        return self._packed(
            query,
            pages[0],
            pages[1],
            cu_seqlens_q=plan.offsets,
            cu_seqlens_k=ends,
            max_seqlen_q=max(plan.counts),
            max_seqlen_k=longest,
            causal=True,
            block_table=plan.table,
        )


class TorchVarlen:
    """torch.nn.attention.varlen; one split of the keys, so that a row does not round by its neighbours' lengths."""

    name = "torch-varlen"
    page = FLASH_PAGE
    masked = False

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        self._attend = attend
        self._each: dict[tuple[int, torch.device], Tensor] = {}

    def decode(self, query: Tensor, pages: Tensor, step: Decode) -> Tensor:
        rows = query.shape[0]
        offsets = self._each.get((rows, query.device))
        if offsets is None:
            offsets = torch.arange(rows + 1, dtype=torch.int32, device=query.device)
            self._each[rows, query.device] = offsets
        assert step.short_ends is not None
        return self._call(query, pages, offsets, step.short_ends, step.table, 1, step.table.shape[1] * self.page)

    def prefill(self, query: Tensor, pages: Tensor, plan: PrefillPlan) -> Tensor:
        longest = max(start + count for start, count in zip(plan.starts, plan.counts, strict=True))
        return self._call(query, pages, plan.offsets, plan.ends, plan.table, max(plan.counts), longest)

    def _call(
        self, query: Tensor, pages: Tensor, offsets: Tensor, ends: Tensor, table: Tensor, longest: int, keys: int
    ) -> Tensor:
        return self._attend(
            query,
            pages[0],
            pages[1],
            offsets,
            None,
            longest,
            keys,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != pages.shape[3],
            seqused_k=ends,
            block_table=table.contiguous(),
            num_splits=1,
        )


def _held(pages: Tensor, number: int, plan: PrefillPlan) -> Tensor:
    """Keys and values [2, positions, kv_heads, head_dim] of one of the plan's sequences, in place where possible."""
    own, end = plan.pages[number], plan.starts[number] + plan.counts[number]
    used = own[: -(-end // pages.shape[2])]
    if used == tuple(range(used[0], used[0] + len(used))):
        return pages[:, used[0] : used[0] + len(used)].flatten(1, 2)[:, :end]
    return pages.index_select(1, plan.table[number, : len(used)].to(torch.int64)).flatten(1, 2)[:, :end]


def _causal(queries: int, start: int, device: torch.device) -> Tensor:
    """bool [queries, start + queries]: which keys queries may see that come behind `start` keys."""
    return torch.ones(queries, start + queries, dtype=torch.bool, device=device).tril(start)


def attention_named(
    device: torch.device, dtype: torch.dtype, head_dims: Sequence[int], name: str | None = None
) -> PagedAttention:
    """The back end of that name, of AGOGIC_ATTENTION's, or else the first that works here. Raises `BackendError`.

    To be called before the first attention of any network: it also keeps torch from trying cuDNN, which makes a new
    plan for every number of keys.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    name = name or os.environ.get(CHOICE) or "auto"
    if name == "auto":
        for attempt in (_flash, _varlen):
            try:
                return attempt(device, dtype, head_dims)
            except BackendError:
                continue
        return GatheredPages(CPU_PAGE if device.type == "cpu" else GPU_PAGE)
    makers = {
        "flash-attn": _flash,
        "torch-varlen": _varlen,
        "sdpa": lambda *_: GatheredPages(CPU_PAGE if device.type == "cpu" else GPU_PAGE),
        "reference": lambda *_: ReferencePages(),
    }
    if name not in makers:
        raise BackendError(f"{CHOICE}={name} is no attention back end; take auto, {', '.join(makers)}")
    return makers[name](device, dtype, head_dims)


def _flash(device: torch.device, dtype: torch.dtype, head_dims: Sequence[int]) -> PagedAttention:
    _check_kernels("flash-attn", device, dtype, head_dims)
    if importlib.util.find_spec("flash_attn") is None:
        raise BackendError(f"flash-attn is not installed; pip install 'agogic[gpu]', or unset {CHOICE}")
    package = importlib.import_module("flash_attn")
    functions = [getattr(package, name, None) for name in ("flash_attn_with_kvcache", "flash_attn_varlen_func")]
    for function in functions:
        if function is None or "block_table" not in inspect.signature(function).parameters:
            version = getattr(package, "__version__", "this version")
            raise BackendError(f"flash-attn {version} takes no block tables; install 2.7 or newer, or unset {CHOICE}")
    with_cache, packed = functions
    assert with_cache is not None and packed is not None
    return FlashAttention(with_cache, packed)


def _varlen(device: torch.device, dtype: torch.dtype, head_dims: Sequence[int]) -> PagedAttention:
    _check_kernels("torch-varlen", device, dtype, head_dims)
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise BackendError(
            f"torch {torch.__version__} has no variable-length attention; install 2.13, or unset {CHOICE}"
        )
    attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    wanted = {"block_table", "seqused_k", "window_size", "enable_gqa", "num_splits"}
    if missing := wanted - set(inspect.signature(attend).parameters):
        lacks = ", ".join(sorted(missing))
        raise BackendError(f"torch {torch.__version__}'s varlen_attn has no {lacks}; install 2.13, or unset {CHOICE}")
    return TorchVarlen(attend)


def _check_kernels(name: str, device: torch.device, dtype: torch.dtype, head_dims: Sequence[int]) -> None:
    if device.type != "cuda":
        raise BackendError(f"{name} needs a GPU and this model is placed on the {device.type}; unset {CHOICE}")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise BackendError(f"{name} needs a GPU of Nvidia's Ampere generation or newer; set {CHOICE}=sdpa")
    if dtype not in (torch.float16, torch.bfloat16):
        raise BackendError(f"{name} computes in float16 or bfloat16, not in {dtype}; set {CHOICE}=sdpa")
    for head_dim in head_dims:
        if head_dim % 8 or head_dim > LARGEST_FLASH_HEAD:
            raise BackendError(f"{name} has no kernel for heads of {head_dim}; set {CHOICE}=sdpa")
