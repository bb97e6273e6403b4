"""Top-k / nucleus filtering and draws that depend neither on a device's random generator nor on who draws beside."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def counted_uniforms(session: int, generation: int, steps: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each step of an answer: of a counter (Philox) whose key is the answer's name, so that
    no neighbour has a say in them."""
    key = np.array([session, generation], dtype=np.int64).view(np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(steps)


def filtered_probabilities(logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Probabilities after temperature, then top-k, then nucleus filtering, in logits' dtype (FlexiSLM section 4.5).

    logits [..., vocabulary]. Ties with the k-th largest value survive; the first token past `top_p` is kept, and so is
    always the best one. 0 and 1.0 switch top-k and nucleus off.
    """
    logits = logits if temperature == 1.0 else logits / temperature
    cut: Tensor | None = None
    if 0 < top_k < logits.shape[-1]:
        cut = logits < logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(cut, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        beyond = ordered.softmax(-1).cumsum(-1) > top_p
        # Of an id it is asked whether those before it in the order have filled the nucleus; the best is in no cut.
        cut = torch.zeros_like(beyond) if cut is None else cut
        cut.scatter_(-1, order[..., 1:], beyond[..., :-1])
        logits = logits.masked_fill(cut, float("-inf"))
    return logits.softmax(-1)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """First id whose cumulative probability exceeds `uniform` in [0, 1), [...] int64.

    probabilities [..., vocabulary], uniform [...]. The sum runs in id order in float64, so that the same numbers give
    the same token on every device.
    """
    cumulative = probabilities.double().cumsum(-1)
    target = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative <= target).sum(-1)
