"""A picture of what the merging did: the spectrogram of the speech with the borders of its tokens, as an SVG."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import numpy as np
from numpy.typing import NDArray

from streaming.flexicodec.codec import INPUT_FRAME_SAMPLES

SAMPLE_RATE = 16_000
PIXELS_PER_FRAME = 16
FFT_SIZE = 512
SPECTRUM_PIXELS = FFT_SIZE // 2
STRIP_PIXELS = 8 * 6
GAP_PIXELS = 4
MOST_FRAMES = 8
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 46, 44
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
    duration (6 pixels a frame).
    """
    frames = int(durations.sum())
    width = frames * PIXELS_PER_FRAME
    bottom = SPECTRUM_PIXELS + GAP_PIXELS + STRIP_PIXELS
    image = np.zeros((bottom, width, 3), np.uint8)
    image[:SPECTRUM_PIXELS] = _colour(_spectrogram(audio, width))
    start = 0
    for number, duration in enumerate(durations.tolist()):
        end = start + duration * PIXELS_PER_FRAME
        image[:SPECTRUM_PIXELS, start] = BORDER
        image[bottom - duration * STRIP_PIXELS // MOST_FRAMES : bottom, start + 1 : end] = STRIPS[number % 2]
        start = end
    return image


def token_chart(audio: NDArray[np.float32], durations: NDArray[np.int64], title: str) -> str:
    """`draw_tokens` between axes, as an SVG document: kHz and frames a token upwards, seconds across, and a legend."""
    image = draw_tokens(audio, durations)
    height, width, _ = image.shape
    wide = max(LEFT + width + RIGHT, 460)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {TOP + height + BOTTOM}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="17" font-size="15">{escape(title)}</text>',
        *_legend(),
        f'<image x="{LEFT}" y="{TOP}" width="{width}" height="{height}" href="data:image/png;base64,'
        f'{base64.b64encode(_png(image)).decode()}"/>',
        _upwards("kHz", TOP + SPECTRUM_PIXELS // 2),
        _upwards("frames", TOP + height - STRIP_PIXELS // 2),
    ]
    for khz in range(0, 9, 2):
        parts.append(_label(LEFT - 6, TOP + SPECTRUM_PIXELS * (8 - khz) // 8 + 4, f"{khz}", "end"))
    for frames in (MOST_FRAMES // 2, MOST_FRAMES):
        parts.append(_label(LEFT - 6, TOP + height - frames * STRIP_PIXELS // MOST_FRAMES + 4, f"{frames}", "end"))
    per_second = PIXELS_PER_FRAME * SAMPLE_RATE / INPUT_FRAME_SAMPLES
    every = 1 if width / per_second < 20 else 10
    for second in range(0, int(width / per_second) + 1, every):
        parts.append(_label(LEFT + second * per_second, TOP + height + 16, f"{second}", "middle"))
    parts.append(_label(LEFT + width / 2, TOP + height + 34, "seconds", "middle"))
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    border, bar = ("rgb({},{},{})".format(*colour) for colour in (BORDER, STRIPS[0]))
    return [
        f'<path d="M{LEFT} 26v12" stroke="{border}" stroke-width="2"/>',
        _label(LEFT + 8, 37, "a token begins", "start"),
        f'<rect x="{LEFT + 120}" y="28" width="14" height="10" fill="{bar}"/>',
        _label(LEFT + 140, 37, "how long it lasts, in frames of 80 ms", "start"),
    ]


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _upwards(text: str, y: int) -> str:
    return f'<text transform="translate(16 {y}) rotate(-90)" text-anchor="middle">{text}</text>'


def _png(image: Image) -> bytes:
    """8-bit RGB."""
    height, width, _ = image.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate((np.zeros((height, 1), np.uint8), image.reshape(height, -1)), axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


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
