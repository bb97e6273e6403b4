"""The voice "heart" of hibari as a teacher: speech at 24 kHz, with the times of its phones and words.

hibari's network decides for each phoneme how many steps of 25 ms it lasts; their sum stands inside the graph, and is
asked for as a further output. hibari (Apache License 2.0) was distilled from Kokoro's voice af_heart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE_HZ = 24_000
STEP_SAMPLES = 600
_ENDS = "/CumSum_output_0"
_WORD = re.compile(r"\S+")


class TeacherError(RuntimeError):
    """hibari is missing, or another version than the one that this module knows."""


@dataclass(frozen=True)
class Taught:
    """sound: float32 [N] at 24 kHz; phones: (symbol, end) and words: (as written, start, end), in samples."""

    sound: np.ndarray
    phones: list[tuple[str, int]]
    words: list[tuple[str, int, int]]


def with_output(model: bytes, name: str) -> bytes:
    """An ONNX file that also gives the inner value `name`: a graph with one output, merged into the model's own."""
    value = _field(1, name.encode())
    return model + _field(7, _field(12, value))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Teacher:
    """Speaks one sentence after another, always the same way."""

    def __init__(self) -> None:
        try:
            import onnxruntime
            from hibari import Hibari
        except ImportError as error:
            raise TeacherError('hibari-tts is not installed; run pip install -e ".[voices]"') from error
        self._hibari = Hibari()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = with_output(Path(self._hibari.model_path).read_bytes(), _ENDS)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes share no base but this
            raise TeacherError(f"this version of hibari-tts has no {_ENDS} in its network; install 0.2.1") from error

    def speak(self, text: str, seed: int = 0) -> Taught:
        """One sentence or several. Raises TeacherError where words and phonemes cannot be matched."""
        sounds, phones, words, at = [], list[tuple[str, int]](), list[tuple[str, int, int]](), 0
        for sentence in self._hibari.split_sentences(text):
            spoken = self._sentence(sentence, seed)
            sounds.append(spoken.sound)
            phones += [(name, end + at) for name, end in spoken.phones]
            words += [(word, start + at, end + at) for word, start, end in spoken.words]
            at += len(spoken.sound)
        return Taught(np.concatenate(sounds), phones, words)

    def _sentence(self, text: str, seed: int) -> Taught:
        from hibari import dsp

        phonemes = "".join(symbol for symbol in self._hibari.g2p(text) if symbol in self._hibari.vocab)
        ids = np.asarray([self._hibari.ids(phonemes)], np.int64)
        *parts, ends = self._session.run(None, {"ids": ids, "speed": np.ones(1, np.float32)})
        sound = np.asarray(dsp.synth(*(part[0] for part in parts), np.random.default_rng(seed)), np.float32)
        # One end for each id; the first and the last are silence around the sentence.
        samples = (ends.reshape(-1) * STEP_SAMPLES).tolist()
        phones = [("", samples[0]), *zip(phonemes, samples[1:-1], strict=True), ("", samples[-1])]
        return Taught(sound, [(name, int(end)) for name, end in phones], self._words(text, phonemes, samples))

    def _words(self, text: str, phonemes: str, samples: list[int]) -> list[tuple[str, int, int]]:
        written, spoken = text.split(), [found.span() for found in _WORD.finditer(phonemes)]
        if len(written) != len(spoken):
            raise TeacherError(f"{text!r} has {len(written)} words and {len(spoken)} groups of phonemes; spell it out")
        # Phoneme i lasts from samples[i] to samples[i + 1]: id 0 is the silence before it.
        return [
            (word, int(samples[first]), int(samples[last])) for word, (first, last) in zip(written, spoken, strict=True)
        ]
