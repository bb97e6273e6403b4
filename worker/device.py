"""Where units of work are done, and on which clock. `worker.simulated` has one that only counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from worker.step_times import Cost, Kind, UnitSize

Given = TypeVar("Given")

EMBEDDED_ON_CPU: Mapping[Kind, Cost] = {
    "opening": Cost(0.004, 0.0, 0.00005),
    "hearing": Cost(0.006, 0.001, 1e-6),
    "ending": Cost(0.006, 0.003),
    "beginning": Cost(0.006, 0.001, 0.00005),
    "token": Cost(0.004, 0.0005),
    "sound": Cost(0.008, 0.001, 1e-6),
    "end": Cost(0.0),
}
"""Of the embedded model on one core, roughly: the first units correct it."""


class Device(Protocol):
    """expected: what units take before any was measured."""

    @property
    def name(self) -> str: ...

    @property
    def expected(self) -> Mapping[Kind, Cost]: ...

    def clock(self) -> float:
        """Seconds that never jump back; only differences mean anything."""

    def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
        """Does a unit to its end: `clock` before and after tells what it took. What `work` raises comes through."""


class Cpu:
    name = "cpu"
    expected = EMBEDDED_ON_CPU

    def clock(self) -> float:
        return time.monotonic()

    def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
        return work()


class Cuda:
    """Steps of talking go to a stream that the card prefers, so that what was begun before does not hold them up.

    The expected times are those of official weights at true size (`benchmarks/load/roofline_table.py` computes them).
    """

    name = "cuda"
    expected: Mapping[Kind, Cost] = {
        "opening": Cost(0.004, 0.0, 0.00003),
        "hearing": Cost(0.004, 0.0, 1e-7),
        "ending": Cost(0.006, 0.001),
        "beginning": Cost(0.004, 0.0, 0.00003),
        "token": Cost(0.0055, 0.0001),
        "sound": Cost(0.004, 0.0, 2.5e-7),
        "end": Cost(0.0),
    }

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._urgent = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
        self._usual = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def clock(self) -> float:
        return time.monotonic()

    def run(self, unit: UnitSize, work: Callable[[], Given]) -> Given:
        stream = self._urgent if unit.kind == "token" else self._usual
        with self._torch.cuda.stream(stream):
            given = work()
        stream.synchronize()
        return given


def best_device() -> Device:
    import torch

    return Cuda() if torch.cuda.is_available() else Cpu()
