"""Files as people have them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.speech import order
from worker.audio_files import AudioFileError, read_question, write_reply

RATE = 16_000
SPEECH = order(RATE).astype(np.float32) / 32768


def as_heard(folder: Path, samples: np.ndarray, name: str = "speech.wav") -> np.ndarray:
    soundfile.write(folder / name, samples, RATE, subtype="FLOAT")
    return read_question(folder / name)


def likeness(heard: np.ndarray) -> float:
    return float(np.corrcoef(heard, SPEECH)[0, 1])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_that_does_not_know_its_size_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, SPEECH, RATE, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", size)
    path.write_bytes(data)
    assert len(read_question(path)) == len(SPEECH)


def test_stereo_of_opposite_phase_is_heard(tmp_path: Path) -> None:
    heard = as_heard(tmp_path, np.stack([SPEECH, -SPEECH], axis=1))
    assert abs(likeness(heard)) > 0.99


def test_a_voice_in_the_centre_alone_is_as_loud_as_by_itself(tmp_path: Path) -> None:
    surround = np.zeros((len(SPEECH), 6), np.float32)
    surround[:, 2] = SPEECH
    heard = as_heard(tmp_path, surround)
    assert np.abs(heard).max() == pytest.approx(np.abs(SPEECH).max(), rel=1e-3)


def test_usual_stereo_is_the_mean_of_its_sides(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, len(SPEECH)).astype(np.float32)
    heard = as_heard(tmp_path, np.stack([SPEECH + noise, SPEECH - noise], axis=1))
    assert np.allclose(heard, SPEECH, atol=1e-6)


def test_a_quiet_recording_is_made_as_loud_as_a_usual_one(tmp_path: Path) -> None:
    heard = as_heard(tmp_path, SPEECH * 0.003)
    assert 0.1 < np.abs(heard).max() < 0.5 and likeness(heard) > 0.99
    assert np.allclose(as_heard(tmp_path, SPEECH), SPEECH), "what is loud enough stays as it is"


def test_digital_silence_stays_silence(tmp_path: Path) -> None:
    assert not as_heard(tmp_path, np.zeros(RATE, np.float32)).any()


def test_a_reply_is_called_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=r"call it reply\.wav"):
        write_reply(tmp_path / "reply.mp3", SPEECH, RATE)
    write_reply(tmp_path / "REPLY.WAV", SPEECH, RATE)
    assert soundfile.info(tmp_path / "REPLY.WAV").format == "WAV"
