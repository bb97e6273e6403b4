"""Features of recordings, and their augmentation in the log-mel domain (cheap enough for one core).

Every feature is log10 of Whisper-convention mel power (80 bins, 25 ms windows, 10 ms hop, centred), floored at
`FLOOR_LOG10` and scaled by (x + 4) / 4. Reverberation, noise, equalisation, level, tempo and vocal-tract length are
changed on mel power: energies add, which holds on average for sounds that do not depend on each other.
"""

from __future__ import annotations

import functools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from streaming.hearing.mel_filters import mel_filters
from streaming.hearing.speech_mel import FLOOR_LOG10
from streaming.hearing.windows import HOP_SAMPLES, LEAST_POWER, SAMPLE_RATE, WINDOW_SAMPLES

MEL_BINS = 80


def log_power(samples: Tensor) -> Tensor:
    """log10 mel power, float32 [floor(N / 160), 80], of 16 kHz samples [N] in -1..1, unfloored above 1e-10."""
    window = torch.hann_window(WINDOW_SAMPLES)
    spectrum = torch.stft(samples, WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)[:, :-1]
    power = spectrum.abs().square().T @ _filters()
    return power.clamp_min(LEAST_POWER).log10()


def scale(log10_power: Tensor) -> Tensor:
    """The encoder's input from log10 mel power."""
    return (log10_power.clamp_min(FLOOR_LOG10) + 4.0) / 4.0


@functools.cache
def _filters() -> Tensor:
    return mel_filters(WINDOW_SAMPLES, MEL_BINS, SAMPLE_RATE)


def read_mono(path: Path) -> np.ndarray:
    """float32 [N] at 16 kHz of any file soundfile reads."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


@dataclass(frozen=True)
class Clip:
    """mel: float16 [frames, 80] log10 power; text: what is said, lower case; seed: number of the pool turn or None;
    clean: the same before it went through a telephone, where it did."""

    mel: np.ndarray
    text: str
    seed: int | None
    name: str
    clean: np.ndarray | None = None


def load_store(folder: Path) -> list[Clip]:
    """Clips of a store that `training.speech_data` wrote; features are cached beside it as float16."""
    entries = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    frames = [entry["samples"] // HOP_SAMPLES for entry in entries]
    cache = folder / "mel.f16"
    if not cache.exists():
        audio = np.memmap(folder / "audio.i16", dtype=np.int16, mode="r")
        partial = cache.with_suffix(".partial")
        with open(partial, "wb") as file:
            for entry in entries:
                samples = audio[entry["start"] : entry["start"] + entry["samples"]].astype(np.float32) / 32768
                file.write(log_power(torch.from_numpy(samples)).to(torch.float16).numpy().tobytes())
        partial.rename(cache)
    mel = np.memmap(cache, dtype=np.float16, mode="r").reshape(-1, MEL_BINS)
    starts = np.concatenate(([0], np.cumsum(frames)))
    return [
        Clip(mel[starts[i] : starts[i + 1]], entry["text"], entry["seed"], entry["voice"])
        for i, entry in enumerate(entries)
    ]


def recording_path(clips: Path, name: str) -> Path:
    """The file of a labelled recording, as Opus or WAV."""
    stem = clips / name.removesuffix(".wav")
    return next(p for p in (stem.with_suffix(".opus"), stem.with_suffix(".wav")) if p.exists())


def load_recordings(clips: Path, labels: Path) -> list[tuple[Clip, dict[str, str]]]:
    """Recorded orders with their slots; texts are unknown ("")."""
    table = json.loads(labels.read_text())
    recordings = []
    for name in sorted(table):
        mel = log_power(torch.from_numpy(read_mono(recording_path(clips, name)))).to(torch.float16).numpy()
        recordings.append((Clip(mel, "", None, name), table[name]["slots"]))
    return recordings


def without_silence(mel: np.ndarray, margin_frames: int = 20) -> np.ndarray:
    """[frames, 80] log10 power from just before the first to just after the last frame that stands out of the noise."""
    loudness = np.log10(np.power(10.0, mel.astype(np.float32)).mean(axis=1))
    low, high = np.percentile(loudness, (10, 95))
    loud = np.flatnonzero(loudness > low + 0.4 * (high - low))
    return mel[max(0, loud[0] - margin_frames) : loud[-1] + margin_frames]


def held_out(name: str) -> bool:
    """The fifth of the recordings that is never trained on: by the first hexadecimal digits of the clip's name."""
    return int(name[:4], 16) % 5 == 0


class Augmenter:
    """Turns clips into padded training batches.

    noise: a bank of log10-power features to take backgrounds from; pauses: the share of clips in which the speaker
    stops for 0.3 to 1.5 s.
    """

    def __init__(self, noise: list[np.ndarray], rng: random.Random, pauses: float = 0.0) -> None:
        self.noise = noise
        self.rng = rng
        self.pauses = pauses

    def _warp(self, x: Tensor, versions: int = 1) -> Tensor:
        """Tempo 0.8..1.25 and a vocal-tract warp of +-15 % on [frames, versions * 80], the same for each version."""
        frames = max(8, round(x.shape[0] * self.rng.uniform(0.8, 1.25)))
        bins = round(MEL_BINS * self.rng.uniform(0.87, 1.15))
        x = x.unflatten(1, (versions, MEL_BINS)).transpose(0, 1)[None]
        x = F.interpolate(x, size=(frames, bins), mode="bilinear", align_corners=True)[0]
        if bins >= MEL_BINS:
            x = x[:, :, :MEL_BINS]
        else:
            x = torch.cat((x, x[:, :, -1:].expand(-1, -1, MEL_BINS - bins)), dim=2)
        return x.transpose(0, 1).flatten(1)

    def _pause(self, x: Tensor) -> Tensor:
        """[frames, 80] held for a while at one of the quietest moments of its inner part."""
        inner = x[len(x) // 5 : -len(x) // 5].mean(dim=1)
        quietest = inner.topk(max(1, len(inner) // 20), largest=False).indices
        place = len(x) // 5 + int(quietest[self.rng.randrange(len(quietest))])
        held = x[place].expand(self.rng.randrange(30, 150), -1) + 0.2 * torch.randn(1)
        return torch.cat((x[:place], held, x[place:]))

    def _reverberate(self, power: Tensor) -> Tensor:
        """Adds a decaying tail: RT60 0.1..0.7 s, direct-to-reverberant ratio 0..12 dB."""
        decay = 10 ** (-6 * 0.01 / self.rng.uniform(0.1, 0.7))
        taps = decay ** torch.arange(40, dtype=torch.float32)
        taps = taps / taps.sum() * 10 ** (-self.rng.uniform(0, 12) / 10)
        tail = F.conv1d(F.pad(power.T[:, None], (40, 0)), taps.flip(0)[None, None])[:, 0, : power.shape[0]].T
        return power + tail

    def _equaliser(self) -> Tensor:
        """A smooth gain in log10 power, float32 [80]."""
        knots = torch.tensor([self.rng.gauss(0, 0.35) for _ in range(8)])
        return F.interpolate(knots[None, None], size=MEL_BINS, mode="linear", align_corners=True)[0, 0]

    def _background(self, power: Tensor) -> Tensor:
        noise = torch.from_numpy(self.rng.choice(self.noise).astype(np.float32))
        noise = torch.pow(10.0, noise)
        start = self.rng.randrange(noise.shape[0])
        noise = noise.roll(start, 0)
        noise = noise.repeat(-(-power.shape[0] // noise.shape[0]), 1)[: power.shape[0]]
        snr_db = self.rng.uniform(3, 35)
        return power + noise * (power.mean() / noise.mean() * 10 ** (-snr_db / 10))

    def one(self, mel: np.ndarray, mild: bool) -> Tensor:
        """Augmented encoder input float32 [frames', 80]."""
        x = self._warp(torch.from_numpy(mel.astype(np.float32)))
        if self.rng.random() < self.pauses:
            x = self._pause(x)
        pad = torch.full((self.rng.randrange(5, 60), MEL_BINS), -9.0)
        x = torch.cat((pad, x, torch.full((self.rng.randrange(5, 80), MEL_BINS), -9.0)))
        return self.colour(x, mild)

    def colour(self, x: Tensor, mild: bool) -> Tensor:
        """Encoder input of log10 power [frames, 80] in another room, noise, microphone and level; no frame moves."""
        x = x + self._equaliser()
        if not mild:
            power = torch.pow(10.0, x)
            if self.rng.random() < 0.6:
                power = self._reverberate(power)
            if self.rng.random() < 0.8:
                power = self._background(power)
            x = power.clamp_min(1e-10).log10()
        level = torch.pow(10.0, x).mean().log10()
        x = x - level + self.rng.uniform(-3.2, -0.2)
        noise_floor = self.rng.uniform(-9.5, -5)
        return scale(torch.logaddexp(x * 2.302585, torch.randn_like(x) * 1.0 + noise_floor * 2.302585) / 2.302585)

    def mask(self, batch: Tensor, lengths: Tensor) -> Tensor:
        """SpecAugment in place on [rows, frames, 80]: two bands of up to 12 bins, time masks of up to 0.25 s."""
        fill = -0.5
        for row in range(batch.shape[0]):
            for _ in range(2):
                width = self.rng.randrange(0, 13)
                start = self.rng.randrange(MEL_BINS - width)
                batch[row, :, start : start + width] = fill
            for _ in range(int(lengths[row]) // 200 + 1):
                width = self.rng.randrange(0, 26)
                start = self.rng.randrange(max(1, int(lengths[row]) - width))
                batch[row, start : start + width] = fill
        return batch

    def batch(self, mels: list[np.ndarray], mild_share: float = 0.4) -> tuple[Tensor, Tensor]:
        """Padded float32 [rows, frames, 80] and lengths [rows] in mel frames; a `mild_share` of 1 also leaves out the
        masks."""
        mild = self.rng.random() < mild_share
        masked = self.rng.random() < 0.8 and mild_share < 1.0
        rows = [self.one(mel, mild) for mel in mels]
        lengths = torch.tensor([row.shape[0] for row in rows])
        padded = torch.full((len(rows), int(lengths.max()), MEL_BINS), -1.0)
        for i, row in enumerate(rows):
            padded[i, : row.shape[0]] = row
        return (self.mask(padded, lengths) if masked else padded), lengths


def noise_bank(clips: list[Clip], rng: random.Random, count: int = 60) -> list[np.ndarray]:
    """Backgrounds of 10 s: coloured noise with slow swells, and babble of several voices.

    Each is float16 log10 power [1000, 80].
    """
    bank = []
    bins = np.arange(MEL_BINS, dtype=np.float32) / MEL_BINS
    for i in range(count):
        if i % 2:
            total = np.zeros((1000, MEL_BINS), np.float32)
            for _ in range(rng.randrange(3, 9)):
                voice = 10 ** np.concatenate([c.mel.astype(np.float32) for c in rng.sample(clips, 5)])
                total += np.resize(voice, (1000, MEL_BINS)) * 10 ** rng.uniform(-1, 0)
        else:
            tilt = rng.uniform(-3.5, 0.5) * bins + rng.uniform(-1, 1) * np.sin(bins * rng.uniform(1, 9))
            swell = np.repeat(np.random.default_rng(i).normal(0, rng.uniform(0, 0.4), 100), 10)[:, None]
            chi = np.random.default_rng(i + 1000).gamma(2.0, 0.5, (1000, MEL_BINS))
            total = (10 ** (tilt + swell) * chi).astype(np.float32)
        bank.append(np.log10(np.maximum(total, 1e-10)).astype(np.float16))
    return bank
