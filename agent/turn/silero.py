"""Silero's voice activity network (version 6, 16 kHz): how likely is it that somebody speaks in these 32 ms.

The network is small: a spectrum, four convolutions, one LSTM cell. A runtime for networks takes 37 MB, a third of what
the service takes without it. The weights are those of the package silero-vad 6.2.3 (MIT, Silero Team), unchanged; the
package itself imports torch, which this process must never hold.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.audio import Samples

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 512
_CONTEXT_SAMPLES = 64
_MIRRORED_SAMPLES = 64
_FRAME, _HOP, _BINS, _FRAMES = 256, 128, 129, 4
_HIDDEN = 128

_WEIGHTS = Path(__file__).with_name("silero_vad.safetensors")

Floats = npt.NDArray[np.float32]


class VadError(Exception):
    """The weights are missing or unreadable; the message says what to do."""


class VoiceActivity(Protocol):
    """Probability of speech, window by window; holds the state of one stream."""

    def probability(self, window: Samples) -> float:
        """`window` is s16 [512] at 16 kHz."""
        ...

    def reset(self) -> None: ...


class _Network:
    """The weights as the products below want them; shared by all streams.

    Four frames of spectrum become two, then one, so of most kernels' taps some only ever meet the padding: they are
    left out.
    """

    def __init__(self, weights: dict[str, Floats]) -> None:
        def taps(name: str) -> Floats:
            """[out, in, 3] as [3, in, out]"""
            return np.ascontiguousarray(weights[f"{name}.weight"].transpose(2, 1, 0))

        waves = weights["spectrum.weight"][:, 0].T
        self.real, self.imaginary = np.ascontiguousarray(waves[:, :_BINS]), np.ascontiguousarray(waves[:, _BINS:])
        self.first = taps("conv1").reshape(3 * _BINS, -1)
        second, third = taps("conv2"), taps("conv3")
        self.second = second.reshape(-1, second.shape[2])
        self.third = third[1:].reshape(-1, third.shape[2])
        self.fourth = taps("conv4")[1]
        self.biases = [weights[f"conv{n}.bias"] for n in (1, 2, 3, 4)]
        self.gates = np.ascontiguousarray(
            np.concatenate([weights["lstm.weight_ih"], weights["lstm.weight_hh"]], axis=1).T
        )
        self.gate_bias = weights["lstm.bias_ih"] + weights["lstm.bias_hh"]
        self.last = weights["last.weight"].reshape(-1)
        self.last_bias = float(weights["last.bias"][0])

    def heard(self, sound: Floats) -> Floats:
        """`sound` [640] → features [128] of the window."""
        frames = np.stack([sound[start : start + _FRAME] for start in range(0, _FRAMES * _HOP, _HOP)])
        real, imaginary = frames @ self.real, frames @ self.imaginary
        spectrum = np.zeros((_FRAMES + 2, _BINS), np.float32)
        np.sqrt(real * real + imaginary * imaginary, out=spectrum[1:-1])
        x = np.zeros((_FRAMES + 1, _HIDDEN), np.float32)
        threes = np.stack([spectrum[frame : frame + 3].reshape(-1) for frame in range(_FRAMES)])
        x[1:] = _relu(threes @ self.first + self.biases[0])
        x = _relu(np.stack([x[0:3].reshape(-1), x[2:5].reshape(-1)]) @ self.second + self.biases[1])
        x = _relu(x.reshape(-1) @ self.third + self.biases[2])
        features: Floats = _relu(x @ self.fourth + self.biases[3])
        return features

    def step(self, features: Floats, hidden: Floats, cell: Floats) -> tuple[Floats, Floats]:
        """One LSTM step; all [128]."""
        gates = np.concatenate([features, hidden]) @ self.gates + self.gate_bias
        let_in, keep, new, let_out = gates.reshape(4, _HIDDEN)
        cell = _sigmoid(keep) * cell + _sigmoid(let_in) * np.tanh(new)
        return _sigmoid(let_out) * np.tanh(cell), cell

    def probability(self, hidden: Floats) -> float:
        return float(_sigmoid(np.maximum(hidden, 0) @ self.last + self.last_bias))


def _relu(x: Floats) -> Floats:
    """In place."""
    return np.maximum(x, 0, out=x)


def _sigmoid(x: Floats) -> Floats:
    squashed: Floats = 0.5 + 0.5 * np.tanh(0.5 * x)
    return squashed


@lru_cache(maxsize=1)
def _network() -> _Network:
    """One network for all streams."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return _Network(load_file(_WEIGHTS))
    except (OSError, SafetensorError, KeyError) as error:
        raise VadError(f"{_WEIGHTS} cannot be read ({error}); install agogic anew") from error


class SileroVad:
    """The LSTM's state and the last 64 samples travel from window to window. Raises `VadError`."""

    def __init__(self) -> None:
        self._network = _network()
        self._sound: Floats = np.zeros(_CONTEXT_SAMPLES + WINDOW_SAMPLES + _MIRRORED_SAMPLES, np.float32)
        self.reset()

    def reset(self) -> None:
        self._sound[:] = 0
        self._hidden: Floats = np.zeros(_HIDDEN, np.float32)
        self._cell: Floats = np.zeros(_HIDDEN, np.float32)

    def probability(self, window: Samples) -> float:
        sound, end = self._sound, _CONTEXT_SAMPLES + WINDOW_SAMPLES
        sound[:_CONTEXT_SAMPLES] = sound[end - _CONTEXT_SAMPLES : end]
        np.multiply(window, 1 / 32768, out=sound[_CONTEXT_SAMPLES:end], casting="unsafe")
        sound[end:] = sound[end - 2 : end - 2 - _MIRRORED_SAMPLES : -1]
        self._hidden, self._cell = self._network.step(self._network.heard(sound), self._hidden, self._cell)
        return self._network.probability(self._hidden)
