"""What units of FlexiSLM at its true sizes take on a card, by arithmetic: bytes over what memory delivers, operations
over what matrix products reach, each with the share of it that good programs get, and what the host adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from benchmarks.official.released_sizes import ENCODER_DIM, Size, released_config
from models.networks.flexislm import FlexiSLM
from models.networks.qwen2 import DecoderConfig
from streaming.hearing.omni_encoder import OmniEncoder, OmniEncoderConfig
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.infill import InfillDials
from streaming.speaking.vocos import Vocos, VocosConfig
from worker.step_times import Cost, Kind, UnitSize

BYTES = 2
MEL_HZ, CODE_HZ, ENCODER_HZ = 50, 12.5, 50
DIALS = InfillDials()
PROMPT_FRAMES = 150
"""Mel frames of the recording that the voice sounds like."""
MEL_PER_FRAME = 4
GUIDED = 2
INPUT_HZ, OUTPUT_HZ = 16_000, 24_000
POSITIONS = 1024
"""Of a conversation, in the caches."""


@dataclass(frozen=True, slots=True)
class Card:
    """bytes_per_s, operations_per_s (bfloat16): what was measured of memory copies and matrix products."""

    name: str
    bytes_per_s: float
    operations_per_s: float


CARDS = {"H200": Card("H200", 4.3e12, 790e12), "H100": Card("H100", 3.0e12, 790e12)}


@dataclass(frozen=True, slots=True)
class Overheads:
    """What programs add to the floors: shares of memory and matrix rates that are reached, what a recorded graph costs
    to start, and what the engine's own Python takes a unit and a row."""

    memory_share: float = 0.7
    matrix_share: float = 0.5
    graph_s: float = 0.0008
    flow_step_s: float = 0.0006
    host_unit_s: float = 0.0004
    host_row_s: float = 0.00003


@dataclass(frozen=True, slots=True)
class _Sizes:
    thinker: int
    talker: int
    thinker_cached: int
    talker_cached: int
    encoder: int
    flow: int
    flow_width: int
    flow_layers: int
    vocoder: int


class StepTable:
    """Seconds of a unit, called with its size."""

    def __init__(self, size: Size, card: Card, overheads: Overheads = Overheads()) -> None:
        self._sizes, self._over = _sizes(size), overheads
        self._memory = card.bytes_per_s * overheads.memory_share
        self._matrix = card.operations_per_s * overheads.matrix_share

    def __call__(self, unit: UnitSize) -> float:
        over = self._over
        host_s = over.host_unit_s + unit.rows * over.host_row_s
        match unit.kind:
            case "token":
                return host_s + 2 * over.graph_s + self._step(unit.rows)
            case "sound":
                return host_s + self._sound(unit.rows, unit.size)
            case "hearing" | "ending":
                seconds = max(unit.size / INPUT_HZ, 0.3 * unit.rows)
                return host_s + 2 * over.graph_s + self._encode(seconds) + self._prefill(int(CODE_HZ * seconds))
            case "opening" | "beginning":
                return host_s + over.graph_s + self._prefill(max(unit.size, 16 * unit.rows))
            case _:
                return host_s

    def expected(self) -> Mapping[Kind, Cost]:
        """The same as lines, for a scheduler that has measured nothing yet."""
        lines: dict[Kind, Cost] = {}
        for kind, size in (("opening", 64), ("hearing", 40_960), ("ending", 0), ("beginning", 16)):
            one, two = self(UnitSize(kind, 1, size)), self(UnitSize(kind, 1, 2 * size))  # type: ignore[arg-type]
            slope = (two - one) / size if size else 0.0
            lines[kind] = Cost(max(0.0, one - slope * size), 0.0, slope)  # type: ignore[index]
        few, many = self(UnitSize("token", 1)), self(UnitSize("token", 64))
        lines["token"] = Cost(few - (many - few) / 63, (many - few) / 63)
        second = OUTPUT_HZ
        one, many = self(UnitSize("sound", 1, second)), self(UnitSize("sound", 8, 8 * second))
        lines["sound"] = Cost(max(0.0, one - (many - one) / 7), 0.0, (many - one) / 7 / second)
        lines["end"] = Cost(0.0)
        return lines

    def _step(self, rows: int) -> float:
        """A joint step of Thinker and Talker: among many answers, some are always writing."""
        sizes = self._sizes
        seconds = 0.0
        for values, cached in ((sizes.thinker, sizes.thinker_cached), (sizes.talker, sizes.talker_cached)):
            moved = BYTES * (values + rows * POSITIONS * cached)
            seconds += max(moved / self._memory, 2 * rows * values / self._matrix)
        return seconds

    def _prefill(self, positions: int) -> float:
        values = self._sizes.thinker + self._sizes.talker
        return max(BYTES * values / self._memory, 2 * values * positions / self._matrix)

    def _encode(self, seconds: float) -> float:
        values = self._sizes.encoder
        return max(BYTES * values / self._memory, 2 * values * ENCODER_HZ * seconds / self._matrix)

    def _sound(self, rows: int, samples: int) -> float:
        """Windows of chunk and context, guided, through all steps of the flow decoder; then the vocoder."""
        sizes = self._sizes
        made = MEL_HZ * samples / OUTPUT_HZ + rows * MEL_PER_FRAME * DIALS.look_ahead_frames
        context = rows * MEL_PER_FRAME * DIALS.context_frames
        frames = made + context / DIALS.prefix_every
        window = (made + context) / rows + PROMPT_FRAMES
        operations = GUIDED * frames * (2 * sizes.flow + 4 * sizes.flow_layers * sizes.flow_width * window)
        step_s = max(operations / self._matrix, BYTES * sizes.flow / self._memory, self._over.flow_step_s)
        vocoder_s = max(2 * sizes.vocoder * made / self._matrix, BYTES * sizes.vocoder / self._memory)
        return DIALS.steps * step_s + vocoder_s


@cache
def _sizes(size: Size) -> _Sizes:
    """Counted in the networks that run, made without weights."""
    with torch.device("meta"):
        slm = FlexiSLM(released_config(size), ENCODER_DIM)
        encoder = OmniEncoder(OmniEncoderConfig(1280, 32, 20, 5120, ENCODER_DIM))
        flow, vocoder = Voicebox(FlowConfig()), Vocos(VocosConfig())
    thinker, talker = slm.config.thinker, slm.config.talker
    config = FlowConfig()
    return _Sizes(
        thinker=_count(slm.thinker.model.layers) + thinker.vocab_size * thinker.hidden_size,
        talker=_count(slm.talker_model) - _count(slm.talker_model.model.model.embed_tokens),
        thinker_cached=_cached(thinker),
        talker_cached=_cached(talker),
        encoder=_count(encoder),
        flow=_count(flow),
        flow_width=config.hidden,
        flow_layers=config.num_layers,
        vocoder=_count(vocoder),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _cached(config: DecoderConfig) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim
