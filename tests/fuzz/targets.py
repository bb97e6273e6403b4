"""What reads bytes that somebody else wrote. Each may refuse them in the one way that its callers expect, and nothing
else: no other exception, no hanging, no memory in proportion to what a header merely claims."""

from __future__ import annotations

import asyncio
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

Target = Callable[[bytes], None]

_loop = asyncio.new_event_loop()
_scratch = Path(tempfile.gettempdir()) / "agogic-fuzz"


def wire(data: bytes) -> None:
    """Frames of the local socket, in both directions."""
    import msgspec

    from agent import wire

    async def frames() -> list[bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        found = []
        while (payload := await wire.read_frame(reader)) is not None:
            found.append(payload)
        return found

    try:
        payloads = _loop.run_until_complete(frames())
    except wire.WireError:
        payloads = [data]
    for payload in payloads:
        for decoder in (wire.to_worker_decoder, wire.from_worker_decoder):
            try:
                message = decoder.decode(payload)
            except msgspec.DecodeError:
                continue
            again = decoder.decode(wire.encode(message)[4:])
            assert wire.encode(again) == wire.encode(message)  # not the messages: a NaN equals nothing


def sdp(data: bytes) -> None:
    """Offers of WebRTC calls."""
    from agent.rtc.description import BadOffer, finish_answer, prepare_offer

    try:
        offer = prepare_offer(data.decode("utf-8", "replace"))
    except BadOffer:
        return
    answer = finish_answer(offer.text, offer)
    assert answer.count("\nm=") == len(offer.declined)


def events(data: bytes) -> None:
    """Client events, through a whole session."""
    from tests.support.session_driver import SessionDriver

    driver = SessionDriver(start=False)
    for line in data.split(b"\n")[:8]:
        caused = driver.send_raw(line)
        assert all(event["error"]["code"] != "internal_error" for event in caused if event["type"] == "error")


def streams(data: bytes) -> None:
    """What providers of telephony send over a WebSocket: the first byte says which, a line is a message, and one that
    begins with 0 is binary."""
    from agent.telephony.stream_server import STREAMS
    from agent.telephony.streams.stream import Heard, StreamError

    provider = list(STREAMS)[data[0] % len(STREAMS)] if data else "twilio"
    stream = STREAMS[provider]()
    for line in data[1:].split(b"\n")[:32]:
        try:
            happened = stream.receive(line[1:] if line.startswith(b"\0") else line.decode("utf-8", "replace"))
        except StreamError as error:
            assert 1000 < error.code < 5000 and str(error)
            return
        heard = sum(one.samples.size for one in happened if isinstance(one, Heard))
        assert heard <= 60 * stream.incoming.rate_hz  # what is missing becomes silence, but not hours of it


def audiosocket(data: bytes) -> None:
    """Asterisk's stream of messages, whole and in pieces: both say the same."""
    from agent.telephony.audiosocket import AudioSocket, AudioSocketError

    said = []
    for size in (len(data) or 1, 7):
        socket = AudioSocket()
        seen: list[str] = []
        try:
            for first in range(0, len(data), size):
                seen += map(repr, socket.receive(data[first : first + size]))
        except AudioSocketError as error:
            seen = [str(error)]
        said.append((seen, socket.call_id, socket.rate_hz))
    assert said[0] == said[1]


def sip(data: bytes) -> None:
    """A datagram, the same in a TCP stream, and all that is due in the next two minutes."""
    from agent.clock import ManualClock
    from agent.telephony.sip.dialog import Local
    from agent.telephony.sip.message import Malformed, Peer, StreamFraming, parse
    from agent.telephony.sip.user_agent import UserAgent

    clock = ManualClock()
    agent = UserAgent(Local("192.0.2.1", 5060), clock)
    try:
        framed = StreamFraming().receive(data)
    except Malformed:
        framed = []
    agent.receive(data, Peer("udp", "192.0.2.7", 5062))
    for message in framed[:8]:
        agent.receive(message, Peer("tcp", "192.0.2.7", 5062))
    for _ in range(60):
        due_s = agent.next_s()
        if due_s is None or due_s > clock.now_s() + 120.0:
            break
        clock.advance(max(0.0, due_s - clock.now_s()))
        agent.poll()
    for sent, _ in agent.take_sent():
        if sent.startswith(b"SIP/2.0 "):  # repeats what was wrong with its request
            assert 100 <= int(sent[8:11]) < 700
        else:
            parse(sent)


def rtp(data: bytes) -> None:
    """Packets of a call, each behind its length; the first byte says which codec was agreed."""
    from agent.telephony.sip.rtp import RtpSession, Sound
    from agent.telephony.sip.sdp import Agreed, Codec, CodecName

    kinds: list[tuple[CodecName, int]] = [("PCMU", 0), ("PCMA", 8), ("G722", 9), ("opus", 107)]
    name, number = kinds[data[0] % len(kinds)] if data else kinds[0]
    phone = ("192.0.2.7", 4000)
    session = RtpSession(Agreed(*phone, Codec(name, number), events_type=101, direction="sendrecv"), phone[0])
    at, now_s, samples = 1, 0.0, 0
    while at + 2 <= len(data) and now_s < 2.0:
        size = int.from_bytes(data[at : at + 2], "big")
        happened = session.receive(data[at + 2 : at + 2 + size], phone, now_s) + session.poll(now_s)
        samples += sum(one.samples.size for one in happened if isinstance(one, Sound))
        at, now_s = at + 2 + size, now_s + 0.02
    assert samples <= 20 * session.line_hz


def wav(data: bytes) -> None:
    """Recordings that a question or a voice is read from."""
    from worker.audio_files import AudioFileError, read_question

    try:
        samples = read_question(_written(data, "question.wav"))
    except AudioFileError:
        return
    assert samples.ndim == 1 and abs(samples).max() <= 1.0


def codes(data: bytes) -> None:
    """Files of speech codes, sealed with the checksum that every change would otherwise be refused for."""
    from models.codec.code_file import CodeFileError, read_codes

    try:
        header, found = read_codes(_written(data + zlib.crc32(data).to_bytes(4, "little"), "speech.agc"))
    except CodeFileError:
        return
    assert found.semantic.numel() == header.groups


def _written(data: bytes, name: str) -> Path:
    _scratch.mkdir(exist_ok=True)
    path = _scratch / name
    path.write_bytes(data)
    return path


TARGETS: dict[str, Target] = {
    "wire": wire,
    "sdp": sdp,
    "events": events,
    "streams": streams,
    "audiosocket": audiosocket,
    "sip": sip,
    "rtp": rtp,
    "wav": wav,
    "codes": codes,
}
# What coverage is measured of, by target.
INSTRUMENTED = {
    "wire": ["agent.wire"],
    "sdp": ["agent.rtc.description", "aiortc.sdp"],
    "events": ["agent.protocol", "agent.dialogue", "agent.audio"],
    "streams": ["agent.telephony.streams", "agent.audio"],
    "audiosocket": ["agent.telephony.audiosocket"],
    "sip": ["agent.telephony.sip", "sipmessage"],
    "rtp": ["agent.telephony.sip.rtp", "agent.telephony.sound", "agent.rtc.jitter"],
    "wav": ["worker.audio_files", "soundfile"],
    "codes": ["models.codec.code_file"],
}
CORPUS = Path(__file__).parent / "corpus"
