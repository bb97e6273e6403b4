"""Long frames are unmasked while they come in; whatever the pieces, the reader of frames sees the same messages."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transports.unmask import Unmasker


def frame(payload: bytes, key: bytes | None, first: int = 0x81) -> bytes:
    """Written from RFC 6455, section 5.2."""
    flag = 0x80 if key is not None else 0
    if len(payload) < 126:
        head = bytes([first, flag | len(payload)])
    elif len(payload) < 65_536:
        head = bytes([first, flag | 126]) + len(payload).to_bytes(2, "big")
    else:
        head = bytes([first, flag | 127]) + len(payload).to_bytes(8, "big")
    return head + (key + xored(payload, key) if key is not None else payload)


def xored(data: bytes, key: bytes) -> bytes:
    """As one long number: byte by byte, this would be most of the test's time."""
    keys = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(keys, "big")).to_bytes(len(data), "big")


LENGTHS = st.one_of(st.integers(0, 130), st.integers(65_530, 65_545), st.just(70_001))
COUNTING = bytes(i % 251 for i in range(70_001 + 4))
FRAMES = st.lists(st.tuples(LENGTHS, st.none() | st.binary(min_size=4, max_size=4)), max_size=4)


@settings(deadline=None)
@given(FRAMES, st.lists(st.integers(1, 70_000) | st.integers(1, 15), min_size=1, max_size=20))
def test_any_pieces_of_a_stream_give_the_same_messages(frames: list[tuple[int, bytes | None]], cuts: list[int]) -> None:
    stream, expected = b"", b""
    for number, (length, key) in enumerate(frames):
        payload = COUNTING[number : number + length]
        stream += frame(payload, key)
        expected += frame(payload, key if length < 65_536 else None)
    unmasker, given_on, at, turn = Unmasker(), b"", 0, 0
    while at < len(stream):
        piece = stream[at : at + cuts[turn % len(cuts)]]
        at, turn = at + len(piece), turn + 1
        given_on += unmasker.feed(piece)
    assert given_on == expected


def test_short_frames_pass_as_they_are() -> None:
    data = frame(b"hello", b"abcd") * 3
    assert Unmasker().feed(data) is data


def test_a_heads_bytes_are_held_back_until_it_is_complete() -> None:
    data = frame(bytes(65_536), b"\1\2\3\4")
    unmasker = Unmasker()
    assert unmasker.feed(data[:13]) == b""
    assert unmasker.feed(data[13:14]) == b"\x81\x7f" + (65_536).to_bytes(8, "big")
    assert unmasker.feed(data[14:]) == bytes(65_536)
