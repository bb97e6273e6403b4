"""`agogic bench thinker`: our Qwen2 decoder against transformers', 0.5B size, random weights, bfloat16, side by side.

Both prefill the same prompt and then decode greedily with their caches, in turns within one process, so that whatever
else the machine does meets both. The median over the rounds is reported.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from models.qwen2 import DecoderConfig, Qwen2Model

CONFIG = DecoderConfig(
    vocab_size=151_944, hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_kv_heads=2
)
PROMPT_POSITIONS = 128


class Ours:
    def __init__(self, model: Qwen2Model) -> None:
        self._model = model
        self._cache = model.new_cache(1, 512)

    def generate(self, prompt: Tensor, steps: int) -> tuple[list[int], float, float]:
        """Ids of a greedy continuation of prompt [n], prefill ms, ms per step."""
        self._cache.truncate(0, 0)
        table = self._model.embed_tokens
        started = time.perf_counter()
        hidden, _ = self._model.step(table(prompt[None]), self._cache, [0])
        token = self._next(hidden)
        prefilled = time.perf_counter()
        ids = [int(token)]
        for _ in range(steps):
            hidden, _ = self._model.step(table(token[None]), self._cache, [0])
            token = self._next(hidden)
            ids.append(int(token))
        return ids, (prefilled - started) * 1e3, (time.perf_counter() - prefilled) * 1e3 / steps

    def _next(self, hidden: Tensor) -> Tensor:
        return (hidden[0, -1:] @ self._model.embed_tokens.weight.T).argmax(-1)


class Theirs:
    def __init__(self, weights: dict[str, Tensor]) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.hidden_size,
            intermediate_size=CONFIG.intermediate_size,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            num_key_value_heads=CONFIG.num_kv_heads,
            rope_theta=CONFIG.rope_theta,
            rope_parameters={"rope_theta": CONFIG.rope_theta, "rope_type": "default"},
            rms_norm_eps=CONFIG.rms_norm_eps,
            tie_word_embeddings=True,
        )
        self._model = Qwen2ForCausalLM(config).to(torch.bfloat16)
        self._model.model.load_state_dict(weights, assign=True)
        self._model.tie_weights()
        self._model.eval()

    def generate(self, prompt: Tensor, steps: int) -> tuple[list[int], float, float]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        started = time.perf_counter()
        token = self._next(prompt[None], cache)
        prefilled = time.perf_counter()
        ids = [int(token)]
        for _ in range(steps):
            token = self._next(token[None], cache)
            ids.append(int(token))
        return ids, (prefilled - started) * 1e3, (time.perf_counter() - prefilled) * 1e3 / steps

    def _next(self, ids: Tensor, cache: object) -> Tensor:
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1:].argmax(-1)


def run(steps: int = 16, rounds: int = 3) -> dict[str, object]:
    """ms per decoded token and per prefill of both, and theirs over ours (above 1: ours is faster)."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen2Model(CONFIG)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    model.eval().requires_grad_(False)
    contestants = {"ours": Ours(model), "transformers": Theirs(model.state_dict())}
    prompt = torch.randint(0, CONFIG.vocab_size, (PROMPT_POSITIONS,))
    ids: dict[str, list[int]] = {}
    prefill_ms: dict[str, list[float]] = {name: [] for name in contestants}
    step_ms: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, contestant in contestants.items():
                ids[name], prefill, step = contestant.generate(prompt, steps)
                prefill_ms[name].append(prefill)
                step_ms[name].append(step)
    prefill = {name: statistics.median(times[1:]) for name, times in prefill_ms.items()}
    step = {name: statistics.median(times[1:]) for name, times in step_ms.items()}
    agreeing = sum(a == b for a, b in zip(ids["ours"], ids["transformers"], strict=True))
    return {
        "threads": torch.get_num_threads(),
        "step_ms": round(step["ours"], 2),
        "transformers_step_ms": round(step["transformers"], 2),
        "step_ratio": round(step["transformers"] / step["ours"], 3),
        "prefill_ms": round(prefill["ours"], 1),
        "transformers_prefill_ms": round(prefill["transformers"], 1),
        "prefill_ratio": round(prefill["transformers"] / prefill["ours"], 3),
        "agreeing_tokens": agreeing,
        "tokens": steps + 1,
    }
