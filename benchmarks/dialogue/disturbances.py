"""What stands between a speaker and the model in an evaluation: a telephone, or a noisy place.

Made from random numbers by other means than the noises of training (`training.noises`): no background and no filter is
shared with it. Everything is float32 [samples] at 16 kHz and the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import soxr

SAMPLE_RATE = 16_000

Samples = np.ndarray


class DisturbanceError(Exception):
    """No such channel or noise; the message names those that there are."""


def _band(samples: Samples, rate_hz: int, low_hz: float, high_hz: float) -> Samples:
    """Linear-phase windowed-sinc band-pass of 129 taps."""
    at = np.arange(-64, 65)
    taps = 2 * high_hz / rate_hz * np.sinc(2 * high_hz / rate_hz * at)
    taps -= 2 * low_hz / rate_hz * np.sinc(2 * low_hz / rate_hz * at)
    return np.convolve(samples, taps * np.blackman(129), "same").astype(np.float32)


def _mu_law(samples: Samples) -> Samples:
    """To 8 bits and back by G.711's continuous mu-law curve."""
    squeezed = np.sign(samples) * np.log1p(255 * np.abs(samples.clip(-1, 1))) / np.log(256)
    levels = np.round((squeezed + 1) / 2 * 255) / 255 * 2 - 1
    return (np.sign(levels) * np.expm1(np.abs(levels) * np.log(256)) / 255).astype(np.float32)


def g711(samples: Samples) -> Samples:
    """A telephone: 8 kHz, 300 to 3400 Hz, mu-law."""
    narrow = _band(soxr.resample(samples, SAMPLE_RATE, 8000), 8000, 300.0, 3400.0)
    return soxr.resample(_mu_law(narrow), 8000, SAMPLE_RATE)[: len(samples)].astype(np.float32)


def narrow(samples: Samples) -> Samples:
    """8 kHz and nothing else: what a telephone's sampling alone does."""
    return soxr.resample(soxr.resample(samples, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE)[: len(samples)].astype(
        np.float32
    )


def quiet(samples: Samples) -> Samples:
    """A telephone held away from the mouth: `g711` of speech 20 dB weaker."""
    return g711(samples * 0.1)


CHANNELS: dict[str, Callable[[Samples], Samples]] = {"g711": g711, "narrow": narrow, "quiet": quiet}


def kitchen(count: int, draw: np.random.Generator, others: Sequence[Samples]) -> Samples:
    """A refrigerator, a tap, and struck dishes, each a handful of ringing modes."""
    at = np.arange(count) / SAMPLE_RATE
    sound = sum(0.5 / k * np.sin(2 * np.pi * 49.6 * k * at) for k in range(1, 9))
    drops = np.cumsum(draw.standard_normal(count))
    tap = np.diff(drops - np.convolve(drops, np.ones(9) / 9, "same"), prepend=0.0)
    sound = sound * 0.3 + tap * (0.25 + 0.2 * np.sin(2 * np.pi * 0.31 * at + draw.uniform(0, 6)))
    for begin in np.cumsum(draw.exponential(0.45, int(count / SAMPLE_RATE / 0.45) + 1)):
        first = int(begin * SAMPLE_RATE)
        since = np.arange(max(0, min(count - first, 8000))) / SAMPLE_RATE
        for _ in range(6):
            pitch, loss = draw.uniform(700, 7000), draw.uniform(15, 120)
            sound[first : first + len(since)] += (
                draw.exponential(0.8) * np.exp(-loss * since) * np.sin(2 * np.pi * pitch * since)
            )
    return np.asarray(sound, np.float32)


def street(count: int, draw: np.random.Generator, others: Sequence[Samples]) -> Samples:
    """Engines that approach and leave, over the rumble of many more."""
    at = np.arange(count) / SAMPLE_RATE
    rumble = np.cumsum(draw.standard_normal(count))
    sound = rumble - np.convolve(rumble, np.ones(801) / 801, "same")
    sound = 0.7 * sound / sound.std()
    for _ in range(max(1, count // (3 * SAMPLE_RATE))):
        middle, pitch = draw.uniform(0, at[-1]), draw.uniform(55, 110)
        turns = np.cumsum(pitch * (1 - 0.06 * np.tanh(at - middle))) / SAMPLE_RATE
        engine = sum(np.sin(2 * np.pi * k * turns + k) / np.sqrt(k) for k in range(1, 25))
        tyres = np.diff(draw.standard_normal(count), prepend=0.0)
        sound += (0.4 * engine + 0.3 * tyres) / (1 + ((at - middle) / 0.9) ** 2)
    return np.asarray(sound, np.float32)


def crowd(count: int, draw: np.random.Generator, others: Sequence[Samples]) -> Samples:
    """Six of the other recordings at once, each from a place of its own."""
    sound = np.zeros(count, np.float32)
    for index in draw.choice(len(others), min(6, len(others)), replace=False):
        voice = others[int(index)]
        voice = voice / max(float(np.sqrt(np.mean(voice**2))), 1e-4)
        sound += np.resize(np.roll(voice, int(draw.integers(0, len(voice)))), count) * draw.uniform(0.4, 1.0)
    return sound


NOISES: dict[str, Callable[[int, np.random.Generator, Sequence[Samples]], Samples]] = {
    "kitchen": kitchen,
    "street": street,
    "crowd": crowd,
}


def _named(table: dict[str, Callable[..., Samples]], name: str, what: str) -> Callable[..., Samples]:
    if name not in table:
        raise DisturbanceError(f"there is no {what} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def through(channel: str, samples: Samples) -> Samples:
    """`samples` as they arrive over a channel of `CHANNELS`. Raises DisturbanceError."""
    return _named(CHANNELS, channel, "channel")(samples)


def among(noise: str, samples: Samples, snr_db: float, seed: int, others: Sequence[Samples]) -> Samples:
    """`samples` with a noise of `NOISES` whose power lies `snr_db` below theirs, each over the whole length.

    others: recordings that a crowd is made of. Raises DisturbanceError.
    """
    sound = _named(NOISES, noise, "noise")(len(samples), np.random.default_rng(seed), others)
    power, against = float(np.mean(samples**2)), max(float(np.mean(sound**2)), 1e-12)
    mixed = samples + sound * np.sqrt(power / against * 10 ** (-snr_db / 10))
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)
