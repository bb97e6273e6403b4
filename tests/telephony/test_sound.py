"""Sound on its way to and from a line: levels, positions, rates and pace, without a clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from agent.audio import decode, encode
from agent.telephony.sound.incoming import IncomingVoice
from agent.telephony.sound.level import CEILING, TARGET_DBFS, Leveller
from agent.telephony.sound.outgoing import Frame, OutgoingVoice
from agent.telephony.sound.pacing import FRAME_S, MAX_BURST, FramePacer

SOURCE_HZ = 24_000


@dataclass
class Piece:
    generation: int
    end_sample: int
    samples: np.ndarray


class Answer:
    """An answer of a tone, pulled like a session's."""

    def __init__(self, seconds: float, hz: float = 440.0, amplitude: float = 8000.0, generation: int = 1) -> None:
        times = np.arange(int(seconds * SOURCE_HZ)) / SOURCE_HZ
        self.sound = (amplitude * np.sin(2 * np.pi * hz * times)).astype(np.int16)
        self.generation = generation
        self.position = 0

    def pull(self, count: int) -> Piece | None:
        piece = self.sound[self.position : self.position + count]
        self.position += piece.size
        return Piece(self.generation, self.position, piece) if piece.size else None


def play(voice: OutgoingVoice, answer: Answer, frames: int) -> list[Frame]:
    return [voice.frame(round(voice.line_hz * FRAME_S), answer.pull) for _ in range(frames)]


@pytest.mark.parametrize("line_hz", [8000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000])
def test_what_was_heard_is_known_within_3_ms_at_every_rate(line_hz: int) -> None:
    """A click at a known place of the answer leaves at the place that is reported."""
    answer = Answer(1.0, amplitude=0.0)
    click = 12_345
    answer.sound[click : click + 24] = 20_000
    frames = play(OutgoingVoice(SOURCE_HZ, line_hz), answer, 70)
    sounded = np.concatenate([frame.samples for frame in frames])
    at = int(np.argmax(np.abs(sounded.astype(int))))
    frame = at // round(line_hz * FRAME_S)
    upto = frames[frame].upto
    assert upto is not None
    rest = (frame + 1) * round(line_hz * FRAME_S) - at  # of the frame, behind the click
    assert abs(upto.end_sample - rest * SOURCE_HZ / line_hz - click) < 0.003 * SOURCE_HZ
    last = frames[-1].upto
    assert last is not None and last.end_sample == SOURCE_HZ
    assert frames[-1].silent and not frames[-1].samples.any()


def test_little_is_pulled_ahead_of_what_was_heard() -> None:
    answer, voice = Answer(2.0), OutgoingVoice(SOURCE_HZ, 8000)
    ahead = []
    for _ in range(80):
        upto = voice.frame(160, answer.pull).upto
        ahead.append(answer.position - (upto.end_sample if upto else 0))
    assert max(ahead) <= 0.06 * SOURCE_HZ


@pytest.mark.parametrize("amplitude", [800, 3000, 20_000])
def test_speech_comes_out_at_the_telephones_level_and_never_clips(amplitude: float) -> None:
    frames = play(OutgoingVoice(SOURCE_HZ, 8000), Answer(6.0, amplitude=amplitude), 280)
    sound = np.concatenate([frame.samples for frame in frames[200:250]]).astype(float) / 32768
    level = 20 * np.log10(np.sqrt(np.mean(sound**2)))
    wanted = max(TARGET_DBFS - 1.5, min(TARGET_DBFS + 1.5, 20 * np.log10(amplitude / 32768 / 2**0.5) + 12))
    assert level == pytest.approx(wanted, abs=2.0)
    assert max(int(np.abs(frame.samples.astype(int)).max()) for frame in frames) < 0.9 * 32768


def test_nothing_above_the_band_of_a_telephone_comes_out() -> None:
    frames = play(OutgoingVoice(SOURCE_HZ, 8000), Answer(1.0, hz=5000.0), 40)
    sound = np.concatenate([frame.samples for frame in frames[5:]])
    assert np.abs(sound.astype(int)).max() < 30


def test_a_cleared_voice_forgets_what_was_on_its_way() -> None:
    voice, answer = OutgoingVoice(SOURCE_HZ, 8000), Answer(5.0)
    play(voice, answer, 20)
    voice.clear()
    frame = voice.frame(160, lambda count: None)
    assert frame.silent and frame.upto is None


def test_a_burst_never_passes_the_limiter() -> None:
    leveller = Leveller(SOURCE_HZ)
    rng = np.random.default_rng(0)
    loud = np.repeat(rng.uniform(0.1, 3.0, 200), 240) * rng.uniform(-1, 1, 48_000)
    out = [leveller.push(block.astype(np.float32)) for block in np.split(loud, range(480, 48_000, 480))]
    assert max(np.abs(block).max() for block in out) <= CEILING + 1e-6
    assert sum(block.size for block in out) == loud.size


def test_ten_minutes_do_not_drift_either_way() -> None:
    """As many samples as the clock says, to the filters' own delay."""
    line_hz = 8000
    incoming, frame = IncomingVoice(), round(line_hz * FRAME_S)
    quiet = np.zeros(frame, np.int16)
    heard = sum(incoming.push(quiet, line_hz).size for _ in range(30_000))
    expected = 30_000 * frame * 16_000 / line_hz
    assert -0.06 * 16_000 < heard - expected <= 0
    voice, answer = OutgoingVoice(SOURCE_HZ, line_hz), Answer(60.0)
    answer.sound = np.tile(answer.sound, 10)
    played = 0
    for _ in range(29_000):
        played += voice.frame(frame, answer.pull).samples.size
    assert abs(answer.position / SOURCE_HZ - played / line_hz) < 0.06


def test_a_change_of_the_lines_rate_loses_no_sound() -> None:
    incoming = IncomingVoice()
    total = sum(incoming.push(np.zeros(160, np.int16), 8000).size for _ in range(50))
    total += sum(incoming.push(np.zeros(320, np.int16), 16_000).size for _ in range(50))
    assert total == pytest.approx(2.0 * 16_000, abs=200)


def test_frames_are_due_by_an_absolute_schedule() -> None:
    pacer = FramePacer(100.0)
    rng = np.random.default_rng(1)
    now, sent = 100.0, 0
    while now < 700.0:
        sent += pacer.due(now)
        now += rng.uniform(0.001, 0.03)
    assert abs(sent - 600.0 / FRAME_S) <= 2
    assert pacer.skipped == 0


def test_who_was_held_up_catches_up_a_little_and_gives_up_the_rest() -> None:
    pacer = FramePacer(0.0)
    assert pacer.due(0.0) == 1
    assert pacer.due(1.0) == MAX_BURST
    assert pacer.skipped == 50 - MAX_BURST
    assert pacer.due(1.0) == 0
    assert pacer.next_s == pytest.approx(1.02)


def test_g711_keeps_the_levelled_voice() -> None:
    frames = play(OutgoingVoice(SOURCE_HZ, 8000), Answer(1.0), 45)
    sound = np.concatenate([frame.samples for frame in frames[10:40]])
    for encoding in ("pcmu", "pcma"):
        again = decode(encode(sound, encoding), encoding)  # type: ignore[arg-type]
        error = again.astype(float) - sound
        assert 10 * np.log10(np.mean(sound.astype(float) ** 2) / np.mean(error**2)) > 30
