"""A picture of what the merging did: the spectrogram of the speech with the borders of its tokens, as a PNG."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streaming.flexicodec.codec import INPUT_FRAME_SAMPLES

SAMPLE_RATE = 16_000
PIXELS_PER_FRAME = 16
FFT_SIZE = 512
SPECTRUM_PIXELS = FFT_SIZE // 2
STRIP_PIXELS = 8 * 6
GAP_PIXELS = 4
SECOND_TICK_PIXELS = 6
FLOOR_DB = 70.0

Image = NDArray[np.uint8]
# From silence to loud: black, violet, red, orange, pale yellow.
PALETTE = np.array(
    [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], np.float64
)
BORDER = np.array([110, 235, 255], np.uint8)
STRIPS = np.array([[56, 132, 255], [255, 149, 64]], np.uint8)


def draw_tokens(audio: NDArray[np.float32], durations: NDArray[np.int64]) -> Image:
    """RGB [height, 16 frames, 3] of samples [N] at 16 kHz and durations in frames of 80 ms.

    Above the spectrogram (0 to 8 kHz) with a line where a token begins; below, a bar for each token whose height is its
    duration (6 pixels a frame); ticks at the bottom mark seconds.
    """
    frames = int(durations.sum())
    width = frames * PIXELS_PER_FRAME
    height = SPECTRUM_PIXELS + GAP_PIXELS + STRIP_PIXELS + GAP_PIXELS + SECOND_TICK_PIXELS
    image = np.zeros((height, width, 3), np.uint8)
    image[:SPECTRUM_PIXELS] = _colour(_spectrogram(audio, width))
    bottom = SPECTRUM_PIXELS + GAP_PIXELS + STRIP_PIXELS
    start = 0
    for number, duration in enumerate(durations.tolist()):
        end = start + duration * PIXELS_PER_FRAME
        image[:SPECTRUM_PIXELS, start] = BORDER
        image[bottom - duration * STRIP_PIXELS // 8 : bottom, start + 1 : end] = STRIPS[number % 2]
        start = end
    seconds = (np.arange(0, width * INPUT_FRAME_SAMPLES / PIXELS_PER_FRAME / SAMPLE_RATE) * SAMPLE_RATE).astype(int)
    image[-SECOND_TICK_PIXELS:, seconds * PIXELS_PER_FRAME // INPUT_FRAME_SAMPLES] = 255
    return image


def write_png(path: Path, image: Image) -> None:
    """8-bit RGB; OSError where the file cannot be written."""
    height, width, _ = image.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate((np.zeros((height, 1), np.uint8), image.reshape(height, -1)), axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _spectrogram(audio: NDArray[np.float32], width: int) -> NDArray[np.float64]:
    """0 (silence) to 1 (the loudest), [256, width], low frequencies at the bottom; one column every 5 ms."""
    hop = INPUT_FRAME_SAMPLES // PIXELS_PER_FRAME
    padded = np.zeros(width * hop + FFT_SIZE, np.float32)
    count = min(len(audio), width * hop)
    padded[FFT_SIZE // 2 : FFT_SIZE // 2 + count] = audio[:count]
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[: width * hop : hop] * np.hanning(FFT_SIZE)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(windows))[:, :SPECTRUM_PIXELS] + 1e-6)
    scaled: NDArray[np.float64] = np.clip(1 + (decibels - decibels.max(initial=-120.0)) / FLOOR_DB, 0, 1).T[::-1]
    return scaled


def _colour(values: NDArray[np.float64]) -> Image:
    position = values * (len(PALETTE) - 1)
    lower = np.minimum(position.astype(int), len(PALETTE) - 2)
    share = (position - lower)[..., None]
    colours: Image = (PALETTE[lower] * (1 - share) + PALETTE[lower + 1] * share).astype(np.uint8)
    return colours
