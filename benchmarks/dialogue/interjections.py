"""What `agogic eval bargein` mixes into answers: makes the recordings in `tests/speech/interjections`.

    python -m benchmarks.dialogue.interjections KOKORO.onnx VOICES OUT [VOICE ...]

With names of voices every text by each of them instead, to be trained on or looked at. Spoken by 22 English voices of
Kokoro-82M (Apache License 2.0), none of those that something here was trained on; phonemes by hibari-tts. Coughs,
laughs and clicks are made by other code, and in another way, than those of the training: noise through a filter that
moves, and a voice of harmonics.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy import signal

SAMPLE_RATE = 16_000
BACKCHANNELS = (
    "Mm-hmm.", "Mhm.", "Uh-huh.", "Hmm.", "Yeah.", "Yep.", "Okay.", "Right.", "Sure.", "I see.", "Oh.", "Ah.",
    "Alright.", "Got it.", "Yes.", "Cool.", "Yeah, okay.", "Oh, okay.", "Yeah, yeah.", "Great.",
)  # fmt: skip
INTERRUPTIONS = (
    "No.", "Stop.", "Wait.", "No, wait.", "Hold on.", "Excuse me.", "Actually, make it a large.", "Sorry, no milk.",
    "Cancel that, please.", "What?", "How much is that?", "One more thing.", "I said decaf.", "Never mind.",
    "That's wrong.", "Two shots, please.", "Can I change that?", "Hang on a second.", "No, no, no.", "Wait, wait.",
    "Could you say that again?", "I didn't order that.", "Make that a small one.", "And a cappuccino.", "Stop, please.",
)  # fmt: skip
SPOKEN_BACKCHANNELS, COUGHS, LAUGHS, CLICKS, SPOKEN_INTERRUPTIONS = 68, 12, 8, 12, 50
TRAINED_ON = ("af_alloy", "am_eric", "bm_fable")
"""Voices that the backchannel head is trained on."""
LOOKED_AT = ("af_nova", "am_santa")
"""Those by which thresholds are found. Neither are of the test."""
_PEAK = 0.35

Sound = np.ndarray
"""float64 [N] at 16 kHz"""


class Kokoro:
    """The network and its English voices: those of these names, or all but those and `hibari`'s heart (trained on)."""

    def __init__(self, model: Path, voices: Path, names: Sequence[str] = ()) -> None:
        import onnxruntime
        from hibari import Hibari
        from hibari.g2p import G2P

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        speaker = Hibari()
        self._vocabulary = speaker.vocab
        self._spell = {"a": speaker.g2p, "b": G2P(british=True)}
        files, known = sorted(voices.glob("[ab][fm]_*.bin")), (*TRAINED_ON, *LOOKED_AT, "af_heart")
        chosen = [path for path in files if (path.stem in names if names else path.stem not in known)]
        self.voices = {path.stem: np.fromfile(path, "f4").reshape(-1, 1, 256) for path in chosen}

    def speak(self, text: str, voice: str, speed: float) -> Sound:
        phonemes = self._spell[voice[0]](text)
        ids = [self._vocabulary[symbol] for symbol in phonemes if symbol in self._vocabulary]
        style = self.voices[voice][len(ids)]
        tokens = np.array([[0, *ids, 0]], np.int64)
        given = {"tokens": tokens, "style": style, "speed": np.array([speed], np.float32)}
        return _trimmed(soxr.resample(self._session.run(None, given)[0].reshape(-1), 24_000, SAMPLE_RATE))


def _trimmed(sound: Sound) -> Sound:
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + SAMPLE_RATE // 50]


def cough(draw: np.random.Generator) -> Sound:
    """One to three bursts: closed, a sharp opening, a second sound of the voice."""
    parts = []
    for _ in range(draw.integers(1, 4)):
        count = int(draw.uniform(0.2, 0.45) * SAMPLE_RATE)
        t = np.arange(count) / SAMPLE_RATE
        low, high = draw.uniform(250, 500), draw.uniform(2500, 5000)
        noise = signal.lfilter(*signal.butter(2, (low, high), "band", fs=SAMPLE_RATE), draw.standard_normal(count))
        second = np.exp(-(((t - draw.uniform(0.15, 0.25)) / 0.04) ** 2)) * draw.uniform(0, 0.5)
        hum = signal.sawtooth(2 * np.pi * draw.uniform(80, 220) * t) * second
        parts += [noise * np.exp(-t / draw.uniform(0.05, 0.1)) * np.minimum(1, t / 0.003) + hum]
        parts += [np.zeros(int(draw.uniform(0.08, 0.25) * SAMPLE_RATE))]
    return np.concatenate(parts)


def laugh(draw: np.random.Generator) -> Sound:
    """Three to six times "ha": breath, then harmonics under formants of an open vowel, lower each time."""
    pitch, parts = draw.uniform(120, 330), []
    formants = np.array([[730.0, 90.0], [1250.0, 110.0], [2600.0, 160.0]]) * draw.uniform(0.9, 1.15)
    for number in range(draw.integers(3, 7)):
        count = int(draw.uniform(0.09, 0.15) * SAMPLE_RATE)
        t, voice = np.arange(count) / SAMPLE_RATE, np.zeros(count)
        base = pitch * 0.95**number
        for harmonic in range(1, int(4000 / base)):
            height = np.sum(1 / (1 + ((harmonic * base - formants[:, 0]) / formants[:, 1]) ** 2))
            voice += height * np.sin(2 * np.pi * harmonic * base * t * (1 - 0.1 * t / t[-1]))
        breath = draw.standard_normal(int(0.07 * SAMPLE_RATE)) * 0.4
        parts += [breath * np.hanning(len(breath)), voice * signal.windows.tukey(count, 0.6)]
    return np.concatenate(parts)


def clicks(draw: np.random.Generator) -> Sound:
    """A key, a cup, a mouse: one to four strokes that ring."""
    parts = []
    for _ in range(draw.integers(1, 5)):
        t = np.arange(int(draw.uniform(0.05, 0.3) * SAMPLE_RATE)) / SAMPLE_RATE
        ring = np.sin(2 * np.pi * draw.uniform(400, 5000) * t) + 0.5 * draw.standard_normal(len(t))
        parts.append(ring * np.exp(-t / draw.uniform(0.002, 0.03)))
    return np.concatenate(parts)


def main(model: Path, voices: Path, folder: Path, *chosen: str) -> None:
    """Writes the recordings and their `index.json`: for each file its kind, text and voice."""
    speaker, seed = Kokoro(model, voices, chosen), 2 if chosen else 1
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made: list[tuple[str, str, str, Sound]] = []
    names = sorted(speaker.voices)
    for name in chosen:
        for kind, texts in (("backchannel", BACKCHANNELS), ("interruption", INTERRUPTIONS)):
            made += [(kind, text, name, speaker.speak(text, name, rng.uniform(0.9, 1.3))) for text in texts]
    for kind, texts, count in (
        ("backchannel", BACKCHANNELS, SPOKEN_BACKCHANNELS),
        ("interruption", INTERRUPTIONS, SPOKEN_INTERRUPTIONS),
    ):
        for number in range(0 if chosen else count):
            text, voice = texts[number % len(texts)], names[number % len(names)]
            made.append((kind, text, voice, speaker.speak(text, voice, rng.uniform(0.9, 1.3))))
            print(kind, number, flush=True)
    for name, maker, count in (("cough", cough, COUGHS), ("laugh", laugh, LAUGHS), ("click", clicks, CLICKS)):
        made += [("backchannel", name, "", maker(draw)) for _ in range(count)]
    index = []
    for number, (kind, text, voice, sound) in enumerate(made):
        name = f"{number:03d}.opus"
        level = sound / np.abs(sound).max() * _PEAK * rng.uniform(0.5, 1.0)
        soundfile.write(folder / name, level, SAMPLE_RATE, format="OGG", subtype="OPUS")
        index.append({"file": name, "kind": kind, "text": text, "voice": voice})
    (folder / "index.json").write_text(json.dumps(index, indent=0) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
