"""Work of fixed shape, run as it stands, watched for what cannot be recorded, or recorded once and played again.

Work is a function without arguments that reads and writes tensors which stay where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

from kernels.step_trace import StepTrace, traced

log = logging.getLogger("agogic.kernels")

Work = Callable[[], None]


class Recorder(Protocol):
    """fixed: shapes should be few, because each is made ready by itself."""

    fixed: bool

    def ready(self, key: Hashable, work: Work) -> None:
        """Makes ready what the first run of this key would take its time for; may do the work once or twice."""

    def run(self, key: Hashable, work: Work) -> None:
        """Does the work. Of equal keys it must be the same but for the contents of its tensors."""


class Plain:
    """Does the work."""

    fixed = False

    def ready(self, key: Hashable, work: Work) -> None:
        """There is nothing to make ready."""

    def run(self, key: Hashable, work: Work) -> None:
        work()


class Strict:
    """Does the work under a trace that fails on whatever could not be recorded, and where a second run of a key is of
    other operations or addresses than the first. Slow; for tests."""

    fixed = True

    def __init__(self) -> None:
        self.traces: dict[Hashable, StepTrace] = {}

    def ready(self, key: Hashable, work: Work) -> None:
        """There is nothing to make ready."""

    def run(self, key: Hashable, work: Work) -> None:
        trace = traced(work, strict=True)
        if key in self.traces:
            trace.compare(self.traces[key])
        else:
            self.traces[key] = trace


class Graphs:
    """Records CUDA graphs, all in one pool of memory, and plays them."""

    fixed = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def ready(self, key: Hashable, work: Work) -> None:
        if key in self._graphs:
            return
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose their kernels and take their memory before
                work()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._graphs[key] = graph

    def run(self, key: Hashable, work: Work) -> None:
        self._graphs[key].replay()


def make_recorder(name: str, device: torch.device) -> Recorder:
    """name: 'eager', 'strict' or 'graphs', as `kernels.step_runner.steps_name` gives it."""
    if name == "graphs":
        return Graphs(device)
    return Strict() if name == "strict" else Plain()
