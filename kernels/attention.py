"""Scaled dot-product attention with grouped key/value heads: torch's fused kernel and a plain reference beside it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Attention output [batch, heads, queries, head_dim].

    query [batch, heads, queries, head_dim]; key and value [batch, kv_heads, keys, head_dim], heads a multiple of
    kv_heads. `mask` (bool, broadcast to [batch, heads, queries, keys], True = may be seen) and `causal` (query i sees
    keys 0..i; needs as many keys as queries) exclude each other. Every query must see at least one key.
    Scale 1/sqrt(head_dim).
    """
    if query.requires_grad and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _attend_in_training(query, key, value, mask, causal=causal)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
    )


def _attend_in_training(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """The same by matrix products: on CPUs the fused kernel's backward pass in bfloat16 takes half as long again."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


def attention_probabilities(query: Tensor, key: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Softmax weights [batch, heads, queries, keys] in float32; arguments as in `attend`."""
    groups = query.shape[1] // key.shape[1]
    scores = query.float() @ key.float().repeat_interleave(groups, dim=1).transpose(-1, -2) / math.sqrt(query.shape[-1])
    if causal:
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


def attend_reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """`attend` written out in float32 operations; what the fused kernels are tested against."""
    groups = query.shape[1] // key.shape[1]
    weights = attention_probabilities(query, key, mask, causal=causal)
    return (weights @ value.float().repeat_interleave(groups, dim=1)).to(value.dtype)
