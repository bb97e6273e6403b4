"""Our Qwen2 beside transformers' own, at toy size: with equal weights they continue a prompt alike."""

from __future__ import annotations

import pytest
import torch

from benchmarks.official.thinker import Ours, Theirs
from kernels.packed_linear import pack_linears
from models.networks.qwen2 import DecoderConfig
from models.networks.thinker import Thinker

CONFIG = DecoderConfig(vocab_size=211, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2)


@pytest.mark.parametrize("packed", [False, True])
def test_greedy_continuations_agree(packed: bool) -> None:
    torch.manual_seed(0)
    thinker = Thinker(CONFIG, tied=True).requires_grad_(False).eval()
    for parameter in thinker.parameters():
        parameter.normal_(0.0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    theirs = Theirs(CONFIG, thinker.model.state_dict())
    if packed:
        pack_linears(thinker)
    ours, prompt = Ours(thinker), torch.randint(0, CONFIG.vocab_size, (23,))
    with torch.inference_mode():
        first, second = ours.generate(prompt, 12), theirs.generate(prompt, 12)
        again = ours.generate(prompt, 12)
    assert first.ids == second.ids == again.ids and len(first.ids) == 13
    assert len(set(first.ids)) > 4, "a model that repeats itself proves little"
    assert min(first.step_ms, first.prefill_ms, second.step_ms, second.prefill_ms) > 0
