"""How fast a model can be on this machine at best, by arithmetic from two measurements.

A step of Thinker and Talker reads all their weights once: bytes over the memory's speed. Encoder, prefill and flow
decoder work on many positions at once: operations over the processor's speed. What a real turn takes is more; these
numbers tell whether a model is worth trying.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from kernels.packed_linear import pack_linears
from models.checkpoints.inventory import Sizes

CACHE_POSITIONS = 4096
"""Positions of prompts and answers that one caller holds."""
SPOKEN_HZ = 8.0
PROMPT_POSITIONS = 150
DELAY_STEPS = 12
"""Steps from the prompt's end to the first codes that can be decoded, delay and look-ahead together, at 8 Hz."""
VOCODER_POSITIONS_HZ = 50.0


@dataclass(frozen=True)
class Machine:
    """Where the model would run: free memory, bytes copied per second (read and write), operations per second."""

    name: str
    gpu: bool
    free_bytes: int
    bytes_per_s: float
    operations_per_s: float


@dataclass(frozen=True)
class Work:
    """What the networks do besides stepping. weight_bytes: of a weight of language model and encoder; flow_positions:
    mel frames that the flow decoder sees in one of its steps, and it makes flow_chunk_s of sound in flow_steps."""

    weight_bytes: int
    flow_weight_bytes: int
    encoder_positions_hz: float
    block_s: float
    flow_steps: int
    flow_positions: int
    flow_chunk_s: float


EMBEDDED_WORK = Work(4, 4, 25.0, 0.32, 2, 24, 0.32)


def official_work(gpu: bool, weight_bytes: int = 2) -> Work:
    """Flow positions: a prompt of 6 s, context, chunk and look-ahead; and the bare pass that guides it."""
    return Work(weight_bytes, 2 if gpu else 4, 50.0, 2.0, 15, 4 * (75 + 25 + 20) + 4 * 20, 1.28)


@dataclass(frozen=True)
class Speed:
    """Real-time factors are seconds of work per second of sound; all of it at best, for one caller at 8 Hz."""

    step_ms: float
    answer_rtf: float
    hearing_rtf: float
    voice_rtf: float
    first_audio_ms: float


def needed_bytes(sizes: Sizes, work: Work, sessions: int) -> int:
    """Memory of the loaded networks and of the caches of `sessions` callers."""
    values = sizes.language + sizes.encoder + CACHE_POSITIONS * sessions * sizes.cache_values
    return work.weight_bytes * values + work.flow_weight_bytes * sizes.flow + 4 * sizes.vocoder


def expected_speed(sizes: Sizes, machine: Machine, work: Work) -> Speed:
    """The larger of the time to read the weights and the time to compute, network by network."""

    def seconds(weights: int, positions: float, weight_bytes: int) -> float:
        return max(weight_bytes * weights / machine.bytes_per_s, 2 * weights * positions / machine.operations_per_s)

    step_s = seconds(sizes.step, 1, work.weight_bytes)
    block_s = seconds(sizes.encoder, work.encoder_positions_hz * work.block_s, work.weight_bytes)
    prefill_s = seconds(sizes.language, PROMPT_POSITIONS, work.weight_bytes)
    flow_s = work.flow_steps * seconds(sizes.flow, work.flow_positions, work.flow_weight_bytes)
    chunk_s = flow_s + seconds(sizes.vocoder, VOCODER_POSITIONS_HZ * work.flow_chunk_s, 4)
    voice_rtf = chunk_s / work.flow_chunk_s
    first_s = block_s + prefill_s + DELAY_STEPS * step_s + chunk_s
    return Speed(step_s * 1e3, SPOKEN_HZ * step_s + voice_rtf, block_s / work.block_s, voice_rtf, first_s * 1e3)


def measure_machine() -> Machine:
    """The first GPU where there is one, else the processor with all its cores; takes about a second."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        speeds = _copy_speed(2**30, "cuda"), _product_speed(4096, "cuda", torch.bfloat16)
        return Machine(torch.cuda.get_device_name(), True, free, *speeds)
    speeds = _copy_speed(2**26, "cpu"), _product_speed(768, "cpu", torch.float32)
    return Machine("processor", False, free_memory(), *speeds)


def free_memory() -> int:
    """Bytes that programs can have, what the system keeps of files and can drop included."""
    try:
        with open("/proc/meminfo") as table:
            lines = dict(line.split(":", 1) for line in table)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _copy_speed(size: int, device: str) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_s(lambda: target.copy_(source), device)


def _product_speed(width: int, device: str, dtype: torch.dtype) -> float:
    square = nn.Linear(width, width, bias=False, device=device, dtype=dtype).requires_grad_(False)
    x = torch.ones(width, width, dtype=dtype, device=device)
    pack_linears(square)
    return 2 * width**3 / _best_s(lambda: square(x), device)


def _best_s(work: Callable[[], object], device: str, rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
