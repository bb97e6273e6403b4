"""Synthesised customers: espeak-ng, flite, festival and hibari voices with varied rate and pitch, as one int16 store.

A store is a folder with `audio.i16` (mono 16 kHz samples, clips end to end) and `index.jsonl` (one object per clip:
first sample, sample count, text, seed of the pool turn or null, voice). `agogic train speech_data --config ...` makes
it.
"""

from __future__ import annotations

import functools
import io
import json
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import soundfile
import soxr
from rich.progress import Progress

from training.conversations import WIDE_SEED, numbered_turn
from training.sentences import collect_sentences
from training.wide_world import FOREIGN_SENTENCES
from training.world import pool_turn, sample_turn

SAMPLE_RATE = 16_000

_ESPEAK_ACCENTS = (
    "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc",
)  # fmt: skip
ESPEAK_VARIANTS = tuple(f"f{i}" for i in range(1, 6)) + tuple(f"m{i}" for i in range(1, 9)) + (
    "", "anika", "Annie", "Andy", "AnxiousAndy", "belinda", "ed", "edward", "fast", "grandma", "Jacky", "john",
    "klatt2", "klatt3", "Lee", "linda", "max", "Michael", "Mike", "Mr", "norbert", "pablo", "quincy", "Reed", "rob",
    "steph", "steph2", "Storm", "travis", "victor", "zac", "Half-LifeAnn", "adam", "benjamin", "caleb", "david",
    "Diogo", "Gene", "kaukovalta", "marcelo", "michel", "RicishayMax", "robert", "sandro", "shelby",
)  # fmt: skip
_FLITE_VOICES = ("rms", "slt", "awb", "kal16")
_FESTIVAL_VOICES = ("cmu_us_slt_arctic_hts", "ked_diphone", "kal_diphone")


class SpeechDataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many clips of each synthesiser; `general_share` of them are open-vocabulary sentences, `pool_turns` numbers
    the pool. `wide_share` of the others are turns of the wide world, of which there are `wide_turns`."""

    output: str
    espeak_clips: int = 6800
    flite_clips: int = 6000
    festival_clips: int = 1500
    hibari_clips: int = 0
    general_share: float = 0.25
    pool_turns: int = 6000
    wide_share: float = 0.0
    wide_turns: int = 3000
    seed: int = 1
    workers: int = 2


@dataclass(frozen=True)
class Line:
    """A text to be spoken and the numbered turn it stands in, if any; language: espeak-ng's name of it, "" is
    English."""

    text: str
    seed: int | None
    language: str = ""


class SynthesisError(Exception):
    """A synthesiser is missing or failed; the message names the package to install."""


def lines(config: SpeechDataConfig, count: int, rng: random.Random) -> list[Line]:
    """`count` texts: pool turns (so that the barista's recorded reply exists), further turns, and general English."""
    sentences = collect_sentences()
    drawn = []
    for _ in range(count):
        draw = rng.random()
        if draw < config.general_share:
            drawn.append(Line(rng.choice(sentences), None))
        elif rng.random() < config.wide_share:
            drawn.append(_wide_line(WIDE_SEED + rng.randrange(config.wide_turns)))
        elif draw < config.general_share + 0.45:
            seed = rng.randrange(config.pool_turns)
            drawn.append(Line(pool_turn(seed).user, seed))
        else:
            drawn.append(Line(sample_turn(rng).user, None))
    return drawn


def _wide_line(seed: int) -> Line:
    said = numbered_turn(seed).user
    languages = [language for language, sentences in FOREIGN_SENTENCES.items() if said in sentences]
    return Line(said, seed, languages[0] if languages else "")


def _run(command: list[str], package: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        raise SynthesisError(f"{command[0]} is not installed; install the Debian package {package}") from error
    except subprocess.CalledProcessError as error:
        raise SynthesisError(f"{command[0]} failed: {error.stderr.decode(errors='replace').strip()[:200]}") from error


def _to_int16(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    peak = float(np.abs(samples).max(initial=1e-4))
    return np.round(samples * min(1.0, 0.6 / peak) * 32767).astype(np.int16)


def espeak(
    text: str, rng: random.Random, language: str = "", variants: tuple[str, ...] = ESPEAK_VARIANTS
) -> tuple[np.ndarray, str]:
    """int16 [N] at 16 kHz, and the voice's name, one of the `variants` with an accent drawn at random."""
    variant = rng.choice(variants)
    voice = (language or rng.choice(_ESPEAK_ACCENTS)) + (f"+{variant}" if variant else "")
    speed, pitch = rng.randint(115, 235), rng.randint(15, 85)
    wave = _run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text], "espeak-ng")
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    return _to_int16(samples, rate), f"espeak {voice}"


def flite(text: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """int16 [N] at 16 kHz, and the voice's name."""
    voice = rng.choice(_FLITE_VOICES)
    stretch = rng.uniform(0.75, 1.25)
    pitch = rng.uniform(75, 150) if voice != "slt" else rng.uniform(130, 230)
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        settings = ["--setf", f"duration_stretch={stretch:.3f}", "--setf", f"int_f0_target_mean={pitch:.1f}"]
        _run(["flite", "-voice", voice, *settings, "-t", text, file.name], "flite")
        samples, rate = soundfile.read(file.name, dtype="float32")
    return _to_int16(samples, rate), f"flite {voice}"


def festival(texts: list[str], rng: random.Random) -> list[tuple[np.ndarray, str]]:
    """The same for a batch with one voice: starting festival takes longer than speaking."""
    voice = rng.choice(_FESTIVAL_VOICES)
    stretch = rng.uniform(0.85, 1.2)
    with tempfile.TemporaryDirectory() as folder:
        script = [f"(voice_{voice})", f"(Parameter.set 'Duration_Stretch {stretch:.3f})"]
        for i, text in enumerate(texts):
            script.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{folder}/{i}.wav" \'riff)')
        path = Path(folder, "batch.scm")
        path.write_text("\n".join(script))
        _run(["festival", "-b", str(path)], "festival festvox-us-slt-hts festvox-kallpc16k festvox-kdlpc16k")
        clips = []
        for i in range(len(texts)):
            samples, rate = soundfile.read(f"{folder}/{i}.wav", dtype="float32")
            clips.append((_to_int16(samples, rate), f"festival {voice}"))
    return clips


@functools.cache
def _hibari() -> Callable[..., np.ndarray]:
    try:
        from hibari import Hibari
    except ImportError as error:
        raise SynthesisError('hibari-tts is not installed; run pip install -e ".[voices]"') from error
    speaker: Callable[..., np.ndarray] = Hibari()
    return speaker


def hibari(text: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """int16 [N] at 16 kHz, and the voice's name: read faster or slower, and made larger or smaller by resampling."""
    size, tempo = rng.uniform(0.78, 1.3), rng.uniform(0.8, 1.35)
    samples = _hibari()(text, speed=tempo * size, seed=rng.randrange(1 << 30))
    return _to_int16(np.asarray(samples, np.float32), round(24_000 / size)), f"hibari x{size:.2f}"


def _jobs(config: SpeechDataConfig) -> Iterator[tuple[str, list[Line], int]]:
    rng = random.Random(config.seed)
    for kind, count, batch in (
        ("espeak", config.espeak_clips, 50),
        ("flite", config.flite_clips, 20),
        ("festival", config.festival_clips, 50),
        ("hibari", config.hibari_clips, 20),
    ):
        drawn = lines(config, count, rng)
        if kind != "espeak":  # the others speak English alone
            drawn = [line for line in drawn if not line.language]
            count = len(drawn)
        for start in range(0, count, batch):
            yield kind, drawn[start : start + batch], rng.randrange(1 << 30)


def _speak(kind: str, batch: list[Line], seed: int) -> list[tuple[np.ndarray, str]]:
    rng = random.Random(seed)
    if kind == "festival":
        return festival([line.text for line in batch], rng)
    if kind == "espeak":
        return [espeak(line.text, rng, line.language) for line in batch]
    speak = hibari if kind == "hibari" else flite
    return [speak(line.text, rng) for line in batch]


def synthesise(config: SpeechDataConfig) -> int:
    """Writes the store, a batch per task; returns the number of samples. A finished store is left alone."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    index_path = folder / "index.jsonl"
    if index_path.exists():
        return (folder / "audio.i16").stat().st_size // 2
    jobs = list(_jobs(config))
    random.Random(config.seed).shuffle(jobs)
    offset = 0
    partial = folder / "index.partial"
    with (
        ThreadPoolExecutor(config.workers) as pool,
        open(folder / "audio.i16", "wb") as audio,
        open(partial, "w") as index,
        Progress() as progress,
    ):
        bar = progress.add_task("speaking", total=len(jobs))
        for (_, batch, _), clips in zip(jobs, pool.map(lambda job: _speak(*job), jobs), strict=True):
            for line, (samples, voice) in zip(batch, clips, strict=True):
                audio.write(samples.tobytes())
                words = "" if line.language else line.text  # nobody is to write other languages down
                entry = {"start": offset, "samples": len(samples), "text": words, "seed": line.seed, "voice": voice}
                index.write(json.dumps(entry) + "\n")
                offset += len(samples)
            progress.advance(bar)
    partial.rename(index_path)
    return offset


def main(config_path: Path) -> None:
    """`agogic train speech_data --config FILE`."""
    config = msgspec.toml.decode(config_path.read_bytes(), type=SpeechDataConfig)
    samples = synthesise(config)
    print(f"{samples / SAMPLE_RATE / 3600:.2f} h of speech in {config.output}")
