"""What people say, and the sounds they make, while somebody else speaks: to let him go on, or to stop him."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 16_000

# Phonemes in double brackets are espeak-ng's.
BACKCHANNELS = (
    "mm hmm", "mhm", "uh huh", "hmm", "mm", "mm mm", "[[m:h'm:]]", "[[V'hV]]", "[[m:]]", "[[h@m:]]", "[[@'hV]]",
    "[[m'hm]]", "[[mh'mm]]", "yeah", "yeah", "yep", "yup", "yes", "yes yes", "okay", "okay", "ok", "right", "right",
    "sure", "i see", "oh", "ah", "uh", "um", "alright", "all right", "got it", "cool", "good", "great", "nice",
    "yeah yeah", "okay okay", "oh okay", "ah right", "yeah right", "mm okay", "true", "exactly", "wow", "ha ha",
    "ha ha ha", "he he", "perfect", "fine", "oh yeah", "uh huh yeah", "okay yeah", "of course", "oh i see", "ah okay",
)  # fmt: skip
# The shortest are the hardest to tell from the above.
INTERRUPTIONS = (
    "no", "no", "no", "no", "no", "wait", "wait", "wait", "wait", "stop", "stop", "stop", "stop", "what", "what",
    "no wait", "no no no", "hey", "hold on", "stop please", "no", "no", "stop", "stop it", "wait", "wait a minute",
    "what", "hold on", "excuse me", "sorry", "no wait", "wait wait", "actually", "actually no", "cancel",
    "cancel that", "no milk", "one more thing", "that's wrong", "not that", "large", "make it large", "decaf",
    "two shots", "how much", "hello", "hey", "please stop", "but", "can i", "i want", "i said small", "never mind",
    "hang on", "one moment", "no no", "no sugar", "a latte", "and", "question", "pardon", "listen", "help",
    "come again", "say that again", "who", "when", "why", "change it", "also", "and a cappuccino", "instead",
    "what is that", "quiet", "enough", "i need", "could you", "let me", "do you", "is there", "where", "which",
    "with milk", "small", "medium", "three", "hot", "iced", "that is not", "forget it",
)  # fmt: skip


def noises(count: int, seed: int) -> list[np.ndarray]:
    """int16 [N] at 16 kHz each: coughs, laughs, throats cleared, clicks, knocks, breaths."""
    draw = np.random.default_rng(seed)
    makers = (_cough, _cough, _laugh, _laugh, _clearing, _click, _breath)
    made = []
    for number in range(count):
        sound = makers[number % len(makers)](draw)
        peak = float(np.abs(sound).max(initial=1e-4))
        made.append(np.round(sound / peak * draw.uniform(0.1, 0.6) * 32767).astype(np.int16))
    return made


def _through(sound: np.ndarray, formants: list[tuple[float, float]]) -> np.ndarray:
    """The sound behind resonances (Hz, bandwidth in Hz) side by side, in the frequency domain."""
    frequencies = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    curve = sum(1 / (1 + ((frequencies - centre) / (width / 2)) ** 2) for centre, width in formants)
    return np.asarray(np.fft.irfft(np.fft.rfft(sound) * (0.02 + np.sqrt(curve)), len(sound)))


def _mouth(draw: np.random.Generator, wide: float = 1.0) -> list[tuple[float, float]]:
    size = draw.uniform(0.85, 1.2)
    centres = (draw.uniform(500, 850), draw.uniform(1100, 1700), draw.uniform(2300, 2900), draw.uniform(3300, 4200))
    return [(centre * size, wide * draw.uniform(80, 300)) for centre in centres]


def _burst(draw: np.random.Generator, seconds: float, attack_s: float, decay_s: float) -> np.ndarray:
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.asarray(draw.standard_normal(len(t)) * np.minimum(1, t / attack_s) * np.exp(-t / decay_s))


def _pulses(draw: np.random.Generator, seconds: float, pitch_hz: float, fall: float) -> np.ndarray:
    """A voice before any mouth: pulses whose pitch falls by a share, a little uneven."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = pitch_hz * (1 - fall * t / seconds) * (1 + 0.02 * np.cumsum(draw.standard_normal(len(t))) / 400)
    phase = np.cumsum(pitch / SAMPLE_RATE) % 1.0
    return np.asarray(np.where(phase < 0.6, np.sin(np.pi * phase / 0.6) ** 2, 0.0) - 0.3)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _gap(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE))


def _cough(draw: np.random.Generator) -> np.ndarray:
    mouth, parts = _mouth(draw, 2.0), []
    for _ in range(draw.integers(1, 4)):
        length = draw.uniform(0.15, 0.4)
        burst = _burst(draw, length, 0.004, draw.uniform(0.04, 0.14))
        voice = _pulses(draw, length, draw.uniform(90, 260), 0.4) * np.exp(-np.arange(len(burst)) / (0.1 * SAMPLE_RATE))
        parts += [_through(burst + draw.uniform(0, 0.8) * voice[: len(burst)], mouth), _gap(draw.uniform(0.05, 0.3))]
    return _joined(parts)


def _laugh(draw: np.random.Generator) -> np.ndarray:
    mouth, parts, pitch = _mouth(draw), [], draw.uniform(110, 380)
    for number in range(draw.integers(2, 8)):
        breath = _burst(draw, draw.uniform(0.04, 0.1), 0.02, 0.08) * 0.4
        length = draw.uniform(0.06, 0.16)
        voice = _pulses(draw, length, pitch * 0.96**number, 0.2)
        voice = voice * np.hanning(len(voice)) + 0.15 * draw.standard_normal(len(voice)) * np.hanning(len(voice))
        parts += [_through(breath, mouth), _through(voice, mouth) * 0.93**number, _gap(draw.uniform(0.0, 0.05))]
    return _joined(parts)


def _clearing(draw: np.random.Generator) -> np.ndarray:
    length = draw.uniform(0.25, 0.7)
    rough = _pulses(draw, length, draw.uniform(60, 140), 0.1) + 0.5 * draw.standard_normal(int(length * SAMPLE_RATE))
    swell = np.abs(np.sin(np.pi * np.arange(len(rough)) / SAMPLE_RATE / draw.uniform(0.15, 0.35)))
    return _through(rough * swell, _mouth(draw, 2.0))


def _click(draw: np.random.Generator) -> np.ndarray:
    parts = []
    for _ in range(draw.integers(1, 4)):
        burst = _burst(draw, 0.1, 0.0005, draw.uniform(0.003, 0.03))
        parts += [_through(burst, [(draw.uniform(200, 4000), 900.0)]), _gap(draw.uniform(0.03, 0.3))]
    return _joined(parts)


def _breath(draw: np.random.Generator) -> np.ndarray:
    length = draw.uniform(0.3, 0.9)
    return _through(_burst(draw, length, length / 2, length), _mouth(draw, 4.0))
