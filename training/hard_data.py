"""Hard listening made ahead of training: backgrounds, and recordings that went through telephones.

A folder with `backgrounds.npy` (float16 log10 mel power [number, frames, 80]) and a store like `speech_data`'s, whose
clips are copies: of recorded orders, named after their recording, and of synthesised customers. Held-out recordings
are in none of it. `agogic train hard_data --config ...` makes it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.progress import track

from training.features import SAMPLE_RATE, Clip, held_out, load_store, log_power, read_mono, recording_path
from training.lines import telephone
from training.noises import KINDS, cafe, crowd, noises
from training.toml_config import load_config


class HardDataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`copies` of each recorded order and `synthetic_copies` of the customers in all; `noisy` of the copies have a
    background in front of the telephone."""

    speech: str
    clips: str
    labels: str
    output: str
    copies: int = 5
    synthetic_copies: int = 2000
    noisy: float = 0.4
    backgrounds: int = 120
    background_seconds: float = 20.0
    seed: int = 31


@dataclass(frozen=True)
class _Source:
    samples: np.ndarray
    text: str
    seed: int | None
    name: str


def _store_samples(folder: Path, number: int, rng: random.Random) -> Iterator[_Source]:
    entries = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    audio = np.memmap(folder / "audio.i16", dtype=np.int16, mode="r")
    for entry in rng.sample(entries, min(number, len(entries))):
        samples = audio[entry["start"] : entry["start"] + entry["samples"]].astype(np.float32) / 32768
        yield _Source(samples, entry["text"], entry["seed"], entry["voice"])


def _recordings(clips: Path, labels: Path) -> list[_Source]:
    found = []
    for name in sorted(json.loads(labels.read_text())):
        if not held_out(name):
            found.append(_Source(_without_long_silence(read_mono(recording_path(clips, name))), "", None, name))
    return found


def _without_long_silence(samples: np.ndarray) -> np.ndarray:
    """From 0.3 s before the first to 0.3 s behind the last 20 ms that stand out."""
    loudness = np.square(samples[: len(samples) // 320 * 320].reshape(-1, 320)).mean(1)
    level = np.log10(loudness + 1e-10)
    low, high = np.percentile(level, (10, 95))
    loud = np.flatnonzero(level > low + 0.4 * (high - low)) * 320
    return samples[max(0, loud[0] - 4800) : loud[-1] + 4800]


def make_backgrounds(config: HardDataConfig, path: Path, voices: list[np.ndarray]) -> list[np.ndarray]:
    """Writes the backgrounds' features; returns the samples."""
    sounds = noises(voices, config.backgrounds, config.background_seconds, config.seed)
    mels = [log_power(torch.from_numpy(sound)).to(torch.float16).numpy() for sound in sounds]
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.stack(mels))
    partial.rename(path)
    return sounds


def _copy(source: _Source, sounds: list[np.ndarray], noisy: float, rng: random.Random) -> tuple[np.ndarray, str]:
    samples = source.samples
    if rng.random() < noisy:
        noise = rng.choice(sounds)
        start = rng.randrange(len(noise))
        noise = np.resize(np.roll(noise, -start), len(samples))
        rms = max(float(np.sqrt(np.mean(samples**2))), 1e-5)
        samples = samples + noise * rms * 10 ** (-rng.uniform(0, 25) / 20)
    return telephone(samples.astype(np.float32), rng)


def make(config: HardDataConfig) -> float:
    """Writes the folder; returns its hours of copies. A finished folder is left alone."""
    folder, rng = Path(config.output), random.Random(config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    index_path = folder / "index.jsonl"
    if index_path.exists():
        return float((folder / "audio.i16").stat().st_size) / 2 / SAMPLE_RATE / 3600
    speech = Path(config.speech)
    voices = [source.samples for source in _store_samples(speech, 300, rng)]
    sounds = make_backgrounds(config, folder / "backgrounds.npy", voices)
    sources = _recordings(Path(config.clips), Path(config.labels)) * config.copies
    sources += _store_samples(speech, config.synthetic_copies, rng)
    rng.shuffle(sources)
    offset, partial = 0, folder / "index.partial"
    with open(folder / "audio.i16", "wb") as audio, open(partial, "w") as index:
        for source in track(sources, "through telephones"):
            sound, _ = _copy(source, sounds, config.noisy, rng)
            audio.write(np.round(sound.clip(-1, 1) * 32767).astype(np.int16).tobytes())
            entry = {"start": offset, "samples": len(sound), "text": source.text, "seed": source.seed}
            index.write(json.dumps({**entry, "voice": source.name}) + "\n")
            offset += len(sound)
    partial.rename(index_path)
    return offset / SAMPLE_RATE / 3600


def load_backgrounds(folder: Path) -> list[np.ndarray]:
    """float16 log10 mel power [frames, 80] of each background."""
    return list(np.load(folder / "backgrounds.npy", mmap_mode="r"))


def places_without_speakers(folder: Path) -> list[np.ndarray]:
    """Those of the backgrounds in which nobody speaks to be heard."""
    speakers = {index for index, kind in enumerate(KINDS) if kind in (crowd, cafe)}
    return [mel for index, mel in enumerate(load_backgrounds(folder)) if index % len(KINDS) not in speakers]


def load_copies(
    folder: Path, clips: Path, recordings: list[tuple[Clip, dict[str, str]]]
) -> tuple[list[Clip], list[tuple[Clip, dict[str, str]]]]:
    """Copies of synthesised customers, and of the `recordings` in the folder `clips` with words, slots and the mel that
    they had before."""
    originals = {clip.name: (clip, slots) for clip, slots in recordings}
    clean: dict[str, np.ndarray] = {}
    synthetic, recorded = [], []
    for copy in load_store(folder):
        if copy.name not in originals:
            synthetic.append(copy)
            continue
        original, slots = originals[copy.name]
        if copy.name not in clean:
            samples = _without_long_silence(read_mono(recording_path(clips, copy.name)))
            clean[copy.name] = log_power(torch.from_numpy(samples)).to(torch.float16).numpy()
        before = clean[copy.name]
        frames = min(len(before), len(copy.mel))
        recorded.append((replace(copy, mel=copy.mel[:frames], text=original.text, clean=before[:frames]), slots))
    return synthetic, recorded


def main(config_path: Path) -> None:
    """`agogic train hard_data --config FILE`."""
    config = load_config(config_path, HardDataConfig)
    print(f"{make(config):.2f} h of copies and {config.backgrounds} backgrounds in {config.output}")
