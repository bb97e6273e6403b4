"""`agogic bench thinker`: FlexiSLM-0.5B's size, random weights, bfloat16, on the processor.

Our Thinker and transformers' own Qwen2 hold equal weights, prefill the same prompt and decode greedily with caches,
in turns within one process, so that whatever else the machine does meets both; the best round of each counts. Then one
spoken turn of Thinker and Talker together, without encoder and voice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.official.released_sizes import ENCODER_DIM, released_config
from kernels.packed_linear import pack_linears
from kernels.paged_attention import GatheredPages
from kernels.sampling import counted_uniforms
from models.networks.flexislm import FlexiSLM
from models.networks.generation import GenerationOptions, Runner
from models.networks.qwen2 import DecoderConfig
from models.networks.thinker import Thinker
from models.networks.tokenizer import SpecialIds

PROMPT_POSITIONS = 128
QWEN_IDS = SpecialIds(151_643, 151_644, 151_645, 198, 151_937, 151_938)
WORDS_HZ = 4
"""Text tokens in a second of fluent English."""


@dataclass
class Timed:
    """Ids of a greedy continuation, and what it took."""

    ids: list[int]
    prefill_ms: float
    step_ms: float


class Ours:
    def __init__(self, thinker: Thinker) -> None:
        self._thinker = thinker
        self._cache = thinker.model.new_cache(1, 512)
        self._attention = GatheredPages(self._cache.page)

    def generate(self, prompt: Tensor, steps: int) -> Timed:
        """Continues prompt [n] by `steps` tokens and one."""
        self._cache.truncate(0, 0)
        started = time.perf_counter()
        token = self._next(prompt)
        prefilled = time.perf_counter()
        ids = [int(token)]
        for _ in range(steps):
            token = self._next(token)
            ids.append(int(token))
        ended = time.perf_counter()
        return Timed(ids, (prefilled - started) * 1e3, (ended - prefilled) * 1e3 / steps)

    def _next(self, ids: Tensor) -> Tensor:
        hidden = self._thinker.prefill(self._thinker.embed(ids), self._cache, [0], [len(ids)], self._attention)
        return self._thinker.text_logits(hidden[-1:]).argmax(-1)


class Theirs:
    """transformers' Qwen2ForCausalLM with its own cache, as its `generate` drives it."""

    def __init__(self, config: DecoderConfig, weights: dict[str, Tensor]) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        settings = Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rope_theta=config.rope_theta,
            rope_parameters={"rope_theta": config.rope_theta, "rope_type": "default"},
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=True,
        )
        with torch.device("meta"):
            self._model = Qwen2ForCausalLM(settings)
        self._model.model.load_state_dict(weights, assign=True)
        self._model.model.rotary_emb = type(self._model.model.rotary_emb)(settings)  # its table is no weight
        self._model.tie_weights()
        self._model.eval()

    def generate(self, prompt: Tensor, steps: int) -> Timed:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        started = time.perf_counter()
        token = self._next(prompt[None], cache)
        prefilled = time.perf_counter()
        ids = [int(token)]
        for _ in range(steps):
            token = self._next(token[None], cache)
            ids.append(int(token))
        ended = time.perf_counter()
        return Timed(ids, (prefilled - started) * 1e3, (ended - prefilled) * 1e3 / steps)

    def _next(self, ids: Tensor, cache: object) -> Tensor:
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1:].argmax(-1)


def run(
    steps: int = 16,
    rounds: int = 3,
    seconds: float = 4.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """ms per decoded token and per prefill of both, theirs over ours (above 1: ours is faster), and a spoken turn."""
    torch.manual_seed(0)
    slm = random_model()
    config = slm.config.thinker
    # Theirs keeps the plain matrices, which packing takes from ours.
    theirs = Theirs(config, slm.thinker.model.state_dict())
    pack_linears(slm)
    contestants = {"ours": Ours(slm.thinker), "transformers": theirs}
    prompt = torch.randint(0, config.vocab_size, (PROMPT_POSITIONS,))
    runs: dict[str, list[Timed]] = {name: [] for name in contestants}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, contestant in contestants.items():
                runs[name].append(contestant.generate(prompt, steps))
            progress(number + 1, rounds + 1)
    prefill = {name: min(run.prefill_ms for run in done[1:]) for name, done in runs.items()}
    step = {name: min(run.step_ms for run in done[1:]) for name, done in runs.items()}
    pairs = zip(runs["ours"][0].ids, runs["transformers"][0].ids, strict=True)
    return {
        "threads": torch.get_num_threads(),
        "step_ms": round(step["ours"], 2),
        "transformers_step_ms": round(step["transformers"], 2),
        "step_ratio": round(step["transformers"] / step["ours"], 3),
        "prefill_ms": round(prefill["ours"], 1),
        "transformers_prefill_ms": round(prefill["transformers"], 1),
        "prefill_ratio": round(prefill["transformers"] / prefill["ours"], 3),
        "agreeing_tokens": sum(a == b for a, b in pairs),
        "tokens": steps + 1,
        **min((spoken_turn(slm, seconds) for _ in range(rounds)), key=lambda turn: turn["turn_real_time_factor"]),
    }


def random_model() -> FlexiSLM:
    """Stage 2 of the 0.5B size, for inference, with weights drawn as transformers draws first ones."""
    with torch.device("meta"):
        slm = FlexiSLM(released_config("0.5B"), ENCODER_DIM)
    slm = slm.to(torch.bfloat16).to_empty(device="cpu")
    slm.thinker.tie()
    for parameter in slm.requires_grad_(False).eval().parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02)
        else:
            parameter.fill_(1.0)
    return slm


def spoken_turn(slm: FlexiSLM, seconds: float, output_hz: float = 12.5) -> dict[str, float]:
    """A prompt of `PROMPT_POSITIONS` answered by `seconds` of speech at an ordinary number of words.

    turn_real_time_factor: seconds of work, prefill included, per second of speech; the text ends when its words are
    written, the delay before the first code and the last length are steps too.
    """
    codes = round(seconds * output_hz)
    words = tuple(range(1000, 1000 + round(seconds * WORDS_HZ)))
    steps = slm.config.speech_delay_tokens + codes + 1
    options = GenerationOptions(
        output_hz,
        max_steps=steps,
        uniforms=counted_uniforms(0, 0, steps),
        forced_text=(*words, QWEN_IDS.im_end, QWEN_IDS.newline),
    )
    runner = Runner(slm, QWEN_IDS, slots=1, max_positions=1024)
    started = time.perf_counter()
    runner.extend(0, slm.embed_ids(range(PROMPT_POSITIONS)), output_hz)
    answer = runner.start(0, options)
    prefilled = time.perf_counter()
    thinker_ms = talker_ms = 0.0
    while not answer.ended:
        (step,) = runner.step([answer])
        thinker_ms += step.thinker_ms
        talker_ms += step.talker_ms
    ended = time.perf_counter()
    return {
        "turn_speech_s": codes / output_hz,
        "turn_output_hz": output_hz,
        "turn_steps": answer.steps,
        "turn_prefill_ms": round((prefilled - started) * 1e3, 1),
        "turn_thinker_step_ms": round(thinker_ms / len(options.forced_text), 2),
        "turn_talker_step_ms": round(talker_ms / answer.steps, 2),
        "turn_real_time_factor": round((ended - started) * output_hz / codes, 3),
    }
