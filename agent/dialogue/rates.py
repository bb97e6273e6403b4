"""Which frame rate a turn gets. Each decision says why, so that it can be shown and doubted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIN_RATE_HZ = 4.0
MAX_RATE_HZ = 12.5
RateSetting = Literal["auto"] | float


@dataclass(frozen=True)
class RateDecision:
    hz: float
    reason: str

    def as_dict(self) -> dict[str, object]:
        return {"requested_hz": self.hz, "reason": self.reason}


@dataclass(frozen=True)
class RatePolicy:
    """Limits of the model that answers. "auto" means the finest rate: one session has the worker for itself."""

    min_hz: float = MIN_RATE_HZ
    max_hz: float = MAX_RATE_HZ

    def choose(self, *wishes: RateSetting | None) -> RateDecision:
        """`wishes` from the most specific (this response) to the least (the session); None = no wish."""
        for wish in wishes:
            if wish == "auto":
                break
            if isinstance(wish, (int, float)):
                return self._limited(float(wish))
        return RateDecision(self.max_hz, "auto: nothing asks for a coarser rate")

    def _limited(self, wish_hz: float) -> RateDecision:
        hz = min(max(wish_hz, self.min_hz), self.max_hz)
        if hz == wish_hz:
            return RateDecision(hz, "as requested")
        return RateDecision(hz, f"requested {wish_hz:g} Hz, limited to what the model can do")
