"""`agogic bench roofline`: the least time that a GPU can take for one caller, by arithmetic. Nothing is measured.

A network that works on one position reads all its weights (bytes over memory speed); one that works on many multiplies
(operations over the processor's rate); the larger of the two is a floor that no program gets below. The networks are
made without weights, so the counts are those of the code that runs.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.official.released_sizes import ENCODER_DIM, Size, released_config
from models.checkpoints.expected_speed import (
    DELAY_STEPS,
    PROMPT_POSITIONS,
    SPOKEN_HZ,
    Machine,
    expected_speed,
    official_work,
)
from models.checkpoints.inventory import Sizes
from models.networks.flexislm import FlexiSLM
from models.networks.qwen2 import DecoderConfig
from streaming.hearing.omni_encoder import OmniEncoder, OmniEncoderConfig
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.vocos import Vocos, VocosConfig

OMNI = OmniEncoderConfig(1280, 32, 20, 5120, ENCODER_DIM)
CONTEXT_POSITIONS = 1024
BYTES = 2
"""Of a weight and of a cached value, in bfloat16."""


def run(size: Size, bytes_per_s: float, operations_per_s: float) -> dict[str, object]:
    """Floors in ms of a step of each decoder at `CONTEXT_POSITIONS`, and of the first sound and a second of speech."""
    with torch.device("meta"):
        slm = FlexiSLM(released_config(size), ENCODER_DIM)
        encoder, flow, vocoder = OmniEncoder(OMNI), Voicebox(FlowConfig()), Vocos(VocosConfig())
    thinker, talker = slm.config.thinker, slm.config.talker
    # Of an embedding table a step reads one row; a tied head is read whole all the same.
    thinker_values = _count(slm.thinker.model.layers) + thinker.vocab_size * thinker.hidden_size
    talker_values = _count(slm.talker_model) - _count(slm.talker_model.model.model.embed_tokens)
    cached = _cached(thinker), _cached(talker)

    def step_ms(values: int, cached_values: int) -> float:
        return round(1e3 * BYTES * (values + CONTEXT_POSITIONS * cached_values) / bytes_per_s, 2)

    sizes = Sizes(_count(slm), thinker_values + talker_values, sum(cached), *map(_count, (encoder, flow, vocoder)))
    machine = Machine("arithmetic", True, 0, bytes_per_s, operations_per_s)
    speed = expected_speed(sizes, machine, official_work(gpu=True))
    return {
        "measured": False,
        "size": size,
        "bytes_per_s": bytes_per_s,
        "operations_per_s": operations_per_s,
        "language_parameters": sizes.language,
        "thinker_step_ms": step_ms(thinker_values, cached[0]),
        "talker_step_ms": step_ms(talker_values, cached[1]),
        "context_positions": CONTEXT_POSITIONS,
        "first_audio_ms": round(speed.first_audio_ms, 1),
        "prompt_positions": PROMPT_POSITIONS,
        "joint_steps_to_first_audio": DELAY_STEPS,
        "answer_real_time_factor": round(speed.answer_rtf, 4),
        "voice_real_time_factor": round(speed.voice_rtf, 4),
        "output_hz": SPOKEN_HZ,
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _cached(config: DecoderConfig) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim
