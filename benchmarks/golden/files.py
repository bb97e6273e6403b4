"""Golden folders: recorded weights, inputs and outputs of the original networks, and the comparison with ours.

A folder holds `NAME.safetensors` files with weights (`sd.*`), inputs and outputs; tensors that a reduced folder leaves
out are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from streaming.layers.weight_norm import fold_weight_norm


@dataclass(frozen=True)
class TensorResult:
    """One tensor compared: `relative_error` = |ours - theirs| / |theirs| of floats, `mismatches` of integers."""

    fixture: str
    tensor: str
    relative_error: float
    mismatches: int


class Golden:
    """A golden folder, its files read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, Tensor]] = {}

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.safetensors").is_file()

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self._files:
            self._files[name] = load_file(self.folder / f"{name}.safetensors")
        return self._files[name]

    def clips(self, rate: str) -> list[tuple[str, Tensor]]:
        """The recorded speech at "16k" or "24k": names and samples [N]."""
        audio = self["audio"]
        return [(clip, audio[f"{clip}_{rate}"]) for clip in "ab" if f"{clip}_{rate}" in audio]

    def weights(self, name: str, prefix: str = "sd.") -> dict[str, Tensor]:
        state = {key.removeprefix(prefix): value for key, value in self[name].items() if key.startswith(prefix)}
        return fold_weight_norm(state)


COMMITTED = Path(__file__).resolve().parents[2] / "tests" / "golden"
"""The reduced folders that are part of the repository."""
Computed = Iterator[tuple[str, Tensor]]
Check = Callable[[Golden], Computed]


def run_fixture(golden: Golden, fixture: str, checks: Mapping[str, Check]) -> list[TensorResult]:
    """Compare one fixture's recorded tensors with ours."""
    results = []
    with torch.inference_mode():
        for name, ours in checks[fixture](golden):
            theirs = golden[fixture].get(name)
            if theirs is not None:
                results.append(_compare(fixture, name, ours, theirs))
    return results


def _compare(fixture: str, name: str, ours: Tensor, theirs: Tensor) -> TensorResult:
    if ours.shape != theirs.shape:
        raise ValueError(f"{fixture} {name}: ours is {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
    if not theirs.is_floating_point():
        return TensorResult(fixture, name, 0.0, int((ours != theirs).sum()))
    difference = torch.linalg.vector_norm(ours.double() - theirs.double())
    return TensorResult(fixture, name, float(difference / torch.linalg.vector_norm(theirs.double())), 0)
