"""Which frame rate a turn gets: fine when there is room, coarse when the machine is full or the network is poor.

Decided before each utterance and each answer, never in the middle of one. Coarser at once, as far as it takes; finer
one step at a time, and only where there would still be room to spare: so a load that swings about a threshold changes
nothing. Each decision says why in words, so that it can be shown and doubted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from agent.config import Rate, RateRange

MIN_RATE_HZ = 4.0
MAX_RATE_HZ = 12.5
STEPS_HZ = (12.5, 10.0, 8.0, 6.25, 5.0, 4.0)
FULL, ROOM = 0.7, 0.6
"""A worker that would be busy for more than this share of the time is full; less than that, and there is room."""
NETWORK_STEPS: tuple[tuple[float, float, float], ...] = ((0.02, 300.0, 8.0), (0.08, 600.0, 5.0))
"""From this share of lost packets or this round trip (ms) on, no finer than that rate (Hz): speech that is late or has
holes gains nothing from fine tokens, and coarse ones are there sooner."""
NETWORK_STAYS = 0.6
"""A network is as poor as it was until it is better than this share of the threshold."""
NEWEST_SECOND = 0.2
"""The share that the last second has in what is known of the network: one packet in it is a fiftieth already."""

Side = Literal["input", "output"]


_LOAD: Cause = "load"
_NETWORK: Cause = "network"
AUTO: Mapping[Side, RateRange] = {"input": RateRange(min=6.25), "output": RateRange()}
"""What "auto" means where nobody says. Coarser hearing saves little, and below this rate words are lost."""


Cause = Literal["wish", "model", "load", "network", "none"]


@dataclass(frozen=True)
class RateDecision:
    """reason: in words; cause: what made it so, "none" for the finest that is allowed."""

    hz: float
    reason: str
    cause: Cause

    def as_dict(self) -> dict[str, object]:
        return {"requested_hz": self.hz, "reason": self.reason}


@dataclass(frozen=True)
class Network:
    """What the transport knows; None where it does not. loss: share of packets, of the last seconds."""

    loss: float | None = None
    round_trip_ms: float | None = None

    def after(self, loss: float | None, round_trip_ms: float | None) -> Network:
        """What is known a second later: the share lost in it (None: nothing was sent or nothing told), and the round
        trip."""
        before = self.loss or 0.0
        return Network(
            self.loss if loss is None else before + NEWEST_SECOND * (loss - before),
            self.round_trip_ms if round_trip_ms is None else round_trip_ms,
        )


@dataclass(frozen=True)
class WorkerForecast:
    """How busy the worker is, and would be if all answers had a certain rate: (Hz, share of the time), finest first.
    Empty: nothing is known, so there is room."""

    busy: float = 0.0
    at_hz: Sequence[tuple[float, float]] = ()

    def at(self, hz: float) -> float:
        """Between the rates that are known, in proportion."""
        known = sorted(self.at_hz)
        if not known:
            return self.busy
        if hz <= known[0][0]:
            return known[0][1]
        for (below, less), (above, more) in pairwise(known):
            if hz <= above:
                return less + (more - less) * (hz - below) / (above - below)
        return known[-1][1]


@dataclass
class RatePolicy:
    """Of one session. min_hz, max_hz: limits of the model that answers; ceiling_hz: no finer than that, whatever the
    model can do; configured: what "auto" means on a side.

    `forecast` and `network` are kept up to date by whoever knows them.
    """

    min_hz: float = MIN_RATE_HZ
    max_hz: float = MAX_RATE_HZ
    ceiling_hz: float = MAX_RATE_HZ
    configured: Mapping[Side, RateRange] = field(default_factory=dict)
    forecast: WorkerForecast = field(default_factory=WorkerForecast)
    network: Network = field(default_factory=Network)
    _chosen: dict[Side, RateDecision] = field(default_factory=dict)
    _current_hz: dict[Side, float] = field(default_factory=dict)

    def choose(self, side: Side, *wishes: Rate | None) -> RateDecision:
        """`wishes` from the most specific (this response) to the least (the session); None = no wish."""
        decision = self._chosen[side] = self.expect(side, *wishes)
        if not any(isinstance(wish, (int, float)) for wish in wishes):
            self._current_hz[side] = decision.hz
        return decision

    def chosen(self, side: Side) -> RateDecision | None:
        """The last choice, None before the first."""
        return self._chosen.get(side)

    def expect(self, side: Side, *wishes: Rate | None) -> RateDecision:
        """What `choose` would say now."""
        wish = next((wish for wish in wishes if wish is not None), "auto")
        if isinstance(wish, (int, float)):
            return self._limited(float(wish))
        allowed = wish if isinstance(wish, RateRange) else self.configured.get(side, AUTO[side])
        return self._within(side, allowed.min, allowed.max)

    def coarsest(self, side: Side, wish: Rate) -> float:
        """What load may make of a wish."""
        if isinstance(wish, (int, float)):
            return self._limited(float(wish)).hz
        allowed = wish if isinstance(wish, RateRange) else self.configured.get(side, AUTO[side])
        return min(max(allowed.min, self.min_hz), self.max_hz)

    def cap(self, ceiling_hz: float) -> None:
        """No finer than that from now on."""
        self.ceiling_hz = ceiling_hz
        self.limits(self.min_hz, self.max_hz)

    def limits(self, min_hz: float, max_hz: float) -> None:
        """Another worker answers from now on."""
        self.min_hz, self.max_hz = min_hz, max(min_hz, min(max_hz, self.ceiling_hz))

    def _limited(self, wish_hz: float) -> RateDecision:
        hz = min(max(wish_hz, self.min_hz), self.max_hz)
        if hz == wish_hz:
            return RateDecision(hz, "as requested", "wish")
        allowed = "what the key allows" if hz == self.ceiling_hz < wish_hz else "what the model can do"
        return RateDecision(hz, f"requested {wish_hz:g} Hz, limited to {allowed}", "model")

    def _within(self, side: Side, low_hz: float, high_hz: float) -> RateDecision:
        finest = min(max(high_hz, self.min_hz), self.max_hz)
        coarsest = min(max(low_hz, self.min_hz), finest)
        steps = sorted({finest, coarsest, *(hz for hz in STEPS_HZ if coarsest < hz < finest)}, reverse=True)
        was = min(max(self._current_hz.get(side, finest), coarsest), finest)
        hz, cause = self._by_load(steps, was), _LOAD
        why = f"load {self.forecast.at(was):.2f}"
        limit_hz, trouble = self._by_network(side, finest)
        if limit_hz < hz:
            hz, why, cause = next((step for step in steps if step <= limit_hz), coarsest), trouble, _NETWORK
        if hz != was:
            return RateDecision(hz, f"{why}: {was:g} → {hz:g} Hz", cause)
        if hz == finest:
            return RateDecision(hz, f"auto: nothing asks for a coarser rate ({why})", "none")
        return RateDecision(hz, f"{why}: stays at {hz:g} Hz", cause)

    def _by_load(self, steps: Sequence[float], was: float) -> float:
        if self.forecast.at(was) > FULL:
            return next((hz for hz in steps if hz <= was and self.forecast.at(hz) <= FULL), steps[-1])
        finer = [hz for hz in steps if hz > was]
        if finer and self.forecast.at(finer[-1]) <= ROOM:
            return finer[-1]
        return was

    def _by_network(self, side: Side, finest: float) -> tuple[float, str]:
        """The finest rate that the network is worth, and what is wrong with it."""
        limit_hz, trouble = finest, ""
        last = self._chosen.get(side)
        for loss, round_trip_ms, hz in NETWORK_STEPS:
            poor = NETWORK_STAYS if last is not None and last.cause == _NETWORK and last.hz <= hz else 1.0
            if self.network.loss is not None and self.network.loss >= poor * loss:
                limit_hz, trouble = hz, f"loss {100 * self.network.loss:.0f} %"
            elif self.network.round_trip_ms is not None and self.network.round_trip_ms >= poor * round_trip_ms:
                limit_hz, trouble = hz, f"round trip {self.network.round_trip_ms:.0f} ms"
        return limit_hz, trouble
