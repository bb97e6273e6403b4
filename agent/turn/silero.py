"""Silero's voice activity network through onnxruntime: how likely is it that somebody speaks in these 32 ms.

The package that ships the network imports torch, which this process must never hold, so only its data file is used.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]

from agent.audio import Samples

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 512
_CONTEXT_SAMPLES = 64


class VadError(Exception):
    """The network is missing or unreadable; the message says what to install."""


class VoiceActivity(Protocol):
    """Probability of speech, window by window; holds the state of one stream."""

    def probability(self, window: Samples) -> float:
        """`window` is s16 [512] at 16 kHz."""
        ...

    def reset(self) -> None: ...


def model_path() -> Path:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise VadError("the package silero-vad is not installed; run `make setup`")
    path = Path(spec.origin).parent / "data" / "silero_vad_16k_op15.onnx"
    if not path.is_file():
        raise VadError(f"{path} is missing; reinstall the package silero-vad")
    return path


@lru_cache(maxsize=1)
def _network() -> onnxruntime.InferenceSession:
    """One network for all sessions; single-threaded, since a window takes a tenth of a millisecond."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])


class SileroVad:
    """Recurrent state [2, 1, 128] and the last 64 samples travel from window to window."""

    def __init__(self) -> None:
        self._run = _network().run
        self._rate = np.array(SAMPLE_RATE_HZ, dtype=np.int64)
        self._input: npt.NDArray[np.float32] = np.zeros((1, _CONTEXT_SAMPLES + WINDOW_SAMPLES), np.float32)
        self._state: npt.NDArray[np.float32] = np.zeros((2, 1, 128), np.float32)

    def reset(self) -> None:
        self._input[:] = 0
        self._state = np.zeros((2, 1, 128), np.float32)

    def probability(self, window: Samples) -> float:
        self._input[0, :_CONTEXT_SAMPLES] = self._input[0, -_CONTEXT_SAMPLES:]
        np.multiply(window, 1 / 32768, out=self._input[0, _CONTEXT_SAMPLES:], casting="unsafe")
        output, self._state = self._run(None, {"input": self._input, "state": self._state, "sr": self._rate})
        return float(output[0, 0])
