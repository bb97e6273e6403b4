"""Recorded orders as a caller's microphone sends them: events made once, shared by all callers."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import soxr
from numpy.typing import NDArray

from agent.wire import INPUT_SAMPLE_RATE
from models.orders import Order
from worker.audio_files import AudioFileError, read_question

MICROPHONE_HZ = 24_000
CHUNK_MS = 40
CHUNK_SAMPLES = MICROPHONE_HZ * CHUNK_MS // 1000
SUFFIXES = (".opus", ".flac", ".wav")
VOICE_SHARE = 0.1
"""Of the loudest chunk's level: voice is louder."""
MARGIN_CHUNKS = 8
"""Kept before the first and behind the last voice, where it is soft."""


class _Label(msgspec.Struct, frozen=True):
    slots: Order


@dataclass(frozen=True, slots=True)
class SpokenOrder:
    """chunks: whole `input_audio_buffer.append` events of CHUNK_MS each; onset_s: where the voice begins in them, by
    its loudness; slots: what the answer must restate."""

    name: str
    chunks: tuple[bytes, ...]
    onset_s: float
    slots: Order


def append_event(pcm: NDArray[np.int16]) -> bytes:
    return b'{"type":"input_audio_buffer.append","audio":"' + base64.b64encode(pcm.astype("<i2").tobytes()) + b'"}'


SILENCE = append_event(np.zeros(CHUNK_SAMPLES, np.int16))


def read_orders(folder: Path, labels: Path, most: int) -> list[SpokenOrder]:
    """Up to `most` labelled recordings of the folder, by name. Raises AudioFileError."""
    try:
        table = msgspec.json.decode(labels.read_bytes(), type=dict[str, _Label])
    except (OSError, msgspec.MsgspecError) as error:
        raise AudioFileError(f"{labels} is no table of labels ({error}); give the labels.json of the clips") from error
    orders = []
    for name, label in sorted(table.items()):
        stem = folder / Path(name).stem
        path = next((stem.with_suffix(suffix) for suffix in SUFFIXES if stem.with_suffix(suffix).is_file()), None)
        if path is not None and len(orders) < most:
            orders.append(_read(path, label.slots))
    if not orders:
        raise AudioFileError(f"none of the {len(table)} labelled clips is in {folder}; give the folder of recordings")
    return orders


def _read(path: Path, slots: Order) -> SpokenOrder:
    sound = soxr.resample(read_question(path), INPUT_SAMPLE_RATE, MICROPHONE_HZ)
    sound = np.pad(sound, (0, -len(sound) % CHUNK_SAMPLES)).reshape(-1, CHUNK_SAMPLES)
    loudness = np.sqrt((sound**2).mean(axis=1))
    voiced = np.flatnonzero(loudness > VOICE_SHARE * loudness.max())
    first, last = max(0, voiced[0] - MARGIN_CHUNKS), voiced[-1] + MARGIN_CHUNKS
    onset_s = float(voiced[0] - first) * CHUNK_MS / 1000
    pcm = (np.clip(sound[first : last + 1], -1.0, 1.0) * 32767).astype(np.int16)
    return SpokenOrder(path.stem, tuple(append_event(chunk) for chunk in pcm), onset_s, slots)
