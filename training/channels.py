"""Augmentation of hard listening, drawn anew at every step: telephones, loud rooms, levels, silence.

On mel power, like `training.features`: a band is a gain for each bin, what a codec adds is noise that follows the
speech, a lost packet is a frame that its neighbour stands in for. `training.lines` does the same on samples, truly but
ahead of time; a recording may pass through both.
"""

from __future__ import annotations

import functools
import random

import msgspec
import numpy as np
import torch
from torch import Tensor

from streaming.hearing.mel_filters import mel_filters
from streaming.hearing.windows import SAMPLE_RATE, WINDOW_SAMPLES
from training.features import MEL_BINS, Augmenter, scale

_LOG10 = 2.302585


class Hardships(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of the clips that meet each hardship; `mild` is the share in which none does but telephones."""

    mild: float = 0.3
    telephones: float = 0.35
    backgrounds: float = 0.75
    rooms: float = 0.5
    least_snr_db: float = -2.0
    most_snr_db: float = 30.0


@functools.cache
def _bin_hz() -> Tensor:
    """Centre of each mel bin in Hz, float32 [80]."""
    filters = mel_filters(WINDOW_SAMPLES, MEL_BINS, SAMPLE_RATE)
    hz = torch.linspace(0, SAMPLE_RATE / 2, filters.shape[0])
    return (filters * hz[:, None]).sum(0) / filters.sum(0)


def band_gain(low_hz: float, high_hz: float, low_order: float, high_order: float) -> Tensor:
    """Power gain of a band filter in each mel bin, float32 [80]; orders count 6 dB per octave."""
    hz = _bin_hz()
    return 1 / (1 + (low_hz / hz) ** (2 * low_order)) / (1 + (hz / high_hz) ** (2 * high_order))


def telephone(power: Tensor, rng: random.Random) -> Tensor:
    """Mel power [frames, 80] of a call: a band, sometimes none above 4 kHz, coding noise, lost and muted packets."""
    narrow = rng.random() < 0.8
    high = rng.uniform(2900, 3900) if narrow else rng.uniform(4500, 7500)
    power = power * band_gain(rng.uniform(150, 430), high, rng.uniform(1, 8), rng.uniform(3, 30))
    within = (_bin_hz() < 4000.0).float() if narrow else torch.ones(MEL_BINS)
    coding = power.mean(1, keepdim=True) * 10 ** (-rng.uniform(18, 40) / 10)
    power = power * (within + 1e-7) + coding * within * torch.exp(0.3 * torch.randn_like(power))
    if rng.random() < 0.25:  # a low-rate codec: blurred in time, uneven in frequency
        power = 0.5 * (power + power.roll(1, 0)) * torch.exp(rng.uniform(0.1, 0.6) * torch.randn_like(power))
    if rng.random() < 0.3:
        power = _lost_packets(power, rng)
    if rng.random() < 0.2:  # discontinuous transmission: what is quiet becomes even noise
        loudness = power.mean(1, keepdim=True)
        quiet = loudness < loudness.max() * 10 ** (-rng.uniform(2.5, 4.5))
        comfort = loudness.max() * 10 ** (-rng.uniform(4, 7)) * within * torch.exp(0.4 * torch.randn_like(power))
        power = torch.where(quiet, comfort, power)
    return power


def _lost_packets(power: Tensor, rng: random.Random) -> Tensor:
    """Some packets of two frames replaced by the one before, weaker each time, or by nothing."""
    share, repeat, fill = rng.uniform(0.01, 0.1), rng.random() < 0.8, 1e-6
    power, lost = power.clone(), False
    for start in range(2, power.shape[0] - 1, 2):
        lost = rng.random() < (0.4 if lost else share)
        if lost:
            power[start : start + 2] = power[start - 2 : start] * (0.4 if repeat else fill)
    return power


class HardAugmenter(Augmenter):
    """`Augmenter` with telephones and backgrounds down to below the speech."""

    def __init__(self, noise: list[np.ndarray], rng: random.Random, hardships: Hardships, pauses: float = 0.0) -> None:
        """noise: log10 power [frames, 80] of backgrounds."""
        super().__init__(noise, rng, pauses)
        self.hardships = hardships

    def one(self, mel: np.ndarray, mild: bool) -> Tensor:
        """Augmented encoder input float32 [frames', 80]."""
        return self.pair(mel, None, mild)[0]

    def pair(self, mel: np.ndarray, clean: np.ndarray | None, mild: bool) -> tuple[Tensor, Tensor]:
        """`mel` augmented, and `clean` (None: `mel`; of as many frames) with the same tempo, tract, pauses and
        equaliser but nothing that makes listening hard: each encoder input float32 [frames', 80]."""
        rng, share = self.rng, self.hardships
        versions = [mel] if clean is None else [mel, clean[: len(mel)]]
        x = self._warp(torch.from_numpy(np.concatenate(versions, axis=1).astype(np.float32)), len(versions))
        if rng.random() < self.pauses:
            x = self._pause(x)
        # Before and behind the words lies whatever noise the recording has, not digital silence alone.
        around = x.topk(max(1, len(x) // 20), dim=0, largest=False).values[-1] if rng.random() < 0.5 else -9.0
        before, behind = (torch.zeros(rng.randrange(5, most), x.shape[1]) + around for most in (40, 80))
        x = torch.cat((before, x, behind))
        knots = self._equaliser()
        power, target = torch.pow(10.0, x[:, :MEL_BINS] + knots), torch.pow(10.0, x[:, -MEL_BINS:] + knots)
        if not mild:
            if rng.random() < share.rooms:
                power = self._reverberate(power)
            if rng.random() < share.backgrounds:
                power = self._surround(power)
        if rng.random() < (0.5 * share.telephones if mild else share.telephones):
            power = telephone(power, rng)
        floor = rng.uniform(-9.5, -5) if rng.random() < 0.7 else -9.5
        return self._levelled(power, rng.uniform(-3.6, 0.1), floor), self._levelled(target, -1.7, -9.0)

    def _levelled(self, power: Tensor, level: float, floor: float) -> Tensor:
        """At a mean of 10^level, over a noise of 10^floor."""
        x = power.clamp_min(1e-10).log10() - power.mean().log10() + level
        return scale(torch.logaddexp(x * _LOG10, torch.randn_like(x) + floor * _LOG10) / _LOG10)

    def _surround(self, power: Tensor) -> Tensor:
        """A background behind everything, at a drawn ratio to the mean power of the whole."""
        share, rng = self.hardships, self.rng
        noise = torch.pow(10.0, torch.from_numpy(rng.choice(self.noise).astype(np.float32)))
        start = rng.randrange(noise.shape[0])
        noise = noise.repeat(power.shape[0] // noise.shape[0] + 2, 1)[start : start + power.shape[0]]
        tilt = torch.linspace(-0.5, 0.5, MEL_BINS) * rng.gauss(0, 0.7)
        noise = noise * torch.pow(10.0, tilt)
        snr_db = rng.uniform(share.least_snr_db, share.most_snr_db)
        # Two sounds do not add up in power frame by frame: their phases meet at random.
        cross = 2 * torch.cos(torch.rand_like(power) * 6.2832) * 0.5
        noise = noise * (power.mean() / noise.mean().clamp_min(1e-12) * 10 ** (-snr_db / 10))
        return (power + noise + cross * (power * noise).sqrt()).clamp_min(1e-10)

    def batch(self, mels: list[np.ndarray], mild_share: float = 0.4) -> tuple[Tensor, Tensor]:
        """As `Augmenter.batch`, but the share of mild batches is that of the hardships."""
        return super().batch(mels, self.hardships.mild)

    def pairs(self, mels: list[np.ndarray], cleans: list[np.ndarray | None]) -> tuple[Tensor, Tensor, Tensor]:
        """As `batch`, but mild or not clip by clip; and behind it the clean versions, padded to the same shape."""
        mild_share = self.hardships.mild
        rows = [self.pair(mel, clean, self.rng.random() < mild_share) for mel, clean in zip(mels, cleans, strict=True)]
        lengths = torch.tensor([len(row) for row, _ in rows])
        padded = torch.full((2, len(rows), int(lengths.max()), MEL_BINS), -1.0)
        for i, versions in enumerate(rows):
            for j, version in enumerate(versions):
                padded[j, i, : len(version)] = version
        heard = self.mask(padded[0], lengths) if self.rng.random() < 0.5 else padded[0]
        return heard, lengths, padded[1]
