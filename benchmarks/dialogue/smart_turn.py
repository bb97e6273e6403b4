"""smart-turn v3 (BSD-2, in the package pipecat-ai) as a judge of our own: how complete the last 8 s of sound are."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from streaming.hearing.log_mel import whisper_log_mel

SECONDS = 8
SAMPLES = SECONDS * 16_000
MEL_BINS = 80


class SmartTurn:
    """The network of an ONNX file, on one thread."""

    def __init__(self, path: Path) -> None:
        # Only for who asks for this judge: `pip install onnxruntime`, or the extra `judges`.
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._times_ms: list[float] = []

    def probability(self, sound: NDArray[np.float32]) -> float:
        """Of samples [n] at 16 kHz: zeros go in front, and loudness does not count, as the package does it."""
        started = time.perf_counter()
        last = np.pad(sound[-SAMPLES:], (max(0, SAMPLES - len(sound)), 0)).astype(np.float32)
        even = (last - last.mean()) / np.sqrt(last.var() + 1e-7)
        mel = whisper_log_mel(torch.from_numpy(even), MEL_BINS).T[None].contiguous().numpy()
        (complete,) = self._session.run(None, {self._input: mel})
        self._times_ms.append((time.perf_counter() - started) * 1e3)
        return float(np.ravel(complete)[0])

    @property
    def call_ms(self) -> float:
        """Median of what a call took."""
        return statistics.median(self._times_ms)
