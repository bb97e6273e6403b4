"""The speaking voice's recordings: flite `rms` reads replies of the coffee world and open English.

One constant tempo and default settings, so that text determines sound. What is stored, in one directory:

- `audio.i16`: all clips end to end, int16, 16 kHz mono;
- `index.jsonl`: one `VoiceClip` per line.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import soundfile

from training.conversations import WIDE_SEED, numbered_turn
from training.open_text import HARVARD_SENTENCES, open_sentences, template_sentence
from training.toml_config import load_config
from training.world import HELD_OUT_SEED, reply_pool

SAMPLE_RATE_HZ = 16_000
VOICE = "rms"
LEADING_SAMPLES = 640
TRAILING_SAMPLES = 1600


class VoiceDataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`wide_turns`: the replies of so many numbered turns of the wide world are read as well."""

    directory: str
    replies: int
    open_sentences: int
    held_out_replies: int
    held_out_open: int
    seed: int = 7
    processes: int = 2
    wide_turns: int = 0


class VoiceClip(msgspec.Struct, frozen=True):
    """One utterance. `words` are (word as written, start, end) and `phones` (name, end), in samples of the clip."""

    text: str
    part: str
    start_sample: int
    samples: int
    words: list[tuple[str, int, int]]
    phones: list[tuple[str, int]]


class VoiceSynthesisError(RuntimeError):
    """flite is missing or refused a sentence."""


def _flite(*arguments: str) -> str:
    try:
        done = subprocess.run(["flite", "-voice", VOICE, *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise VoiceSynthesisError("flite is not installed: `apt-get install flite`") from error
    except subprocess.CalledProcessError as error:
        raise VoiceSynthesisError(f"flite failed: {error.stderr.strip()}") from error
    return done.stdout


def pronounce(words: Sequence[str]) -> list[list[str]]:
    """Phones of each word read by itself; words are letters and apostrophes."""
    segments = _flite("-ps", "-t", ", ".join(words), "none").split()
    runs: list[list[str]] = [[]]
    for phone in segments:
        if phone == "pau":
            runs.append([])
        else:
            runs[-1].append(phone)
    spoken = [run for run in runs if run]
    if len(spoken) == len(words):
        return spoken
    if len(words) == 1:
        return [[phone for phone in segments if phone != "pau"]]
    middle = len(words) // 2
    return pronounce(words[:middle]) + pronounce(words[middle:])


def split_phones(phones: Sequence[str], words: Sequence[Sequence[str]]) -> list[int]:
    """Where each word ends in `phones` (no pauses), by the cheapest edit path against the words' own phones.

    The last end is always len(phones).
    """
    wanted = [(phone, index) for index, word in enumerate(words) for phone in word]
    rows, columns = len(phones), len(wanted)
    cost = np.zeros((rows + 1, columns + 1))
    cost[:, 0] = np.arange(rows + 1)
    cost[0, :] = np.arange(columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            swap = cost[i - 1, j - 1] + 0.9 * (phones[i - 1] != wanted[j - 1][0])
            cost[i, j] = min(swap, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    owner = [0] * rows
    i, j = rows, columns
    while i > 0:
        if j > 0 and cost[i, j] == cost[i - 1, j - 1] + 0.9 * (phones[i - 1] != wanted[j - 1][0]):
            owner[i - 1] = wanted[j - 1][1]
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j] + 1:
            owner[i - 1] = wanted[max(j - 1, 0)][1]
            i -= 1
        else:
            j -= 1
    ends = [0] * len(words)
    for position, word in enumerate(owner):
        ends[word] = position + 1
    for word in range(1, len(words)):
        ends[word] = max(ends[word], ends[word - 1])
    ends[-1] = rows
    return ends


def synthesise(text: str, lexicon: dict[str, list[str]]) -> tuple[np.ndarray, VoiceClip]:
    """Audio int16 [samples] and its clip (start_sample and part still empty)."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "clip.wav"
        timing = _flite("-psdur", "-t", text + " ", str(wav))
        audio, rate_hz = soundfile.read(wav, dtype="int16")
    if rate_hz != SAMPLE_RATE_HZ:
        raise VoiceSynthesisError(f"flite's voice {VOICE} speaks at {rate_hz} Hz, {SAMPLE_RATE_HZ} was expected")
    phones = [(name, round(float(end) * SAMPLE_RATE_HZ)) for name, end in re.findall(r"(\S+):(\S+)", timing)]
    audio, phones = _trim(audio, phones)
    spans = [(name, start, end) for (name, end), start in zip(phones, [0] + [end for _, end in phones], strict=False)]
    voiced = [span for span in spans if span[0] != "pau"]
    written = text.split()
    ends = split_phones([name for name, _, _ in voiced], [lexicon[bare(word)] for word in written])
    words: list[tuple[str, int, int]] = []
    for word, first, last in zip(written, [0, *ends[:-1]], ends, strict=True):
        start = voiced[first][1] if first < last else voiced[max(last - 1, 0)][2]
        words.append((word, start, voiced[last - 1][2] if first < last else start))
    return audio, VoiceClip(text, "", 0, len(audio), words, phones)


def _trim(audio: np.ndarray, phones: list[tuple[str, int]]) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Cut the silences at both ends short: a listener waits for the first one."""
    begin = max(phones[0][1] - LEADING_SAMPLES, 0) if phones[0][0] == "pau" else 0
    end = min(phones[-2][1] + TRAILING_SAMPLES, len(audio)) if phones[-1][0] == "pau" else len(audio)
    return audio[begin:end], [(name, min(at, end) - begin) for name, at in phones]


def bare(word: str) -> str:
    return word.strip(",.?!").lower()


def _synthesise_many(job: tuple[list[str], dict[str, list[str]]]) -> list[tuple[np.ndarray, VoiceClip]]:
    return [synthesise(text, job[1]) for text in job[0]]


def lexicon_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Phones of every word that occurs."""
    words = sorted({bare(word) for text in texts for word in text.split()})
    lexicon: dict[str, list[str]] = {}
    for first in range(0, len(words), 40):
        batch = words[first : first + 40]
        lexicon.update(zip(batch, pronounce(batch), strict=True))
    return lexicon


def held_out_open(count: int, seed: int) -> list[str]:
    """Sentences of open English that are judged and never trained on."""
    import random

    rng = random.Random(f"held out {seed}")
    sentences = dict.fromkeys(HARVARD_SENTENCES[:count])
    while len(sentences) < count:
        sentences[template_sentence(rng)] = None
    return list(sentences)


def voice_texts(config: VoiceDataConfig) -> list[tuple[str, str]]:
    """(part, text) of every clip; a held-out text never occurs in a training part."""
    judged = reply_pool(config.held_out_replies, HELD_OUT_SEED)
    judged_open = held_out_open(config.held_out_open, config.seed)
    forbidden = set(judged) | set(judged_open)
    # Every customer's turn needs its reply's codes, so all replies of the first seeds are read, in their order.
    replies = [text for text in reply_pool(config.replies) if text not in forbidden]
    opened = [text for text in open_sentences(config.open_sentences, config.seed) if text not in forbidden]
    wide = dict.fromkeys(numbered_turn(WIDE_SEED + number).reply for number in range(config.wide_turns))
    replies += [text for text in wide if text and text not in forbidden]
    parts = (("held_out_reply", judged), ("held_out_open", judged_open), ("open", opened), ("reply", replies))
    return [(part, text) for part, texts in parts for text in texts]


def main(config_path: Path) -> None:
    config = load_config(config_path, VoiceDataConfig)
    directory = Path(config.directory)
    directory.mkdir(parents=True, exist_ok=True)
    texts = voice_texts(config)
    lexicon = lexicon_of([text for _, text in texts])
    print(f"{len(texts)} texts, {len(lexicon)} words", flush=True)
    batches = [texts[first : first + 50] for first in range(0, len(texts), 50)]
    jobs = [
        ([text for _, text in batch], {bare(w): lexicon[bare(w)] for _, text in batch for w in text.split()})
        for batch in batches
    ]
    written = 0
    with (
        ProcessPoolExecutor(config.processes) as pool,
        (directory / "audio.i16").open("wb") as sound,
        (directory / "index.jsonl").open("wb") as index,
    ):
        for batch, clips in zip(batches, pool.map(_synthesise_many, jobs), strict=True):
            for (part, _), (audio, clip) in zip(batch, clips, strict=True):
                sound.write(audio.tobytes())
                index.write(msgspec.json.encode(msgspec.structs.replace(clip, part=part, start_sample=written)) + b"\n")
                written += len(audio)
            print(f"{written / SAMPLE_RATE_HZ / 3600:.2f} h", flush=True)


def load_clips(directory: Path) -> list[VoiceClip]:
    with (directory / "index.jsonl").open("rb") as index:
        return [msgspec.json.decode(line, type=VoiceClip) for line in index]


def load_audio(directory: Path) -> np.memmap:
    """All clips end to end, int16 [samples]; `VoiceClip.start_sample` and `.samples` cut one out."""
    return np.memmap(directory / "audio.i16", dtype=np.int16, mode="r")
