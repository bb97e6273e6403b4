"""Silero's voice activity network (version 6, 16 kHz): how likely is it that somebody speaks in these 32 ms.

The network is small: a spectrum, four convolutions, one LSTM cell. A runtime for networks takes 37 MB, a third of what
the service takes without it. The weights are those of the package silero-vad 6.2.3 (MIT, Silero Team), unchanged; the
package itself imports torch, which this process must never hold.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

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
    left out. Every bias is one more row of its weights, met by an input that is always 1. A sigmoid is a tanh of half
    its argument: the halves are in the weights (a half changes no digit).
    """

    def __init__(self, weights: dict[str, Floats]) -> None:
        def taps(name: str) -> Floats:
            """[out, in, 3] as [3, in, out]"""
            return weights[f"{name}.weight"].transpose(2, 1, 0)

        def biased(product: Floats, bias: Floats) -> Floats:
            return np.ascontiguousarray(np.concatenate([product.reshape(-1, bias.size), bias[None]]))

        self.waves = np.ascontiguousarray(weights["spectrum.weight"][:, 0].T)
        self.first = biased(taps("conv1"), weights["conv1.bias"])
        self.second = biased(taps("conv2"), weights["conv2.bias"])
        self.third = biased(taps("conv3")[1:], weights["conv3.bias"])
        self.fourth = biased(taps("conv4")[1], weights["conv4.bias"])
        gates = np.concatenate([weights["lstm.weight_ih"], weights["lstm.weight_hh"]], axis=1).T
        self.gates = biased(gates, weights["lstm.bias_ih"] + weights["lstm.bias_hh"])
        in_keep_new_out = self.gates.reshape(-1, 4, _HIDDEN)
        in_keep_new_out[:, [0, 1, 3]] *= 0.5
        self.last = weights["last.weight"].reshape(-1)
        self.last_bias = float(weights["last.bias"][0])


class _Layers:
    """What one stream computes with: every array stays where it is, so that a window allocates nothing.

    At this size most of the time would go into making arrays.
    """

    def __init__(self, network: _Network) -> None:
        self._network = network
        self.sound: Floats = np.zeros(_CONTEXT_SAMPLES + WINDOW_SAMPLES + _MIRRORED_SAMPLES, np.float32)
        self._overlapping = as_strided(self.sound, (_FRAMES, _FRAME), (4 * _HOP, 4), writeable=False)
        self._frames: Floats = np.zeros((_FRAMES, _FRAME), np.float32)
        self._waves: Floats = np.zeros((_FRAMES, 2 * _BINS), np.float32)
        padded = np.zeros((_FRAMES + 2, _BINS), np.float32)
        self._spectrum = padded[1:-1]
        self._threes = as_strided(padded, (_FRAMES, 3 * _BINS), (4 * _BINS, 4), writeable=False)
        self._to_first = _with_one((_FRAMES, 3 * _BINS))
        features = np.zeros((_FRAMES + 1, _HIDDEN), np.float32)
        self._features = features[1:]
        self._pairs = as_strided(features, (2, 3 * _HIDDEN), (4 * 2 * _HIDDEN, 4), writeable=False)
        self._to_second = _with_one((2, 3 * _HIDDEN))
        self._halves: Floats = np.zeros((2, network.second.shape[1]), np.float32)
        self._to_third = _with_one((self._halves.size,))
        self._to_fourth = _with_one((network.third.shape[1],))
        self._to_gates = _with_one((2 * _HIDDEN,))
        self._hidden = self._to_gates[_HIDDEN : 2 * _HIDDEN]
        self._cell: Floats = np.zeros(_HIDDEN, np.float32)
        self._gates: Floats = np.zeros((4, _HIDDEN), np.float32)
        self._row: Floats = np.zeros(_HIDDEN, np.float32)

    def reset(self) -> None:
        self.sound[:] = 0
        self._hidden[:] = 0
        self._cell[:] = 0

    def hear(self) -> None:
        """`sound` [640] → the features [128] of the window, where the cell reads them."""
        network = self._network
        np.copyto(self._frames, self._overlapping)
        waves = np.matmul(self._frames, network.waves, out=self._waves)
        np.multiply(waves, waves, out=waves)
        np.add(waves[:, :_BINS], waves[:, _BINS:], out=self._spectrum)
        np.sqrt(self._spectrum, out=self._spectrum)
        np.copyto(self._to_first[:, :-1], self._threes)
        _relu(np.matmul(self._to_first, network.first, out=self._features))
        np.copyto(self._to_second[:, :-1], self._pairs)
        _relu(np.matmul(self._to_second, network.second, out=self._halves))
        np.copyto(self._to_third[:-1], self._halves.reshape(-1))
        _relu(np.matmul(self._to_third, network.third, out=self._to_fourth[:-1]))
        _relu(np.matmul(self._to_fourth, network.fourth, out=self._to_gates[:_HIDDEN]))

    def step(self) -> None:
        """One step of the LSTM cell."""
        gates = self._gates
        np.matmul(self._to_gates, self._network.gates, out=gates.reshape(-1))
        np.tanh(gates, out=gates)
        let_in, keep, new, let_out = gates
        for gate in (gates[:2], let_out):
            np.multiply(gate, 0.5, out=gate)
            np.add(gate, 0.5, out=gate)
        np.multiply(self._cell, keep, out=self._cell)
        np.add(self._cell, np.multiply(let_in, new, out=new), out=self._cell)
        np.multiply(let_out, np.tanh(self._cell, out=self._row), out=self._hidden)

    def probability(self) -> float:
        network = self._network
        logit = float(np.dot(np.maximum(self._hidden, 0, out=self._row), network.last)) + network.last_bias
        return 0.5 + 0.5 * math.tanh(0.5 * logit)


def _with_one(shape: tuple[int, ...]) -> Floats:
    """Room for an input of this shape, and behind it what meets the bias."""
    room: Floats = np.zeros((*shape[:-1], shape[-1] + 1), np.float32)
    room[..., -1] = 1
    return room


def _relu(x: Floats) -> Floats:
    """In place."""
    return np.maximum(x, 0, out=x)


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
        self._layers = _Layers(_network())

    def reset(self) -> None:
        self._layers.reset()

    def probability(self, window: Samples) -> float:
        layers, end = self._layers, _CONTEXT_SAMPLES + WINDOW_SAMPLES
        sound = layers.sound
        sound[:_CONTEXT_SAMPLES] = sound[end - _CONTEXT_SAMPLES : end]
        np.multiply(window, 1 / 32768, out=sound[_CONTEXT_SAMPLES:end], casting="unsafe")
        sound[end:] = sound[end - 2 : end - 2 - _MIRRORED_SAMPLES : -1]
        layers.hear()
        layers.step()
        return layers.probability()
