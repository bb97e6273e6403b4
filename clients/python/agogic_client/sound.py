"""Sound as files, microphones and loudspeakers: 16 bit mono at 24 kHz, as the server takes and gives it."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr  # type: ignore[import-untyped]
from numpy.typing import NDArray

from agogic_client.errors import CallError

RATE_HZ = 24_000
PIECE_SAMPLES = RATE_HZ // 25


# What a recorder writes as the length that cannot go back to its header; then there is sound to the end of the file.
_UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF)
# Channels whose mean has less than this share of the loudest one's strength work against each other.
_CANCELLED = 0.5
Samples = NDArray[np.float32]


def read_sound(path: str | Path) -> bytes:
    """Samples of a WAV file of any rate and number of channels. Raises `CallError`."""
    try:
        data = _with_size(bytearray(Path(path).read_bytes()))
        with wave.open(io.BytesIO(data), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise CallError(f"{path} cannot be read ({error}); give a WAV file of 16-bit samples", "file") from error
    if width != 2:
        raise CallError(f"{path} has {8 * width}-bit samples; give a WAV file of 16-bit samples", "file")
    samples = np.frombuffer(raw[: len(raw) // (2 * channels) * 2 * channels], "<i2").reshape(-1, channels)
    mono = _one_channel(samples.astype(np.float32))
    resampled = mono if rate == RATE_HZ else soxr.resample(mono, rate, RATE_HZ)
    return np.asarray(np.clip(np.round(resampled), -32768, 32767), "<i2").tobytes()


def _with_size(data: bytearray) -> bytearray:
    """The file with the length that it has in place of none."""
    at = 12
    while data[:4] == b"RIFF" and at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        if data[at : at + 4] == b"data":
            if size in _UNKNOWN_SIZES:
                struct.pack_into("<I", data, at + 4, len(data) - at - 8)
                struct.pack_into("<I", data, 4, len(data) - 8)
            break
        at += 8 + size + size % 2
    return data


def _one_channel(samples: Samples) -> Samples:
    """[samples, channels] -> [samples]: the mean, or the loudest channel where the others cancel or drown it."""
    mean: Samples = samples.mean(axis=1, dtype=np.float32)
    if not len(samples):
        return mean
    strengths = np.sqrt((samples**2).mean(axis=0))
    loudest = int(strengths.argmax())
    weak = np.sqrt((mean**2).mean()) < _CANCELLED * strengths[loudest]
    return samples[:, loudest] if weak else mean


def write_wav(path: str | Path, pcm: bytes) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(pcm)


def _device(kind: str, options: dict[str, Any]) -> Any:
    try:
        import sounddevice  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except (ImportError, OSError) as error:
        raise CallError("for a microphone: pip install 'agogic-client[sound]' (and libportaudio2)", "sound") from error
    try:
        return getattr(sounddevice, kind)(samplerate=RATE_HZ, channels=1, dtype="int16", **options)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise CallError(f"the sound device cannot be used: {error}; choose another", "sound") from error


class Microphone:
    """Pieces of 40 ms for as long as it is open. What nobody fetches within two seconds is dropped, oldest first."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=50)

    async def pieces(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()

        def heard(data: Any, _frames: int, _time: object, _status: object) -> None:
            loop.call_soon_threadsafe(self._keep, bytes(data))

        with _device("RawInputStream", {"blocksize": PIECE_SAMPLES, "callback": heard}):
            while True:
                yield await self._pieces.get()

    def _keep(self, piece: bytes) -> None:
        if self._pieces.full():
            self._pieces.get_nowait()
        self._pieces.put_nowait(piece)


class Speaker:
    """Plays what it is given, in order, and knows how much of the current item was heard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._item: str | None = None
        self._heard = 0
        self._stream = _device("RawOutputStream", {"callback": self._fill})
        self._stream.start()

    def play(self, item_id: str, pcm: bytes) -> None:
        with self._lock:
            if item_id != self._item:
                self._item, self._heard = item_id, 0
            self._waiting += pcm

    def clear(self) -> tuple[str, int] | None:
        """Falls silent; which item was cut and how many ms of it were heard, if any was playing."""
        with self._lock:
            if not self._waiting or self._item is None:
                return None
            self._waiting.clear()
            return self._item, self._heard * 1000 // (2 * RATE_HZ)

    def close(self) -> None:
        self._stream.close()

    def _fill(self, out: Any, _frames: int, _time: object, _status: object) -> None:
        with self._lock:
            piece = bytes(self._waiting[: len(out)])
            del self._waiting[: len(piece)]
            self._heard += len(piece)
        out[:] = piece + b"\0" * (len(out) - len(piece))
