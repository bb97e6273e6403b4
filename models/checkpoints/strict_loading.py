"""Fills a network from a file's tensors: every key accounted for, weight norm folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from models.errors import CheckpointError
from streaming.layers.weight_norm import fold_weight_norm

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Names under which training scripts wrap a state dict."""


class TensorSource(Protocol):
    """Named tensors, read one by one."""

    @property
    def keys(self) -> set[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str) -> Tensor: ...


class PickledTensors:
    """The tensors of a `.pt` file, mapped from disk; wrappers around the dict and `module.` prefixes are taken off."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise CheckpointError(f"{path} is missing; download the weights again")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise CheckpointError(f"{path} is damaged or no weights file ({error}); download it again") from None
        for wrapper in WRAPPERS:
            if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
                state = state[wrapper]
                break
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise CheckpointError(f"{path} holds no state dict; download it again")
        self._state: dict[str, Tensor] = {key.removeprefix("module."): value for key, value in state.items()}

    @property
    def keys(self) -> set[str]:
        return set(self._state)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._state[key].shape)

    def read(self, key: str) -> Tensor:
        return self._state[key]


def fill(
    module: nn.Module,
    source: TensorSource,
    path: Path,
    *,
    prefix: str = "",
    unused: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give `module` (whose parameters may lie on the meta device) the tensors under `prefix`.

    `unused` are beginnings of keys, after the prefix, that may be there and are not read; tensors outside the prefix
    are someone else's. Raises `CheckpointError` for a key that is missing, unknown or of another shape.
    """
    state = {}
    for name, parts in check(module, source, path, prefix=prefix, unused=unused).items():
        folded = fold_weight_norm({part: source.read(prefix + part) for part in parts})[name]
        state[name] = folded.to(dtype) if folded.is_floating_point() else folded
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def check(
    module: nn.Module, source: TensorSource, path: Path, *, prefix: str = "", unused: Iterable[str] = ()
) -> dict[str, list[str]]:
    """The keys that each tensor of `module` is made of (weight norm splits one in two), without reading any.

    Refuses what `fill` refuses.
    """
    held = {key.removeprefix(prefix) for key in source.keys if key.startswith(prefix)}
    found: dict[str, list[str]] = {}
    for name, target in module.state_dict().items():
        parts = [name] if name in held else [f"{name}_g", f"{name}_v"]
        if not held.issuperset(parts):
            raise CheckpointError(f"{path} lacks {prefix}{name}; it is another model's file, or incomplete")
        held.difference_update(parts)
        shape = source.shape(prefix + parts[-1])
        if shape != tuple(target.shape):
            raise CheckpointError(
                f"{path} holds {prefix}{name} of shape {list(shape)} instead of {list(target.shape)}; "
                "take weights and configuration from one model"
            )
        found[name] = parts
    allowed = tuple(unused)
    unknown = sorted(key for key in held if not key.startswith(allowed))
    if unknown:
        raise CheckpointError(f"{path} holds {len(unknown)} tensors nobody knows, such as {prefix}{unknown[0]}")
    return found


def layer_count(source: TensorSource, prefix: str) -> int:
    """How many numbered members `prefix`0., `prefix`1., ... there are."""
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in source.keys if key.startswith(prefix)}
    return len({number for number in numbers if number.isdigit()})
