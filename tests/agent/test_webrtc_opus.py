"""Opus through libopus: round trip, error correction, concealment, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from agent.rtc.opus import PACKET_SAMPLES, OpusDecoder, OpusEncoder, OpusError, packet_samples


def voice_like(seconds: float, seed: int = 0) -> np.ndarray:
    """A gliding harmonic tone with syllables, s16 mono at 24 kHz; [samples]."""
    time_s = np.arange(int(seconds * 24_000)) / 24_000
    pitch = np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * time_s + seed)) / 24_000
    tone = sum(np.sin(2 * np.pi * harmonic * pitch) / harmonic for harmonic in range(1, 8))
    return (5000 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time_s))).astype("<i2")


def encoded(samples: np.ndarray, encoder: OpusEncoder) -> list[bytes]:
    frames = samples.reshape(-1, PACKET_SAMPLES)
    return [encoder.encode(frame.tobytes()) for frame in frames]


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Best correlation over lags of up to 20 ms."""
    best = 0.0
    for lag in range(-480, 480, 4):
        left, right = (first[lag:], second) if lag >= 0 else (first, second[-lag:])
        size = min(left.size, right.size)
        best = max(best, float(np.corrcoef(left[:size], right[:size])[0, 1]))
    return best


def decoded(pieces: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(pieces), "<i2").astype(np.float64)


def test_round_trip_keeps_the_sound_and_its_length() -> None:
    samples = voice_like(1.0)
    decoder = OpusDecoder()
    packets = encoded(samples, OpusEncoder())
    sound = decoded([decoder.decode(packet) for packet in packets])
    assert sound.size == samples.size
    assert similarity(samples.astype(np.float64), sound) > 0.8
    assert 20_000 < sum(map(len, packets)) * 8 < 45_000  # bits in this second


def test_a_packet_says_how_long_it_lasts() -> None:
    assert packet_samples(OpusEncoder().encode(bytes(2 * PACKET_SAMPLES))) == PACKET_SAMPLES


def test_error_correction_brings_back_a_lost_frame_better_than_guessing() -> None:
    samples = voice_like(2.0, seed=3)
    packets = encoded(samples, OpusEncoder(expected_loss_percent=30))
    lost = {20, 33, 47, 61, 75, 88}

    def run(correct: bool) -> np.ndarray:
        decoder, pieces = OpusDecoder(), []
        for index, packet in enumerate(packets):
            if index in lost:
                pieces.append(
                    decoder.recover(packets[index + 1], PACKET_SAMPLES) if correct else decoder.conceal(PACKET_SAMPLES)
                )
            else:
                pieces.append(decoder.decode(packet))
        return decoded(pieces)

    whole = OpusDecoder()
    truth = decoded([whole.decode(packet) for packet in packets])
    at = np.concatenate([np.arange(PACKET_SAMPLES) + index * PACKET_SAMPLES for index in sorted(lost)])
    corrected = np.mean((run(correct=True)[at] - truth[at]) ** 2)
    guessed = np.mean((run(correct=False)[at] - truth[at]) ** 2)
    assert corrected < 0.5 * guessed


def test_concealment_fades_to_silence() -> None:
    decoder = OpusDecoder()
    for packet in encoded(voice_like(0.4), OpusEncoder()):
        decoder.decode(packet)
    first = decoded([decoder.conceal(PACKET_SAMPLES)])
    for _ in range(20):
        last = decoded([decoder.conceal(PACKET_SAMPLES)])
    assert np.abs(first).mean() > 100
    assert np.abs(last).mean() < 0.1 * np.abs(first).mean()


@pytest.mark.parametrize("rubbish", [b"\xff\xff\xff\xff", b"\x03", bytes(3)[:0]])
def test_rubbish_is_refused_with_a_sentence(rubbish: bytes) -> None:
    with pytest.raises(OpusError, match="Opus"):
        packet_samples(rubbish)


def test_a_frame_of_another_length_is_refused() -> None:
    with pytest.raises(OpusError, match="960 bytes"):
        OpusEncoder().encode(bytes(100))
