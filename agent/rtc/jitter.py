"""A jitter buffer for a listener that has no sound card: packets pass at once, and only a gap makes anyone wait.

A loudspeaker must be fed evenly, a recogniser need not be, so nothing is delayed while packets come in order. After a
gap the packets behind it wait for the missing one until a deadline that follows the network: as long as late packets
have lately been late, 60 ms at most, not at all where packets get lost but never overtaken. Then the gap is declared
lost and sound goes on, with the packet behind the gap at hand for forward error correction.

Without I/O or clock: the caller brings arrival times, asks `poll` for what is due and sleeps until `deadline_s`. RTP
(RFC 3550) sequence numbers have 16 bits and timestamps 32; both wrap.
"""

from __future__ import annotations

import dataclasses

RTP_CLOCK_HZ = 48_000
MAX_WAIT_MS = 60.0
STALL_MS = 120.0  # no packet for so long: the line goes quiet, and time must still pass for the turn detector
STALL_FRAME_MS = 20.0
MAX_STALL_MS = 5000.0  # then every turn has ended, and an idle line should cost nothing
MAX_GAP_TICKS = RTP_CLOCK_HZ  # a longer gap (a suspended sender) counts as one second
MAX_HELD_PACKETS = 64
_RESTART_DISTANCE = 500  # a sequence number further off than this is another stream
_CONCEALABLE_TICKS = RTP_CLOCK_HZ * 5 // 2000  # Opus conceals multiples of 2.5 ms
_FIRST_WAIT_MS = 20.0
_WAIT_DECAY = 0.85


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """Sound that arrived."""

    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """Sound that did not arrive in time, `ticks` of the 48 kHz RTP clock long, just before the packet `behind` it."""

    ticks: int
    behind: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Quiet:
    """The sender said nothing (DTX) or the network did (stall) for `ticks`."""

    ticks: int


Piece = Packet | Lost | Quiet


@dataclasses.dataclass(slots=True)
class JitterStats:
    """Counts since the call began, in packets where not named otherwise."""

    received: int = 0
    lost: int = 0
    late: int = 0
    reordered: int = 0
    stalled_ms: float = 0.0


class LossMeter:
    """What share of the packets was lost since it was asked last."""

    def __init__(self) -> None:
        self._received = self._lost = 0

    def share(self, stats: JitterStats) -> float | None:
        """None where none was expected. Counts that begin anew, as with another stream, are counted from there."""
        anew = stats.received < self._received
        received = stats.received - (0 if anew else self._received)
        lost = max(0, stats.lost - (0 if anew else self._lost))  # a late packet takes back an earlier loss
        self._received, self._lost = stats.received, stats.lost
        return lost / (received + lost) if received + lost else None


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    timestamp: int
    payload: bytes
    arrived_s: float


class JitterBuffer:
    """Packets of one RTP stream in any order in, pieces of sound in order out."""

    def __init__(self) -> None:
        self.stats = JitterStats()
        self.wait_ms = _FIRST_WAIT_MS
        self._held: dict[int, _Held] = {}  # by extended sequence number
        self._next: int | None = None  # extended sequence number to be heard next
        self._timestamp = 0  # of the next packet if the sender does not pause
        self._frame_ticks = 960
        self._given_up: dict[int, float] = {}  # lost packets and when the one behind them came
        self._stall_from_s = 0.0
        self._filled_ticks = 0  # silence already put where a pause may turn out to have been

    def add(self, sequence: int, timestamp: int, payload: bytes, frame_ticks: int, now_s: float) -> list[Piece]:
        """A packet of `frame_ticks` arrived; what can be heard because of it. An empty payload only moves the count."""
        self.stats.received += 1
        if self._next is None:
            self._begin(sequence, timestamp, now_s)
        extended = self._extend(sequence)
        assert self._next is not None
        if abs(extended - self._next) > _RESTART_DISTANCE:
            self._begin(sequence, timestamp, now_s)
            extended = sequence
        if extended < self._next:
            self._learn_lateness(extended, now_s)
            return []
        if extended in self._held:
            return []
        self._frame_ticks = frame_ticks or self._frame_ticks
        if self._held and extended < max(self._held):
            self.stats.reordered += 1
            first_behind = min(held.arrived_s for number, held in self._held.items() if number > extended)
            self._wait_at_least((now_s - first_behind) * 1000)
        self._held[extended] = _Held(timestamp, payload, now_s)
        return self.poll(now_s)

    def poll(self, now_s: float) -> list[Piece]:
        """Pieces that are due at `now_s`."""
        pieces: list[Piece] = []
        while self._held:
            assert self._next is not None
            if self._next not in self._held:
                if now_s < self._gap_deadline_s() and len(self._held) < MAX_HELD_PACKETS:
                    break
                pieces += self._give_up(now_s)
            pieces += self._release(now_s)
        while not self._held and self._stalls() and now_s >= self._stall_deadline_s():
            self._stall_from_s += STALL_FRAME_MS / 1000
            self._filled_ticks += int(STALL_FRAME_MS * RTP_CLOCK_HZ / 1000)
            self.stats.stalled_ms += STALL_FRAME_MS
            pieces.append(Quiet(int(STALL_FRAME_MS * RTP_CLOCK_HZ / 1000)))
        return pieces

    @property
    def deadline_s(self) -> float | None:
        """When `poll` will have something even if no packet comes; None before the first packet and on a dead line."""
        if not self._held and not self._stalls():
            return None
        return self._gap_deadline_s() if self._held else self._stall_deadline_s()

    def _stalls(self) -> bool:
        return self._next is not None and self._filled_ticks < MAX_STALL_MS * RTP_CLOCK_HZ / 1000

    def _begin(self, sequence: int, timestamp: int, now_s: float) -> None:
        self._held.clear()
        self._given_up.clear()
        self._next = sequence
        self._timestamp = timestamp
        self._stall_from_s = now_s
        self._filled_ticks = 0

    def _extend(self, sequence: int) -> int:
        """The 16-bit number as a count that does not wrap, near the one expected."""
        assert self._next is not None
        offset = (sequence - self._next) & 0xFFFF
        return self._next + (offset if offset < 0x8000 else offset - 0x10000)

    def _gap_deadline_s(self) -> float:
        return min(held.arrived_s for held in self._held.values()) + self.wait_ms / 1000

    def _stall_deadline_s(self) -> float:
        return self._stall_from_s + STALL_MS / 1000

    def _wait_at_least(self, lateness_ms: float) -> None:
        self.wait_ms = min(MAX_WAIT_MS, max(self.wait_ms, 1.25 * lateness_ms))

    def _learn_lateness(self, extended: int, now_s: float) -> None:
        """A packet came after its turn: had we waited longer, it would have been heard."""
        missed_s = self._given_up.pop(extended, None)
        if missed_s is not None:
            self.stats.late += 1
            self.stats.lost -= 1
            self._wait_at_least((now_s - missed_s) * 1000)

    def _give_up(self, now_s: float) -> list[Piece]:
        """Declares everything before the first held packet lost."""
        assert self._next is not None
        first = min(self._held)
        behind = self._held[first]
        for number in range(self._next, first):
            self._given_up[number] = behind.arrived_s
        while len(self._given_up) > MAX_HELD_PACKETS:
            del self._given_up[next(iter(self._given_up))]
        missing = first - self._next
        self.stats.lost += missing
        self.wait_ms *= _WAIT_DECAY
        self._next = first
        ticks = self._ticks_since_expected(behind.timestamp)
        if not 0 < ticks <= MAX_GAP_TICKS:
            ticks = min(missing * self._frame_ticks, MAX_GAP_TICKS)
        ticks -= ticks % _CONCEALABLE_TICKS
        self._timestamp = behind.timestamp
        owed = ticks - self._filled_ticks
        self._filled_ticks = 0
        return [Lost(owed, behind.payload)] if owed > 0 else []

    def _release(self, now_s: float) -> list[Piece]:
        assert self._next is not None
        held = self._held.pop(self._next)
        self._next += 1
        pieces: list[Piece] = []
        pause = self._ticks_since_expected(held.timestamp)
        if pause > 0:
            owed = min(pause, MAX_GAP_TICKS) - self._filled_ticks
            if owed > 0:
                pieces.append(Quiet(owed))
        self._filled_ticks = 0
        self._stall_from_s = now_s
        self._timestamp = (held.timestamp + (self._frame_ticks if held.payload else 0)) & 0xFFFFFFFF
        if held.payload:
            pieces.append(Packet(held.payload))
        return pieces

    def _ticks_since_expected(self, timestamp: int) -> int:
        difference = (timestamp - self._timestamp) & 0xFFFFFFFF
        return difference if difference < 0x80000000 else difference - 0x100000000
