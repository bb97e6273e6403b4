"""Our own voice in the microphone: taken out wherever it comes back, and nothing else with it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import wire
from agent.audio import Samples
from agent.clock import ManualClock
from agent.echo import canceller as echo_canceller
from agent.echo.canceller import DELAY_SAMPLES, FRAME_SAMPLES, HANGOVER_SAMPLES, Canceller
from agent.echo.loop import EchoLoop, MicrophoneTime
from agent.echo.presence import Presence
from agent.echo.reference import Reference
from tests.support.session_driver import SessionDriver
from tests.support.speech import SPOKEN_S, order

HZ = 16_000


def voice(seconds: float, seed: int = 1, hz: int = HZ) -> Samples:
    """Noise that comes and goes like syllables."""
    chance = np.random.default_rng(seed)
    count = int(seconds * hz)
    sound = np.convolve(chance.normal(size=count), 0.9 ** np.arange(48), "same")
    sound *= np.clip(np.sin(2 * np.pi * 3 * np.arange(count) / hz + seed), 0, 1)
    return (4000 * sound / np.sqrt((sound**2).mean())).clip(-32768, 32767).astype(np.int16)


def level_db(samples: Samples) -> float:
    return float(10 * np.log10((samples.astype(float) ** 2).mean() + 1e-3))


def echo_of(played: Samples, delay: int, db: float) -> Samples:
    """From a small room, that much later and weaker."""
    response = np.random.default_rng(3).normal(size=1600) * np.exp(-np.arange(1600) / 250)
    response[0] = 3.0
    heard = np.convolve(played, response)[: played.size]
    heard *= 10 ** (db / 20) * np.sqrt((played.astype(float) ** 2).mean() / (heard**2).mean())
    return np.concatenate([np.zeros(delay), heard])[: played.size].astype(np.int16)


def of(reference: Samples) -> Any:
    """As if this had been played from the first sample on."""
    laid = Reference()
    laid.say(reference, HZ, 0.0)
    return laid.read


@pytest.mark.parametrize("delay_ms", [20, 200, 400])
def test_an_echo_is_gone_and_a_voice_over_it_is_not(delay_ms: int) -> None:
    played, theirs = voice(5.0), np.zeros(5 * HZ, np.int16)
    spoken = order(HZ)[: int(SPOKEN_S * HZ)]
    theirs[2 * HZ : 2 * HZ + spoken.size] = spoken
    heard = echo_of(played, delay_ms * HZ // 1000, -6.0)
    clean = Canceller(of(played)).push((heard + theirs).astype(np.int16))
    alone, both = slice(HZ, 2 * HZ), slice(2 * HZ, 2 * HZ + spoken.size)
    assert level_db(clean[alone]) < level_db(heard[alone]) - 20
    assert level_db(clean[both]) > level_db(theirs[both]) - 6


@pytest.mark.parametrize("onset_s", [0.4, 2.0])
def test_over_headphones_a_voice_over_ours_passes_as_it_came(onset_s: float) -> None:
    """Whether it is known by the silence before or only by whose voice it is."""
    played, theirs = voice(5.0), np.zeros(5 * HZ, np.int16)
    spoken, onset = order(HZ)[: int(SPOKEN_S * HZ)], int(onset_s * HZ)
    theirs[onset : onset + spoken.size] = spoken
    clean = Canceller(of(played)).push(theirs)
    known = slice(onset + 9600, onset + spoken.size)
    assert (clean[known] == theirs[known]).all()
    always = Canceller(of(played), always=True).push(theirs)
    assert (always[known] != theirs[known]).any()


def test_who_changes_from_headphones_to_a_loudspeaker_is_noticed() -> None:
    played = voice(6.0)
    heard = echo_of(played, 3200, -6.0)
    heard[: 3 * HZ] = 0
    clean = Canceller(of(played)).push(heard)
    assert level_db(clean[4 * HZ :]) < level_db(heard[4 * HZ :]) - 20


@pytest.mark.parametrize("db", [-6.0, -20.0])
@pytest.mark.parametrize("delay_ms", [20, 200, 400])
def test_an_echo_is_known_for_one(delay_ms: int, db: float) -> None:
    played, presence = voice(3.0), Presence()
    heard = echo_of(played, delay_ms * HZ // 1000, db)
    for at in range(0, played.size, FRAME_SAMPLES):
        presence.hear(heard[at : at + FRAME_SAMPLES], played[at : at + FRAME_SAMPLES])
        assert presence.present


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 700), min_size=1, max_size=12), begins=st.integers(0, 2000))
def test_any_chunking_of_the_microphone_gives_the_same(cuts: list[int], begins: int) -> None:
    heard = voice(0.6, seed=2)
    played = Reference()
    played.say(voice(0.2), HZ, begins / HZ)
    whole = Canceller(played.read).push(heard)
    canceller, at, pieces = Canceller(played.read), 0, []
    while at < heard.size:
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(canceller.push(heard[at : at + size]))
        at += size
    assert (np.concatenate(pieces)[: whole.size] == whole).all() and sum(p.size for p in pieces) == whole.size


def test_where_nothing_is_played_sound_passes_as_it_came_and_again_after_a_while() -> None:
    heard = voice(3.0)
    played = Reference()
    played.say(voice(0.2, seed=4), HZ, 0.5)
    clean = Canceller(played.read).push(heard)
    assert clean.size == heard.size
    assert (clean[: HZ // 2] == heard[: HZ // 2]).all()
    awake = slice(HZ, HZ + 1600)
    assert (clean[awake] != heard[awake]).any()
    last = int(0.7 * HZ) + HANGOVER_SAMPLES + 2 * FRAME_SAMPLES
    assert (clean[last:] == heard[last:]).all()


def test_the_delay_of_the_canceller_is_what_is_told_of_it() -> None:
    heard = np.zeros(HZ, np.int16)
    heard[8000:8160] = (8000 * np.sin(np.arange(160) * 2 * np.pi * 600 / HZ)).astype(np.int16)
    clean = Canceller(lambda first, count: np.zeros(count, np.int16)).push(heard).astype(float)
    lag = int(np.correlate(clean, heard.astype(float), "full").argmax()) - (heard.size - 1)
    assert abs(lag - DELAY_SAMPLES) <= 2


def test_what_is_given_back_in_the_middle_of_a_frame_is_not_given_twice() -> None:
    canceller = Canceller(lambda first, count: np.zeros(count, np.int16))
    given = [canceller.push(voice(0.025)), canceller.rest(), canceller.push(voice(0.035)), canceller.rest()]
    assert sum(piece.size for piece in given) == canceller.position == 0.06 * HZ


def test_pieces_that_leave_in_time_or_ahead_of_it_are_laid_end_to_end() -> None:
    sound = voice(1.0, hz=24_000)
    late, ahead = Reference(), Reference()
    for piece in range(50):
        samples = sound[piece * 480 : (piece + 1) * 480]
        late.say(samples, 24_000, 5.0 + piece * 0.02 + 0.01 * (piece % 3))
        ahead.say(samples, 24_000, 5.0 if piece < 15 else 5.0 + (piece - 15) * 0.02)
    one, other = late.read(5 * HZ, HZ), ahead.read(5 * HZ, HZ)
    assert one is not None and other is not None
    assert (one[:15_000] == other[:15_000]).all() and level_db(one[:15_000]) > 60


def test_after_a_pause_sound_begins_when_it_leaves_and_what_was_cut_off_is_not_played() -> None:
    reference = Reference()
    reference.say(voice(0.5), HZ, 1.0)
    reference.cut(1.2)
    reference.say(voice(0.1, seed=5), HZ, 2.0)
    found = reference.read(HZ, 2 * HZ)
    assert found is not None
    assert (found[:3200] == voice(0.5)[:3200]).all()
    assert not found[3200:HZ].any()
    assert (found[HZ : HZ + 1600] == voice(0.1, seed=5)).all()
    assert reference.read(6 * HZ, 160) is None


def test_the_microphone_is_placed_by_its_least_late_sound() -> None:
    time, chance = MicrophoneTime(), np.random.default_rng(1)
    for piece in range(100):
        time.arrived(0.02, 10.0 + (piece + 1) * 0.02 + (0.0 if piece % 10 == 0 else chance.uniform(0, 0.3)))
    assert time.of(HZ) == pytest.approx((10.0 + 1.0) * HZ, abs=0.005 * HZ)
    time.arrived(0.02, 40.0)  # it was off for a long time
    assert time.of(int(2.02 * HZ)) == pytest.approx(40.0 * HZ, abs=0.005 * HZ)


def test_our_voice_is_taken_out_of_what_comes_back_however_it_travels() -> None:
    """Sound leaves 300 ms ahead and comes back in pieces of 100 ms that are late by up to 40 ms."""
    clock, chance = ManualClock(100.0), np.random.default_rng(2)
    loop = EchoLoop(clock)
    loop.choose("auto", "websocket")
    played = voice(4.0)
    heard, clean, sent = echo_of(played, 3200, -6.0), [], 0
    for at in range(0, played.size, 1600):
        while sent < min(played.size, at + 4800):
            loop.said(played[sent : sent + 1600], HZ)
            sent += 1600
        clock.stand_at(100.0 + (at + 1600) / HZ + chance.uniform(0, 0.04))
        loop.arrived(1600, HZ)
        clean.append(loop.cleaned(heard[at : at + 1600]))
    after = np.concatenate(clean)
    assert level_db(after[2 * HZ :]) < level_db(heard[2 * HZ :]) - 20


def talk_over_an_echo(wish: str) -> SessionDriver:
    """A client whose loudspeaker is heard by its microphone at -6 dB and 100 ms later; nobody speaks."""
    # So that every voice is told at once, and not only one that wants the word.
    detection = {"type": "server_vad", "interrupt_response": False}
    driver = SessionDriver(
        reply=None,
        settings={"audio": {"input": {"turn_detection": detection}}, "x_agogic": {"echo_cancellation": wish}},
    )
    content = [{"type": "input_text", "text": "Count."}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    driver.send(type="response.create")
    ask = driver.asked(wire.Respond)[-1]
    said = voice(2.0, hz=24_000)
    driver.worker(wire.AudioOut(ask.session, ask.generation, 0, said.tobytes(), [], []))
    driver.worker(wire.ResponseDone(ask.session, ask.generation, "completed", "one two", wire.ResponseStats()))
    air = np.concatenate([np.zeros(2400, np.int16), (said / 2).astype(np.int16), np.zeros(24_000, np.int16)])
    for at in range(0, air.size, 480):
        pcm = air[at : at + 480].astype("<i2").tobytes()
        driver.send(type="input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
        driver.advance(0.02)
    return driver


def test_an_agent_does_not_interrupt_itself_over_a_loudspeaker() -> None:
    alone = talk_over_an_echo("off")
    assert alone.of("input_audio_buffer.speech_started"), "or the test shows nothing"
    cancelled = talk_over_an_echo("auto")
    assert not cancelled.of("input_audio_buffer.speech_started")
    assert cancelled.last("response.done")["response"]["status"] == "completed"


def test_without_the_library_who_asks_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_canceller, "_LIBRARY", "no_such_library")
    echo_canceller.is_installed.cache_clear()
    try:
        driver = SessionDriver(settings={"x_agogic": {"echo_cancellation": "on"}})
        told = driver.last("session.created")["session"]["x_agogic"]
        assert told["echo_cancellation"] == "on"
        assert told["notes"] == ["echo cancellation needs pywebrtc-audio: pip install pywebrtc-audio"]
        assert "notes" not in SessionDriver().last("session.created")["session"]["x_agogic"]
    finally:
        echo_canceller.is_installed.cache_clear()
