"""The jitter buffer: nothing waits without a gap, nothing is heard twice or out of order, time is never lost."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.rtc.jitter import MAX_WAIT_MS, RTP_CLOCK_HZ, JitterBuffer, JitterStats, LossMeter, Lost, Packet, Piece, Quiet

FRAME_TICKS = 960
FRAME_S = 0.02


class Line:
    """A network in front of a buffer: packets are numbered from 0 and carry their number as payload."""

    def __init__(self, first_sequence: int = 65_530, first_timestamp: int = 0xFFFF_F000) -> None:
        self.buffer = JitterBuffer()
        self.heard: list[tuple[float, Piece]] = []
        self._sequence = first_sequence
        self._timestamp = first_timestamp

    def arrive(self, number: int, at_s: float, pause_ticks: int = 0) -> None:
        self.wait_until(at_s)
        timestamp = self._timestamp + number * FRAME_TICKS + pause_ticks
        pieces = self.buffer.add(
            (self._sequence + number) & 0xFFFF, timestamp & 0xFFFF_FFFF, payload(number), FRAME_TICKS, at_s
        )
        self.heard += [(at_s, piece) for piece in pieces]

    def wait_until(self, at_s: float) -> None:
        while (deadline_s := self.buffer.deadline_s) is not None and deadline_s <= at_s:
            self.heard += [(deadline_s, piece) for piece in self.buffer.poll(deadline_s)]

    def numbers(self) -> list[int]:
        return [int.from_bytes(piece.payload, "big") for _, piece in self.heard if isinstance(piece, Packet)]

    def ticks(self) -> int:
        lengths = [FRAME_TICKS if isinstance(piece, Packet) else piece.ticks for _, piece in self.heard]
        return sum(lengths)


def payload(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_packets_in_order_pass_without_any_delay_across_both_wraps() -> None:
    line = Line()
    for number in range(20):
        line.arrive(number, number * FRAME_S)
    assert line.heard == [(number * FRAME_S, Packet(payload(number))) for number in range(20)]


def test_jitter_without_reordering_delays_nothing() -> None:
    line = Line()
    for number, late_s in enumerate([0.0, 0.035, 0.02, 0.0, 0.05, 0.035, 0.015, 0.0]):
        line.arrive(number, number * FRAME_S + late_s)
        assert line.numbers()[-1] == number


def test_a_lost_packet_costs_one_short_wait_and_is_named_with_the_packet_behind_it() -> None:
    line = Line()
    for number in (0, 1, 3, 4, 5):
        line.arrive(number, number * FRAME_S)
    line.wait_until(0.2)
    lost = [(at_s, piece) for at_s, piece in line.heard if isinstance(piece, Lost)]
    assert [piece for _, piece in lost] == [Lost(FRAME_TICKS, payload(3))]
    assert lost[0][0] - 3 * FRAME_S <= 0.021
    assert line.numbers() == [0, 1, 3, 4, 5]
    assert line.buffer.stats.lost == 1


def test_a_packet_that_overtook_its_neighbour_is_put_back_in_place() -> None:
    line = Line()
    line.arrive(0, 0.0)
    line.arrive(2, 0.040)
    line.arrive(1, 0.045)
    assert line.numbers() == [0, 1, 2]
    assert line.buffer.stats.lost == 0
    assert line.buffer.stats.reordered == 1


def test_the_wait_grows_with_late_packets_and_shrinks_when_gaps_are_losses() -> None:
    line = Line()
    line.arrive(0, 0.0)
    line.arrive(2, 0.040)
    line.arrive(1, 0.085)  # 45 ms late: given up, but now we know
    assert 45 < line.buffer.wait_ms <= MAX_WAIT_MS
    for number in range(3, 60):
        if number % 5:
            line.arrive(number, number * FRAME_S + 0.05)
    assert line.buffer.wait_ms < 20


def test_the_wait_never_exceeds_its_limit() -> None:
    line = Line()
    line.arrive(0, 0.0)
    for gap in range(10):
        line.arrive(3 * gap + 3, (3 * gap + 3) * FRAME_S)
        line.arrive(3 * gap + 2, (3 * gap + 3) * FRAME_S + 0.3)
        assert line.buffer.wait_ms <= MAX_WAIT_MS


def test_a_pause_of_the_sender_is_silence_of_the_same_length() -> None:
    line = Line()
    line.arrive(0, 0.0)
    line.arrive(1, 0.4, pause_ticks=18_240)
    quiet = [piece.ticks for _, piece in line.heard if isinstance(piece, Quiet)]
    assert sum(quiet) == 18_240
    assert line.ticks() == 18_240 + 2 * FRAME_TICKS


def test_time_goes_on_for_the_turn_detector_when_the_line_goes_dead_and_stops_after_a_while() -> None:
    line = Line()
    line.arrive(0, 0.0)
    line.wait_until(1.0)
    seconds = line.ticks() / RTP_CLOCK_HZ
    assert 0.8 < seconds < 1.0
    line.wait_until(60.0)
    assert 5.0 < line.ticks() / RTP_CLOCK_HZ < 5.5
    assert line.buffer.deadline_s is None


def test_what_a_stall_held_back_is_heard_when_it_comes() -> None:
    line = Line()
    for number in range(3):
        line.arrive(number, number * FRAME_S)
    for number in range(3, 20):
        line.arrive(number, 0.5 + number * 0.0001)
    assert line.numbers() == list(range(20))


def test_another_stream_on_the_same_receiver_starts_afresh() -> None:
    line = Line()
    line.arrive(0, 0.0)
    pieces = line.buffer.add(20_000, 5, b"new", FRAME_TICKS, 0.02)
    assert pieces == [Packet(b"new")]
    assert line.buffer.add(20_001, 965, b"next", FRAME_TICKS, 0.04) == [Packet(b"next")]


@settings(max_examples=150, deadline=None)
@given(
    delays_ms=st.lists(st.one_of(st.none(), st.floats(0, 120)), min_size=1, max_size=60),
    twice=st.lists(st.integers(0, 59), max_size=5),
)
def test_whatever_the_network_does_order_holds_and_no_time_is_lost(
    delays_ms: list[float | None], twice: list[int]
) -> None:
    """None is a lost packet. Everything sent between the first and the last packet heard is accounted for, once."""
    arrivals = [
        (number * FRAME_S + delay / 1000, number) for number, delay in enumerate(delays_ms) if delay is not None
    ]
    arrivals += [(at_s + 0.001, number) for at_s, number in arrivals if number in twice]
    line = Line()
    for at_s, number in sorted(arrivals):
        line.arrive(number, at_s)
    line.wait_until(len(delays_ms) * FRAME_S + 0.5)
    numbers = line.numbers()
    assert all(one < two for one, two in itertools.pairwise(numbers))
    assert set(numbers) <= {number for _, number in arrivals}
    if numbers:
        spanned = (numbers[-1] - numbers[0] + 1) * FRAME_TICKS
        tail = 0
        for _, piece in reversed(line.heard):
            if isinstance(piece, Packet):
                break
            tail += piece.ticks
        assert line.ticks() - tail >= spanned


def test_the_share_lost_is_of_the_time_since_it_was_asked_last() -> None:
    meter = LossMeter()
    assert meter.share(JitterStats()) is None, "nothing was expected"
    assert meter.share(JitterStats(received=47, lost=3)) == 0.06
    assert meter.share(JitterStats(received=97, lost=3)) == 0.0
    assert meter.share(JitterStats(received=97, lost=3)) is None
    assert meter.share(JitterStats(received=147, lost=2)) == 0.0, "one given up came after all"
    assert meter.share(JitterStats(received=9, lost=1)) == 0.1, "another stream"
