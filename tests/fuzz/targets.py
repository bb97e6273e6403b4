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
            assert decoder.decode(wire.encode(message)[4:]) == message


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


TARGETS: dict[str, Target] = {"wire": wire, "sdp": sdp, "events": events, "wav": wav, "codes": codes}
# What coverage is measured of, by target.
INSTRUMENTED = {
    "wire": ["agent.wire"],
    "sdp": ["agent.rtc.description", "aiortc.sdp"],
    "events": ["agent.protocol", "agent.dialogue", "agent.audio"],
    "wav": ["worker.audio_files", "soundfile"],
    "codes": ["models.codec.code_file"],
}
CORPUS = Path(__file__).parent / "corpus"
