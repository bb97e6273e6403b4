"""Backgrounds for training, made from random numbers and from the synthesised customers: kitchens, cafés, streets,
crowds and bad lines.

Nothing of a test is in them: the noises that `agogic eval` mixes in are made in another way (see
`benchmarks.dialogue.disturbances`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

SAMPLE_RATE = 16_000

Samples = np.ndarray
"""float32 [N] at 16 kHz; levels mean nothing, the mixer sets them."""


def _frequencies(count: int) -> np.ndarray:
    return np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 1.0)


def shaped(count: int, curve: Callable[[np.ndarray], np.ndarray], draw: np.random.Generator) -> Samples:
    """Gaussian noise [count] whose magnitude spectrum follows `curve` over frequencies in Hz; rms 1."""
    spectrum = np.fft.rfft(draw.standard_normal(count)) * curve(_frequencies(count))
    sound = np.fft.irfft(spectrum, count)
    return (sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9)).astype(np.float32)


def _swell(count: int, draw: np.random.Generator, depth_db: float, seconds: float) -> np.ndarray:
    """A slowly wandering gain [count]: a value drawn every `seconds`, joined by straight lines."""
    knots = max(2, int(count / SAMPLE_RATE / seconds) + 2)
    values = draw.normal(0, depth_db, knots)
    return 10 ** (np.interp(np.linspace(0, knots - 1, count), np.arange(knots), values) / 20)


def _band(low_hz: float, high_hz: float) -> Callable[[np.ndarray], np.ndarray]:
    def curve(f: np.ndarray) -> np.ndarray:
        rise = 1 / np.sqrt(1 + (low_hz / f) ** 4)
        fall = 1 / np.sqrt(1 + (f / high_hz) ** 6)
        return np.asarray(rise * fall)

    return curve


def _bursts(
    count: int,
    draw: np.random.Generator,
    per_second: float,
    decay_s: tuple[float, float],
    low_hz: tuple[float, float],
    width: tuple[float, float],
) -> Samples:
    """Noise bursts at random moments, each through one or several narrow bands, dying away: dishes, cutlery, doors."""
    sound = np.zeros(count, np.float32)
    for _ in range(draw.poisson(per_second * count / SAMPLE_RATE)):
        length = int(SAMPLE_RATE * draw.uniform(*decay_s) * 5)
        start = int(draw.integers(0, count))
        burst = np.zeros(length, np.float32)
        for _ in range(int(draw.integers(1, 4))):
            low = draw.uniform(*low_hz)
            burst += draw.uniform(0.2, 1.0) * shaped(length, _band(low, low * draw.uniform(*width)), draw)
        burst *= np.exp(-np.arange(length) / (length / 5)) * 10 ** draw.uniform(-1.0, 0.3)
        sound[start : start + length] += burst[: count - start]
    return sound


def _hum(count: int, draw: np.random.Generator) -> Samples:
    """Mains at 50 or 60 Hz with harmonics."""
    at = np.arange(count) / SAMPLE_RATE
    mains = draw.choice((50.0, 60.0))
    sound = np.zeros(count)
    for harmonic in range(1, int(draw.integers(3, 14))):
        sound += np.sin(2 * np.pi * mains * harmonic * at + draw.uniform(0, 6)) * draw.uniform(0, 1) / harmonic
    return sound.astype(np.float32)


def _chatter(count: int, voices: Sequence[Samples], rng: random.Random, number: int) -> Samples:
    """`number` people talking at once, near and far, each saying one thing after another."""
    sound = np.zeros(count, np.float32)
    for _ in range(number):
        line: list[np.ndarray] = []
        while sum(map(len, line)) < count:
            said = rng.choice(voices)
            line += [said / max(float(np.sqrt(np.mean(said**2))), 1e-4), np.zeros(rng.randrange(16_000), np.float32)]
        person = np.roll(np.concatenate(line)[:count], rng.randrange(count))
        sound += person * 10 ** rng.uniform(-0.6, 0)
    return sound


def kitchen(count: int, voices: Sequence[Samples], rng: random.Random, draw: np.random.Generator) -> Samples:
    """Water, fans, sizzling; dishes and drawers."""
    fan = shaped(count, lambda f: 1 / (1 + (f / draw.uniform(150, 900)) ** draw.uniform(0.7, 1.6)), draw)
    water = shaped(count, _band(draw.uniform(300, 1500), draw.uniform(2500, 7000)), draw)
    sound = fan * draw.uniform(0.1, 0.7) + water * _swell(count, draw, 5, 0.8) * draw.uniform(0, 0.5)
    sound += _bursts(count, draw, draw.uniform(0.3, 4), (0.01, 0.12), (900, 6000), (1.05, 1.6)) * draw.uniform(0.5, 3)
    sound += _bursts(count, draw, draw.uniform(0.1, 1), (0.02, 0.1), (60, 400), (1.5, 3.0)) * draw.uniform(0, 2)
    if rng.random() < 0.4:
        crackle = (draw.random(count) < 0.01) * draw.standard_normal(count)
        sound += np.convolve(crackle, draw.standard_normal(12), "same").astype(np.float32) * draw.uniform(0, 0.7)
    if rng.random() < 0.4:
        sound += _chatter(count, voices, rng, 1) * draw.uniform(0, 0.3)
    return sound


def cafe(count: int, voices: Sequence[Samples], rng: random.Random, draw: np.random.Generator) -> Samples:
    """Many voices in a room, cups, steam, some tones of music."""
    sound = _chatter(count, voices, rng, rng.randrange(4, 14)) * draw.uniform(0.1, 0.5)
    sound += shaped(count, lambda f: 1 / (1 + (f / 400) ** 1.1), draw) * draw.uniform(0.05, 0.5)
    sound += _bursts(count, draw, draw.uniform(0.2, 2), (0.01, 0.08), (1500, 6500), (1.03, 1.3)) * draw.uniform(0, 1.5)
    steam = shaped(count, _band(draw.uniform(1500, 4000), 7800), draw)
    on = np.interp(np.arange(count), np.sort(draw.integers(0, count, 6)), (0, 1, 1, 0, 0, 0))
    sound += steam * on * draw.uniform(0, 0.8)
    if rng.random() < 0.5:
        at, notes = np.arange(count) / SAMPLE_RATE, np.zeros(count)
        for _ in range(count // 4000):
            begin, pitch = draw.uniform(0, at[-1]), 110 * 2 ** (draw.integers(0, 36) / 12)
            since = np.clip(at - begin, 0, None)
            ringing = np.exp(-3 * since) * (at > begin)
            notes += ringing * sum(np.sin(2 * np.pi * pitch * k * since) / k for k in (1, 2, 3))
        sound += (notes * draw.uniform(0, 0.3)).astype(np.float32)
    return sound


def street(count: int, voices: Sequence[Samples], rng: random.Random, draw: np.random.Generator) -> Samples:
    """Rumble, wind, cars that come and go, now and then a horn."""
    sound = shaped(count, lambda f: 1 / (1 + (f / draw.uniform(60, 250)) ** draw.uniform(0.9, 1.5)), draw)
    sound *= _swell(count, draw, 3, 2.0)
    at = np.arange(count) / SAMPLE_RATE
    for _ in range(rng.randrange(1, 5)):
        passing = np.exp(-(((at - draw.uniform(0, at[-1])) / draw.uniform(0.7, 3)) ** 2))
        sound += shaped(count, _band(100, draw.uniform(600, 3000)), draw) * passing * draw.uniform(0.2, 1.5)
    sound += shaped(count, _band(20, draw.uniform(100, 300)), draw) * _swell(count, draw, 8, 0.5) * draw.uniform(0, 0.7)
    if rng.random() < 0.3:
        horn = sum(np.sin(2 * np.pi * draw.uniform(300, 700) * k * at) / k for k in (1, 2, 3, 4))
        begin = draw.uniform(0, at[-1])
        sound += (horn * ((at > begin) & (at < begin + draw.uniform(0.2, 1)))).astype(np.float32) * draw.uniform(0, 1)
    return sound


def crowd(count: int, voices: Sequence[Samples], rng: random.Random, draw: np.random.Generator) -> Samples:
    """Voices and little else: from one other speaker to ten."""
    room = shaped(count, lambda f: 1 / (1 + (f / 300) ** 1.2), draw) * draw.uniform(0.02, 0.3)
    return _chatter(count, voices, rng, rng.choice((1, 1, 2, 3, 5, 7, 10))) + room


def line(count: int, voices: Sequence[Samples], rng: random.Random, draw: np.random.Generator) -> Samples:
    """Hum, hiss of any colour, crackle."""
    tilt = draw.uniform(-0.2, 1.3)
    sound = shaped(count, lambda f: 1 / (1 + (f / 300) ** tilt), draw) * _swell(count, draw, draw.uniform(0, 4), 0.5)
    sound += _hum(count, draw) * draw.uniform(0, 1.5)
    if rng.random() < 0.3:
        sound += (draw.random(count) < 0.002) * draw.standard_normal(count) * draw.uniform(0, 20)
    return sound.astype(np.float32)


KINDS = (kitchen, kitchen, cafe, street, crowd, line)


def noises(voices: Sequence[Samples], number: int, seconds: float, seed: int) -> list[Samples]:
    """`number` backgrounds, float32 [seconds * 16000] of rms 1; `voices` are recordings that crowds are made of."""
    rng, made = random.Random(seed), list[Samples]()
    count = int(seconds * SAMPLE_RATE)
    for i in range(number):
        sound = KINDS[i % len(KINDS)](count, voices, rng, np.random.default_rng(seed * 1000 + i))
        made.append((sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9)).astype(np.float32))
    return made
