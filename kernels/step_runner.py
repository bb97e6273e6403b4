"""Three ways to run a step over rows: as it stands, recorded as CUDA graphs, and watched for what cannot be recorded.

A step is a function of slot numbers [rows] on the device that reads and writes tensors which stay where they are. Rows
come in buckets: what is missing to the next bucket is filled up with a slot that belongs to nobody.

AGOGIC_STEPS names the way; without it, graphs on a GPU and as it stands elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kernels.paged_attention import BackendError
from kernels.recorder import Graphs, Strict

CHOICE, LARGEST = "AGOGIC_STEPS", "AGOGIC_LARGEST_BUCKET"
NAMES = ("eager", "graphs", "strict")
LARGEST_BUCKET = 64

InPlace = tuple[int, int]
Work = Callable[[Tensor, int, InPlace | None], None]
"""rows int64 [bucket]; pages of each row to look at; where a row alone lies, if that is known and may be used."""


class StepRunner(Protocol):
    """buckets: the numbers of rows that a step is made for. sees_host: whether the step may use what the host knows
    about a row alone, and how far the longest row reaches."""

    name: str
    buckets: tuple[int, ...]
    sees_host: bool

    def run(self, name: str, work: Work, slots: Sequence[int], width: int, in_place: InPlace | None = None) -> None:
        """`work` for the slots, at most as many as the largest bucket; `name` tells one work from another."""

    def warm(self, name: str, work: Work, widths: Sequence[int]) -> None:
        """Makes everything ready that the first run would take its time for."""


class EagerSteps:
    """Calls the step; rows are filled up all the same, so that a row rounds alike whoever its neighbours are."""

    name = "eager"
    sees_host = True

    def __init__(self, buckets: Sequence[int], idle: int, device: torch.device) -> None:
        self.buckets, self._idle, self._device = tuple(buckets), idle, device

    def run(self, name: str, work: Work, slots: Sequence[int], width: int, in_place: InPlace | None = None) -> None:
        work(self._rows(slots), width, in_place)

    def warm(self, name: str, work: Work, widths: Sequence[int]) -> None:
        work(self._rows([self._idle]), widths[0], None)

    def _rows(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(filled_up(slots, self.buckets, self._idle), device=self._device)


class RecordedSteps:
    """Steps that are recorded for each bucket and width, or watched as if they were."""

    sees_host = False

    def __init__(self, recorder: Graphs | Strict, buckets: Sequence[int], idle: int, device: torch.device) -> None:
        self.name = "graphs" if isinstance(recorder, Graphs) else "strict"
        self.buckets, self.recorder, self._idle = tuple(buckets), recorder, idle
        self._rows = {bucket: torch.full((bucket,), idle, device=device) for bucket in buckets}
        self._held: dict[int, list[int]] = {}
        self._made: set[tuple[str, int, int]] = set()

    def run(self, name: str, work: Work, slots: Sequence[int], width: int, in_place: InPlace | None = None) -> None:
        wanted = filled_up(slots, self.buckets, self._idle)
        bucket = len(wanted)
        # Nobody's rows while it is made ready, which may do the work: everybody's slots are left alone then.
        self._ready(name, work, bucket, width)
        if self._held.get(bucket) != wanted:
            rows = torch.tensor(wanted)
            pinned = rows.pin_memory() if self._rows[bucket].device.type == "cuda" else rows
            self._rows[bucket].copy_(pinned, non_blocking=True)
            self._held[bucket] = wanted
        self.recorder.run((name, bucket, width), partial(work, self._rows[bucket], width, None))

    def warm(self, name: str, work: Work, widths: Sequence[int]) -> None:
        # The largest first: smaller ones find their memory in the pool then.
        for bucket in sorted(self.buckets, reverse=True):
            for width in sorted(widths, reverse=True):
                self._ready(name, work, bucket, width)

    def _ready(self, name: str, work: Work, bucket: int, width: int) -> None:
        key = (name, bucket, width)
        if key in self._made:
            return
        self._rows[bucket].fill_(self._idle)
        self._held.pop(bucket, None)
        self.recorder.ready(key, partial(work, self._rows[bucket], width, None))
        self._made.add(key)


def filled_up(slots: Sequence[int], buckets: Sequence[int], idle: int) -> list[int]:
    """The slots, and `idle` ones up to the next bucket."""
    bucket = next(bucket for bucket in buckets if bucket >= len(slots))
    return [*slots, *[idle] * (bucket - len(slots))]


def in_buckets(slots: Sequence[int], buckets: Sequence[int]) -> Iterator[Sequence[int]]:
    """The slots in as many calls as the largest bucket asks for."""
    for start in range(0, len(slots), buckets[-1]):
        yield slots[start : start + buckets[-1]]


def buckets_for(rows: int) -> tuple[int, ...]:
    """Powers of two up to so many rows, and to AGOGIC_LARGEST_BUCKET at most. Raises `BackendError`."""
    stated = os.environ.get(LARGEST) or str(LARGEST_BUCKET)
    if not stated.isdigit() or not 1 <= int(stated) <= 256:
        raise BackendError(f"{LARGEST}={stated} is no number of rows; take 1 to 256")
    largest = min(int(stated), 1 << max(0, rows - 1).bit_length())
    powers = [1 << power for power in range(largest.bit_length())]
    return tuple(powers if powers[-1] == largest else [*powers, largest])


def steps_name(device: torch.device, name: str | None = None) -> str:
    """The way of that name, of AGOGIC_STEPS, or else the usual one of the device. Raises `BackendError`."""
    name = name or os.environ.get(CHOICE) or "auto"
    if name == "auto":
        return "graphs" if device.type == "cuda" else "eager"
    if name not in NAMES:
        raise BackendError(f"{CHOICE}={name} is no way to run a step; take auto, {', '.join(NAMES)}")
    if name == "graphs" and device.type != "cuda":
        raise BackendError(f"{CHOICE}=graphs needs a GPU and this model is placed on the {device.type}; unset {CHOICE}")
    return name


def make_steps(name: str, buckets: Sequence[int], idle: int, device: torch.device) -> StepRunner:
    """name: as `steps_name` gives it."""
    if name == "eager":
        return EagerSteps(buckets, idle, device)
    recorder = Graphs(device) if name == "graphs" else Strict()
    return RecordedSteps(recorder, buckets, idle, device)
