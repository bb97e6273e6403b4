"""Where a model's networks lie, in which type and with which back ends, decided before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from kernels.packed_linear import multiplies_bfloat16
from kernels.paged_attention import BackendError, PagedAttention, attention_named
from kernels.step_runner import LARGEST, buckets_for, steps_name
from models.checkpoints.expected_speed import free_memory, needed_bytes, official_work
from models.checkpoints.hub import ModelFiles
from models.checkpoints.inventory import inspect_files
from models.errors import CheckpointError
from models.networks.config import FlexiSLMConfig, read_config
from worker.prefill import MAX_POSITIONS

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BackEnds:
    """Back ends: attention over pages, and the way in which steps are run (`kernels.step_runner.steps_name`)."""

    attention: PagedAttention
    steps: str


@dataclass(frozen=True)
class Placement:
    """packed: products read their weights in the processor's own layout, which pays where steps are bound by that.
    products: the type that Thinker and Talker multiply in, where it is not `dtype`."""

    device: torch.device
    dtype: torch.dtype
    packed: bool
    products: torch.dtype | None
    back_ends: BackEnds


class _StatedDtype(msgspec.Struct, frozen=True):
    torch_dtype: str | None = None
    dtype: str | None = None


def place(files: ModelFiles, sessions: int) -> Placement:
    """The first GPU for official weights where there is one; the embedded model computes in float32 on the CPU, its
    Thinker and Talker with products of bfloat16 where the processor has them.

    Looks at all files and at the free memory first. Raises `CheckpointError`.
    """
    path = files.directory / "config.json"
    if files.companions is None:
        products = torch.bfloat16 if multiplies_bfloat16() else None
        placed = _placed(torch.device("cpu"), torch.float32, read_config(path), sessions, packed=False)
        return replace(placed, products=products)
    inventory = inspect_files(files.directory, files.name, files.companions)
    for problem in inventory.problems:
        raise CheckpointError(problem)
    config = read_config(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = stated_dtype(files.directory)
    _check_card(files.directory, device, dtype)
    placement = _placed(device, dtype, config, sessions, packed=True)
    if inventory.sizes is not None:
        work = official_work(device.type == "cuda", dtype.itemsize)
        needed = needed_bytes(inventory.sizes, work, sessions)
        _check_memory(files.directory, needed, sessions, device)
        _check_bucket(needed, config, placement, buckets_for(sessions)[-1])
    return placement


def _placed(
    device: torch.device, dtype: torch.dtype, config: FlexiSLMConfig, sessions: int, *, packed: bool
) -> Placement:
    try:
        attention = attention_named(device, dtype, (config.thinker.head_dim, config.talker.head_dim))
        buckets_for(sessions)
        return Placement(device, dtype, packed, None, BackEnds(attention, steps_name(device)))
    except BackendError as error:
        raise CheckpointError(str(error)) from None


def stated_dtype(directory: Path) -> torch.dtype:
    """The type that config.json names for computing; bfloat16, that of the released weights, where it names none."""
    try:
        stated = msgspec.json.decode((directory / "config.json").read_bytes(), type=_StatedDtype)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{directory}/config.json cannot be read ({error}); download it again") from None
    return _DTYPES.get(stated.torch_dtype or stated.dtype or "", torch.bfloat16)


def _check_card(directory: Path, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) >= (8, 0):
        return
    raise CheckpointError(
        f"{torch.cuda.get_device_name(device)} cannot compute in bfloat16, the type of {directory}; "
        "set torch_dtype to float16 in its config.json, or take a card of the Ampere generation or newer"
    )


def _check_memory(directory: Path, needed: float, sessions: int, device: torch.device) -> None:
    free = _free_bytes(device)
    if needed > free:
        where = "GPU" if device.type == "cuda" else "machine"
        raise CheckpointError(
            f"{directory} needs {needed / 1e9:.1f} GB of memory for {sessions} callers and this {where} has "
            f"{free / 1e9:.1f} GB free; lower model.slots, take a smaller model or another {where}"
        )


def _check_bucket(needed: float, config: FlexiSLMConfig, placement: Placement, rows: int) -> None:
    """Whether the largest step fits beside the networks and the caches."""
    free = _free_bytes(placement.device) - needed
    step = rows * step_bytes(config, placement.dtype, gathers=placement.back_ends.attention.masked)
    if step > free:
        fitting = max(1, int(rows * free / step))
        raise CheckpointError(
            f"a step of {rows} rows needs {step / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are left; "
            f"set {LARGEST}={fitting} or lower model.slots"
        )


def step_bytes(config: FlexiSLMConfig, dtype: torch.dtype, *, gathers: bool) -> int:
    """What a row of a step needs for a moment: scores of all ids, sorted and summed up in float64 where they are drawn,
    and where pages are gathered, one layer's keys and values."""
    talker, thinker = config.talker, config.thinker
    scores = thinker.vocab_size * dtype.itemsize + talker.vocab_size * (3 * dtype.itemsize + 8 + 2 * 8)
    if not gathers:
        return scores
    widest = max(part.num_kv_heads * part.head_dim for part in (thinker, talker))
    return scores + 2 * MAX_POSITIONS * widest * dtype.itemsize


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_memory()
