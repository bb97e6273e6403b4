"""Three ways to run a step over rows: as it stands, recorded as CUDA graphs, and watched for what cannot be recorded.

A step is a function of slot numbers [rows] on the device that reads and writes tensors which stay where they are. Rows
come in buckets: what is missing to the next bucket is filled up with a slot that belongs to nobody.

AGOGIC_STEPS names the way; without it, graphs on a GPU and as it stands elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from kernels.paged_attention import BackendError
from kernels.step_trace import StepTrace, traced

log = logging.getLogger("agogic.kernels")

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


class StrictSteps:
    """Calls the step under a trace that fails on whatever could not be recorded, and where a second call of the same
    shape is of other operations or addresses than the first. Slow; for tests."""

    name = "strict"
    sees_host = False

    def __init__(self, buckets: Sequence[int], idle: int, device: torch.device) -> None:
        self.buckets, self._idle, self._device = tuple(buckets), idle, device
        self._first: dict[tuple[str, int, int], tuple[Tensor, StepTrace]] = {}

    def run(self, name: str, work: Work, slots: Sequence[int], width: int, in_place: InPlace | None = None) -> None:
        wanted = torch.tensor(filled_up(slots, self.buckets, self._idle), device=self._device)
        key = (name, len(wanted), width)
        if key not in self._first:
            rows = wanted.clone()
            self._first[key] = rows, traced(lambda: work(rows, width, None), strict=True)
            return
        rows, first = self._first[key]
        rows.copy_(wanted)
        traced(lambda: work(rows, width, None), strict=True).compare(first)

    def warm(self, name: str, work: Work, widths: Sequence[int]) -> None:
        """There is nothing to make ready."""

    @property
    def traces(self) -> dict[tuple[str, int, int], StepTrace]:
        """By name, rows and pages."""
        return {key: trace for key, (_, trace) in self._first.items()}


class GraphSteps:
    """Records the step once for each bucket and width, all in one pool of memory, and plays the records."""

    name = "graphs"
    sees_host = False

    def __init__(self, buckets: Sequence[int], idle: int, device: torch.device) -> None:
        self.buckets, self._idle, self._device = tuple(buckets), idle, device
        self._pool = torch.cuda.graph_pool_handle()
        self._rows = {bucket: torch.full((bucket,), idle, device=device) for bucket in buckets}
        self._held: dict[int, list[int]] = {}
        self._graphs: dict[tuple[str, int, int], torch.cuda.CUDAGraph] = {}

    def run(self, name: str, work: Work, slots: Sequence[int], width: int, in_place: InPlace | None = None) -> None:
        wanted = filled_up(slots, self.buckets, self._idle)
        bucket = len(wanted)
        if self._held.get(bucket) != wanted:
            self._rows[bucket].copy_(torch.tensor(wanted).pin_memory(), non_blocking=True)
            self._held[bucket] = wanted
        if (name, bucket, width) not in self._graphs:
            log.warning("recording %s for %d rows and %d pages while callers wait", name, bucket, width)
            self._record(name, work, bucket, width)
        self._graphs[name, bucket, width].replay()

    def warm(self, name: str, work: Work, widths: Sequence[int]) -> None:
        # The largest first: smaller ones find their memory in the pool then.
        for bucket in sorted(self.buckets, reverse=True):
            for width in sorted(widths, reverse=True):
                self._record(name, work, bucket, width)

    def _record(self, name: str, work: Work, bucket: int, width: int) -> None:
        rows = self._rows[bucket]
        held = rows.clone()
        rows.fill_(self._idle)  # recording must leave everybody's slots alone
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose their kernels and take their memory before
                work(rows, width, None)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work(rows, width, None)
        rows.copy_(held)
        self._graphs[name, bucket, width] = graph


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
    makers: dict[str, Callable[[Sequence[int], int, torch.device], StepRunner]] = {
        "eager": EagerSteps,
        "graphs": GraphSteps,
        "strict": StrictSteps,
    }
    return makers[name](buckets, idle, device)
