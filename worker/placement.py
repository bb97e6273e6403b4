"""Where a model's networks lie and in which type, decided before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from models.checkpoints.expected_speed import free_memory, needed_bytes, official_work
from models.checkpoints.hub import ModelFiles
from models.checkpoints.inventory import inspect_files
from models.errors import CheckpointError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """packed: products read their weights in the processor's own layout, which pays where steps are bound by that."""

    device: torch.device
    dtype: torch.dtype
    packed: bool


class _StatedDtype(msgspec.Struct, frozen=True):
    torch_dtype: str | None = None
    dtype: str | None = None


def place(files: ModelFiles, sessions: int) -> Placement:
    """The first GPU for official weights where there is one; the embedded model computes in float32 on the CPU.

    Looks at all files and at the free memory first. Raises `CheckpointError`.
    """
    if files.companions is None:
        return Placement(torch.device("cpu"), torch.float32, packed=False)
    inventory = inspect_files(files.directory, files.name, files.companions)
    for problem in inventory.problems:
        raise CheckpointError(problem)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = stated_dtype(files.directory)
    if inventory.sizes is not None:
        work = official_work(device.type == "cuda", dtype.itemsize)
        _check_memory(files.directory, needed_bytes(inventory.sizes, work, sessions), sessions, device)
    return Placement(device, dtype, packed=True)


def stated_dtype(directory: Path) -> torch.dtype:
    """The type that config.json names for computing; bfloat16, that of the released weights, where it names none."""
    try:
        stated = msgspec.json.decode((directory / "config.json").read_bytes(), type=_StatedDtype)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{directory}/config.json cannot be read ({error}); download it again") from None
    return _DTYPES.get(stated.torch_dtype or stated.dtype or "", torch.bfloat16)


def _check_memory(directory: Path, needed: float, sessions: int, device: torch.device) -> None:
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_memory()
    if needed > free:
        where = "GPU" if device.type == "cuda" else "machine"
        raise CheckpointError(
            f"{directory} needs {needed / 1e9:.1f} GB of memory for {sessions} callers and this {where} has "
            f"{free / 1e9:.1f} GB free; take a smaller model or another {where}"
        )
