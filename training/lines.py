"""What telephones do to speech, on samples: bands, codecs, lost packets, levels. For copies made ahead of training.

What can be drawn anew at each step is done on mel power instead (`training.channels`).
"""

from __future__ import annotations

import random
from fractions import Fraction

import av
import numpy as np
import soxr

SAMPLE_RATE = 16_000
PACKET_MS = 20

NARROW = ("pcm_mulaw", "pcm_alaw", "amr_nb")
"""Codecs of 8 kHz telephones by their names in FFmpeg; the others run at 16 kHz."""
_LIKELY = ("pcm_mulaw",) * 7 + ("pcm_alaw",) * 4 + ("amr_nb", "amr_nb", "g722", "libopus", "libopus", "none")
_BIT_RATES = {"amr_nb": (5900, 7400, 12200), "libopus": (6000, 8000, 12000, 16000)}

Samples = np.ndarray
"""float32 [N] in -1..1."""


def band_filter(
    samples: Samples, rate_hz: int, low_hz: float, high_hz: float, low_order: int, high_order: int
) -> Samples:
    """Butterworth-like magnitudes, without change of phase: orders count 6 dB per octave each."""
    f = np.fft.rfftfreq(len(samples), 1 / rate_hz)
    rise = 1 / np.sqrt(1 + (low_hz / np.maximum(f, 1e-3)) ** (2 * low_order))
    fall = 1 / np.sqrt(1 + (f / high_hz) ** (2 * high_order))
    return np.fft.irfft(np.fft.rfft(samples) * rise * fall, len(samples)).astype(np.float32)


def through_codec(samples: Samples, rate_hz: int, codec: str, bit_rate: int = 0) -> Samples:
    """float32 [about N] at the same rate, encoded and decoded by FFmpeg's codec of that name."""
    encoder = av.CodecContext.create(codec, "w")
    formats = [f.name for f in (av.codec.Codec(codec, "w").audio_formats or [])]
    encoder.format = "s16" if "s16" in formats else formats[0]
    encoder.sample_rate, encoder.layout, encoder.time_base = rate_hz, "mono", Fraction(1, rate_hz)
    if bit_rate:
        encoder.bit_rate = bit_rate
    encoder.open()
    decoder = av.CodecContext.create({"libopus": "opus", "amr_nb": "amrnb"}.get(codec, codec), "r")
    decoder.sample_rate, decoder.layout = rate_hz, "mono"
    if encoder.extradata:
        decoder.extradata = encoder.extradata
    piece = encoder.frame_size or rate_hz * PACKET_MS // 1000
    int16 = (samples.clip(-1, 1) * 32767).astype(np.int16)
    int16 = np.pad(int16, (0, -len(int16) % piece))
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)
    to_encoder = av.AudioResampler(format=encoder.format.name, layout="mono", rate=rate_hz)
    packets, decoded = [], []
    for start in range(0, len(int16), piece):
        frame = av.AudioFrame.from_ndarray(int16[None, start : start + piece], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        for converted in to_encoder.resample(frame):
            packets += encoder.encode(converted)
    packets += encoder.encode(None)
    for packet in packets:
        for out in decoder.decode(packet):
            decoded += [part.to_ndarray()[0] for part in resampler.resample(out)]
    return np.concatenate(decoded).astype(np.float32) / 32768


def lose_packets(
    samples: Samples, rate_hz: int, share: float, burst: float, repeat: bool, rng: random.Random
) -> Samples:
    """Packets of 20 ms lost in bursts of `burst` on average, each filled by the one before, fading, or by nothing."""
    piece, out = rate_hz * PACKET_MS // 1000, samples.copy()
    lost, last, run = False, out[:0], 0
    for start in range(0, len(out) - piece + 1, piece):
        lost = rng.random() < (1 - 1 / burst if lost else share / burst / max(1 - share, 0.01))
        if not lost:
            last, run = out[start : start + piece].copy(), 0
            continue
        run += 1
        out[start : start + piece] = last * 0.6**run if repeat and len(last) else 0
    return out


def telephone(samples: Samples, rng: random.Random) -> tuple[Samples, str]:
    """16 kHz in, 16 kHz out, and the codec's name: a random telephone from microphone to the far end."""
    codec = rng.choice(_LIKELY)
    peak = max(float(np.abs(samples).max(initial=0)), 1e-4)
    sound = samples / peak * 10 ** (-rng.uniform(2, 30) / 20)
    if rng.random() < 0.12:
        sound = (sound * 10 ** rng.uniform(0.3, 0.9)).clip(-0.7, 0.7)
    rate = 8000 if codec in NARROW or (codec == "none" and rng.random() < 0.5) else SAMPLE_RATE
    narrow = rate == 8000
    sound = soxr.resample(sound, SAMPLE_RATE, rate) if narrow else sound
    if narrow or rng.random() < 0.3:
        low, high = rng.uniform(180, 420), rng.uniform(2900, 3800)
        sound = band_filter(sound, rate, low, high, rng.randrange(1, 9), rng.randrange(3, 25))
    if codec != "none":
        sound = through_codec(sound.astype(np.float32), rate, codec, rng.choice(_BIT_RATES.get(codec, (0,))))
    if rng.random() < 0.35:
        sound = lose_packets(sound, rate, rng.uniform(0.005, 0.08), rng.uniform(1, 2.5), rng.random() < 0.8, rng)
    sound = soxr.resample(sound, rate, SAMPLE_RATE) if narrow else sound
    return np.asarray(sound, np.float32), codec
