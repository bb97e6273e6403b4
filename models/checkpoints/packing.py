"""Files of int8 weights (`streaming.layers.compact`): the embedded model in the repository is stored this way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import CheckpointError
from streaming.layers.compact import compact, expand


def save_packed(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file(compact(weights), path, metadata={"format": "pt", "packing": "int8 rows"})
    path.chmod(0o644)


def load_packed(path: Path) -> dict[str, Tensor]:
    """float32 weights of a packed or plain safetensors file; raises `CheckpointError` where it cannot be read."""
    try:
        return expand(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; restore it from the repository or train it again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); restore it") from None
