"""How long to wait in a pause, by how finished the turn sounds.

Certainty is the share of pauses inside turns that sound less finished (`streaming.hearing.turn_end`), so who ends turns
at once above a certainty of 0.98 cuts in on a fiftieth of the pauses, whatever it is worth at the ends of turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Eagerness = Literal["low", "medium", "high", "auto"]


@dataclass(frozen=True)
class Patience:
    """`steps`: (certainty, silence in ms) from the most certain down; below the last, `longest_ms`."""

    steps: tuple[tuple[float, int], ...]
    longest_ms: int

    def silence_ms(self, certainty: float) -> int:
        return next((silence for least, silence in self.steps if certainty >= least), self.longest_ms)


_MEDIUM = Patience(((0.95, 192), (0.9, 640)), 1600)
PATIENCE: dict[Eagerness, Patience] = {
    "low": Patience(((0.99, 320), (0.97, 800)), 3000),
    "medium": _MEDIUM,
    "auto": _MEDIUM,
    "high": Patience(((0.93, 192), (0.85, 400)), 800),
}
# An answer is begun where so large a share of the pauses would sound less finished: most that is begun is then given.
SPECULATE_FROM = 0.8
