"""The codes of the recorded voice at the five rates, as `training.codec` leaves them for Talker and flow decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RATES_HZ = (12.5, 8.0, 6.25, 5.0, 4.0)


@dataclass(frozen=True)
class CodeStore:
    """Codes of one rate: all clips end to end; clip i is first[i] .. first[i + 1]."""

    codes: np.ndarray
    durations: np.ndarray
    first: np.ndarray

    def clip(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """codes int64 [G] and durations int64 [G] of a clip."""
        span = slice(int(self.first[index]), int(self.first[index + 1]))
        return self.codes[span].astype(np.int64), self.durations[span].astype(np.int64)


def save_codes(directory: Path, rate_hz: float, clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    sizes = [len(codes) for codes, _ in clips]
    np.savez(
        directory / f"codes_{rate_hz:g}.npz",
        codes=np.concatenate([codes for codes, _ in clips]).astype(np.int16),
        durations=np.concatenate([durations for _, durations in clips]).astype(np.uint8),
        first=np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
    )


def load_codes(directory: Path, rate_hz: float) -> CodeStore:
    with np.load(directory / f"codes_{rate_hz:g}.npz") as file:
        return CodeStore(file["codes"], file["durations"], file["first"])


def pad_codes(clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """codes and durations int64 [batch, G], 0 behind the end."""
    table = torch.zeros(2, len(clips), max(len(codes) for codes, _ in clips), dtype=torch.int64)
    for row, pair in enumerate(clips):
        table[:, row, : len(pair[0])] = torch.from_numpy(np.stack(pair))
    return table[0], table[1]
