"""What a provider is told when it asks what to do with a call: connect it to the media stream at this address."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import msgspec

_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'


@dataclass(frozen=True)
class Answer:
    body: str
    content_type: str


def twilio(stream_url: str) -> Answer:
    """TwiML. When the stream is closed there is nothing more to do, and Twilio hangs up."""
    stream = f"<Stream url={quoteattr(stream_url)}/>"
    return Answer(f"{_XML}<Response><Connect>{stream}</Connect></Response>", "text/xml")


def telnyx(stream_url: str) -> Answer:
    """TeXML."""
    stream = f'<Stream url={quoteattr(stream_url)} bidirectionalMode="rtp" bidirectionalCodec="PCMU"/>'
    return Answer(f"{_XML}<Response><Connect>{stream}</Connect></Response>", "text/xml")


def plivo(stream_url: str) -> Answer:
    """Plivo XML; `keepCallAlive` holds the call until the stream ends."""
    settings = 'bidirectional="true" keepCallAlive="true" contentType="audio/x-mulaw;rate=8000"'
    return Answer(f"{_XML}<Response><Stream {settings}>{escape(stream_url)}</Stream></Response>", "text/xml")


def vonage(stream_url: str, rate_hz: int, call_uuid: str) -> Answer:
    """NCCO."""
    endpoint = {
        "type": "websocket",
        "uri": stream_url,
        "content-type": f"audio/l16;rate={rate_hz}",
        "headers": {"uuid": call_uuid},
    }
    ncco = [{"action": "connect", "endpoint": [endpoint]}]
    return Answer(msgspec.json.encode(ncco).decode(), "application/json")


def exotel(stream_url: str) -> Answer:
    """What the Voicebot applet expects of a dynamic URL."""
    return Answer(msgspec.json.encode({"url": stream_url}).decode(), "application/json")
