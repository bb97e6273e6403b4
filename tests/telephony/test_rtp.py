"""Sound over RTP: codecs, keys, strangers, losses and their concealment, on a clock of the test's own."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from agent.telephony.sip.rtp import Key, RtpSession, Sound
from agent.telephony.sip.sdp import Agreed, Codec, CodecName
from agent.telephony.sip_line import SipLine
from agent.telephony.sound.codecs import line_codec
from agent.telephony.sound.concealment import Concealer
from tests.support.speech import order

PHONE = ("192.0.2.7", 4000)
TYPES: dict[CodecName, int] = {"PCMU": 0, "PCMA": 8, "G722": 9, "opus": 107}


def agreed(name: CodecName = "PCMU", **change: object) -> Agreed:
    fields = {"host": PHONE[0], "port": PHONE[1], "events_type": 101, "direction": "sendrecv"} | change
    return Agreed(codec=Codec(name, TYPES[name]), **fields)  # type: ignore[arg-type]


def packet(sequence: int, timestamp: int, payload: bytes, kind: int = 0, ssrc: int = 7) -> bytes:
    return struct.pack("!BBHII", 0x80, kind, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc) + payload


def sound_of(happened: list[Sound | Key]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int16), *[one.samples for one in happened if isinstance(one, Sound)]])


@pytest.mark.parametrize("name", TYPES)
def test_what_one_side_says_the_other_hears(name: CodecName) -> None:
    """Across the wrap of sequence numbers and timestamps too, which begin at random."""
    ours, theirs = RtpSession(agreed(name), PHONE[0]), RtpSession(agreed(name), PHONE[0])
    ours._sequence, ours._timestamp = 0xFFF0, 0xFFFFFF00
    size = ours.line_hz // 50
    speech = order(ours.line_hz)[20 * size : 70 * size].astype(np.int16)
    heard: list[Sound | Key] = []
    for index in range(speech.size // size):
        piece = speech[index * size : (index + 1) * size]
        heard += theirs.receive(ours.packet(piece, silent=False), PHONE, 0.02 * index)
    got = sound_of(heard)
    assert got.size == speech.size
    assert theirs.stats.lost == 0
    delays = range(0, ours.line_hz // 40, ours.line_hz // 8000)
    best = max(float(np.corrcoef(speech[: speech.size - d], got[d:])[0, 1]) for d in delays)
    assert best > 0.9


def test_a_key_in_many_packets_counts_once_and_the_next_one_again() -> None:
    session = RtpSession(agreed(), PHONE[0])
    happened = session.receive(packet(1, 0, bytes(160)), PHONE, 0.0)
    for number in range(6):
        event = struct.pack("!BBH", 5, 0x80 if number > 2 else 0x0A, 160 * (number + 1))
        happened += session.receive(packet(2 + number, 160, event, 101), PHONE, 0.02 * number)
    happened += session.receive(packet(8, 2000, struct.pack("!BBH", 11, 0x0A, 160), 101), PHONE, 0.3)
    assert [one.key for one in happened if isinstance(one, Key)] == ["5", "#"]


def test_a_strangers_packets_are_dropped_and_the_call_goes_on() -> None:
    session = RtpSession(agreed(), PHONE[0])
    assert session.receive(packet(1, 0, bytes(160)), ("198.51.100.9", 4000), 0.0) == []
    assert len(session.receive(packet(1, 0, bytes(160)), PHONE, 0.0)) == 1
    for source in (("198.51.100.9", 4000), (PHONE[0], 4999)):
        assert session.receive(packet(2, 160, bytes(160)), source, 0.02) == []
    assert session.strangers == 3
    assert session.remote == PHONE
    assert len(session.receive(packet(2, 160, bytes(160)), PHONE, 0.02)) == 1


def test_behind_nat_sound_goes_back_to_where_it_comes_from() -> None:
    session = RtpSession(agreed(host="10.0.0.5"), "192.0.2.7")
    assert session.remote == ("10.0.0.5", 4000)
    assert session.receive(packet(1, 0, bytes(160)), ("192.0.2.7", 61_000), 0.0)
    assert session.remote == ("192.0.2.7", 61_000)
    session.change(agreed(host="192.0.2.8"))
    assert session.remote == ("192.0.2.8", 4000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        bytes(11),
        packet(1, 0, bytes(160), 77),
        b"\x00" + packet(1, 0, bytes(160))[1:],
        b"\x8f" + packet(1, 0, b"")[1:],
        b"\x90" + packet(1, 0, b"\x00\x00\xff\xff")[1:],
        b"\xa0" + packet(1, 0, b"\x00")[1:],
        b"\xa0" + packet(1, 0, b"\xff")[1:],
        packet(1, 0, bytes(60_000)),
    ],
)
def test_what_is_no_sound_of_the_call_is_counted(data: bytes) -> None:
    session = RtpSession(agreed(), PHONE[0])
    assert session.receive(data, PHONE, 0.0) == []
    assert session.malformed == 1
    assert len(session.receive(packet(5, 800, bytes(160)), PHONE, 0.1)) == 1


def test_noise_for_opus_is_no_sound_and_no_error() -> None:
    session, rng = RtpSession(agreed("opus"), PHONE[0]), random.Random(1)
    for number in range(300):
        data = rng.randbytes(rng.randrange(1, 80))
        session.receive(packet(number, 960 * number, data, 107), PHONE, 0.02 * number)


@pytest.mark.parametrize("name", TYPES)
def test_a_lossy_network_delivers_or_conceals_nearly_everything(name: CodecName) -> None:
    """5 % lost, 30 ms of jitter: time goes on as if nothing had happened."""
    ours, theirs, rng = RtpSession(agreed(name), PHONE[0]), RtpSession(agreed(name), PHONE[0]), random.Random(3)
    size = ours.line_hz // 50
    speech = np.tile(order(ours.line_hz), 4)[: 1000 * size].astype(np.int16)
    arrivals = []
    for index in range(1000):
        data = ours.packet(speech[index * size : (index + 1) * size], silent=False)
        if rng.random() >= 0.05:
            arrivals.append((0.02 * index + rng.uniform(0, 0.03), data))
    arrivals.sort(key=lambda arrival: arrival[0])
    heard: list[Sound | Key] = []
    for at_s, data in arrivals:
        while theirs.deadline_s is not None and theirs.deadline_s < at_s:
            heard += theirs.poll(theirs.deadline_s + 1e-6)
        heard += theirs.receive(data, PHONE, at_s)
    heard += theirs.poll(20.1)
    total = sum(one.samples.size for one in heard if isinstance(one, Sound))
    assert 0.95 * speech.size <= total <= 1.02 * speech.size
    assert 20 <= theirs.stats.lost <= 80
    assert theirs.buffer.wait_ms <= 60.0


def test_another_codec_in_mid_call() -> None:
    session = RtpSession(agreed(), PHONE[0])
    (first,) = session.receive(packet(1, 0, bytes(160)), PHONE, 0.0)
    session.change(agreed("G722"))
    (second,) = session.receive(packet(2, 160, line_codec("G722").encode(np.zeros(320, np.int16)), 9), PHONE, 0.02)
    assert isinstance(first, Sound) and isinstance(second, Sound)
    assert (first.rate_hz, second.rate_hz, second.samples.size) == (8000, 16_000, 320)


def test_on_hold_nothing_is_sent_and_time_passes() -> None:
    session = RtpSession(agreed(direction="recvonly"), PHONE[0])
    assert not session.may_send
    before = session._timestamp
    session.pause(50)
    assert (session._timestamp - before) & 0xFFFFFFFF == 8000


@pytest.mark.parametrize("rate_hz", [8000, 16_000])
def test_a_lost_frame_of_a_voice_sounds_like_that_voice(rate_hz: int) -> None:
    times = np.arange(rate_hz) / rate_hz
    voice = sum(np.sin(2 * np.pi * 110 * k * times) / k for k in range(1, 12)) * 4000
    voice = voice.astype(np.int16)
    frame = rate_hz // 50
    concealer, out = Concealer(rate_hz), []
    for index in range(20):
        piece = voice[index * frame : (index + 1) * frame]
        out.append(concealer.lost(frame) if index == 10 else concealer.heard(piece))
    made_up = out[10].astype(float)
    truth = voice[10 * frame : 11 * frame].astype(float)
    assert np.corrcoef(made_up, truth)[0, 1] > 0.85
    joined = np.concatenate(out).astype(float)
    assert np.abs(np.diff(joined)).max() < 1.5 * np.abs(np.diff(voice.astype(float))).max()


def test_a_long_loss_fades_to_silence() -> None:
    concealer = Concealer(8000)
    for _ in range(5):
        concealer.heard((6000 * np.sin(np.arange(160) * 0.2)).astype(np.int16))
    pieces = [np.abs(concealer.lost(160)).max() for _ in range(5)]
    assert pieces[0] > 3000 and pieces == sorted(pieces, reverse=True) and pieces[-1] == 0


async def test_a_line_tells_each_second_what_share_of_the_callers_packets_was_lost() -> None:
    """Of the way there nothing is known over SIP, nor of the round trip."""
    told: list[tuple[float | None, float | None]] = []

    class Runner:
        output_rate_hz = 24_000

        def network(self, loss: float | None, round_trip_ms: float | None) -> None:
            told.append((loss, round_trip_ms))

        def feed_audio(self, pcm: bytes) -> None: ...

        def pull_speech(self, samples: int) -> None: ...

    line = SipLine(PHONE[0])
    await line.open("127.0.0.1", (0, 0))
    try:
        line.agree(agreed(host="127.0.0.1", port=9))
        line.runner = Runner()  # type: ignore[assignment]
        for number in range(100):
            if number % 10 != 5:
                line.datagram_received(packet(number, 160 * number, bytes(160)), ("127.0.0.1", 9))
                # What is waited for has been waited for: the clock is not the test's.
                line._take(line.rtp.poll(line._loop.time() + 1.0) if line.rtp and number % 10 == 9 else [])
            line.tick()
    finally:
        line.shut()
    assert told == [(0.1, None), (0.1, None)]
