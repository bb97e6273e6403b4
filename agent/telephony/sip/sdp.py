"""What two phones agree on (RFC 4566, RFC 3264): where sound goes, in which codec, in which directions.

One audio stream of plain RTP; every other stream that is offered is refused in its place, as section 6 wants.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
CodecName = Literal["G722", "opus", "PCMU", "PCMA"]

MEDIA_TYPE = "application/sdp"
_STATIC: dict[int, tuple[CodecName, int]] = {0: ("PCMU", 8000), 8: ("PCMA", 8000), 9: ("G722", 8000)}
# Wide band first; of the two ways to have it, the one that costs less.
PREFERRED: tuple[CodecName, ...] = ("G722", "opus", "PCMU", "PCMA")
_CLOCK_HZ: dict[CodecName, int] = {"G722": 8000, "opus": 48_000, "PCMU": 8000, "PCMA": 8000}
_OUR_TYPES: dict[CodecName, int] = {"G722": 9, "opus": 107, "PCMU": 0, "PCMA": 8}
_OUR_EVENTS_TYPE = 101
_REVERSED: dict[Direction, Direction] = {
    "sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive",
}  # fmt: skip


class SdpError(Exception):
    """A description that cannot be used; `status` is the SIP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Codec:
    name: CodecName
    payload_type: int

    @property
    def clock_hz(self) -> int:
        """Of RTP's timestamps, which for G.722 is not the rate of the samples."""
        return _CLOCK_HZ[self.name]


@dataclass(frozen=True)
class Description:
    """The other side's. `events_type` is the payload type of telephone events, None where it takes none."""

    host: str
    port: int
    codecs: tuple[Codec, ...]
    events_type: int | None
    direction: Direction
    streams: tuple[str, ...]  # the m= lines as they came, for the answer
    audio_index: int


@dataclass(frozen=True)
class Agreed:
    """What is in effect for one call, from our side: `direction` sendonly means that only we send."""

    host: str
    port: int
    codec: Codec
    events_type: int | None
    direction: Direction


@dataclass
class _Stream:
    line: str
    host: str = ""
    direction: Direction | None = None
    maps: dict[int, tuple[str, int]] = field(default_factory=dict)


def parse(body: bytes) -> Description:
    """Raises `SdpError`."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise SdpError(400, "the description is no UTF-8") from error
    streams, host, direction = _read(text)
    for index, stream in enumerate(streams):
        parts = stream.line.split()
        if len(parts) >= 4 and parts[0] == "audio" and parts[2] in ("RTP/AVP", "RTP/AVPF") and parts[1] != "0":
            return _described(stream, index, streams, stream.host or host, stream.direction or direction)
    raise SdpError(488, "there is no audio over RTP/AVP in the offer")


def _read(text: str) -> tuple[list[_Stream], str, Direction]:
    streams: list[_Stream] = []
    host = ""
    direction: Direction = "sendrecv"
    for line in text.replace("\r\n", "\n").split("\n"):
        kind, equals, value = line.partition("=")
        if not line:
            continue
        if equals != "=" or len(kind) != 1:
            raise SdpError(400, f"no line of a description: {line[:40]!r}")
        here = streams[-1] if streams else None
        if kind == "m":
            streams.append(_Stream(value))
        elif kind == "c":
            address = _address(value)
            if here is None:
                host = address
            else:
                here.host = address
        elif kind == "a" and value in _REVERSED:
            wanted = next(known for known in _REVERSED if known == value)
            if here is None:
                direction = wanted
            else:
                here.direction = wanted
        elif kind == "a" and value.startswith("rtpmap:") and here is not None:
            number, _, name = value.removeprefix("rtpmap:").partition(" ")
            encoding, _, rest = name.partition("/")
            clock = rest.partition("/")[0]
            if number.isdecimal() and clock.isdecimal():
                here.maps[int(number)] = (encoding.strip(), int(clock))
    return streams, host, direction


def _address(value: str) -> str:
    parts = value.split()
    if len(parts) != 3 or parts[0] != "IN" or parts[1] not in ("IP4", "IP6"):
        raise SdpError(400, f"no connection line: {value[:40]!r}")
    host = parts[2].partition("/")[0]
    try:
        if ipaddress.ip_address(host).is_multicast:
            raise SdpError(488, "sound over multicast is not served")
    except ValueError as error:
        raise SdpError(488, f"{host[:40]!r} is a name; an IP address is needed") from error
    return host


def _described(stream: _Stream, index: int, streams: list[_Stream], host: str, direction: Direction) -> Description:
    _, port, _, *types = stream.line.split()
    if not host:
        raise SdpError(400, "there is no connection line")
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise SdpError(400, f"port {port[:20]!r}")
    codecs: list[Codec] = []
    events_type = None
    for text in types:
        if not text.isdecimal() or int(text) > 127:
            raise SdpError(400, f"payload type {text[:20]!r}")
        number = int(text)
        name, clock_hz = stream.maps.get(number, _STATIC.get(number, ("", 0)))
        for known in PREFERRED:
            if name.upper() == known.upper() and clock_hz == _CLOCK_HZ[known]:
                codecs.append(Codec(known, number))
        if name.lower() == "telephone-event" and clock_hz == 8000:
            events_type = number
    if not codecs:
        raise SdpError(488, f"none of the codecs is served; there are {', '.join(PREFERRED)}")
    if host == "0.0.0.0":  # the hold of RFC 2543
        direction = "inactive" if direction == "inactive" else "sendonly"
    lines = tuple(other.line for other in streams)
    return Description(host, int(port), tuple(codecs), events_type, direction, lines, index)


@dataclass
class LocalMedia:
    """Our side of one call: `host` and `port` take the sound; `version` counts the descriptions made."""

    host: str
    port: int
    session: int
    preferred: tuple[CodecName, ...] = PREFERRED
    version: int = 0

    def offer(self) -> str:
        codecs = tuple(Codec(name, _OUR_TYPES[name]) for name in self.preferred)
        return self._described([self._audio(codecs, _OUR_EVENTS_TYPE, "sendrecv")])

    def agree(self, theirs: Description) -> Agreed:
        """Their description against ours. Raises `SdpError`."""
        for name in self.preferred:
            for codec in theirs.codecs:
                if codec.name == name:
                    direction = _REVERSED[theirs.direction]
                    return Agreed(theirs.host, theirs.port, codec, theirs.events_type, direction)
        raise SdpError(488, "there is no codec in common")

    def answer(self, theirs: Description, agreed: Agreed) -> str:
        """One m= line for each of theirs, with port 0 for what is refused."""
        streams = []
        for index, line in enumerate(theirs.streams):
            if index == theirs.audio_index:
                streams.append(self._audio((agreed.codec,), agreed.events_type, agreed.direction))
            else:
                kind, _, *rest = line.split() if len(line.split()) >= 4 else ["audio", "0", "RTP/AVP", "0"]
                streams.append(f"m={kind} 0 {' '.join(rest)}\r\n")
        return self._described(streams)

    def _audio(self, codecs: tuple[Codec, ...], events_type: int | None, direction: Direction) -> str:
        types = [str(codec.payload_type) for codec in codecs]
        lines = []
        for codec in codecs:
            channels = "/2" if codec.name == "opus" else ""
            lines.append(f"a=rtpmap:{codec.payload_type} {codec.name}/{codec.clock_hz}{channels}")
            if codec.name == "opus":
                lines.append(f"a=fmtp:{codec.payload_type} useinbandfec=1")
        if events_type is not None:
            types.append(str(events_type))
            lines += [f"a=rtpmap:{events_type} telephone-event/8000", f"a=fmtp:{events_type} 0-15"]
        lines += ["a=ptime:20", f"a={direction}"]
        return f"m=audio {self.port} RTP/AVP {' '.join(types)}\r\n" + "".join(line + "\r\n" for line in lines)

    def _described(self, streams: list[str]) -> str:
        self.version += 1
        kind = "IP6" if ":" in self.host else "IP4"
        head = (
            f"v=0\r\no=agogic {self.session} {self.version} IN {kind} {self.host}\r\ns=agogic\r\n"
            f"c=IN {kind} {self.host}\r\nt=0 0\r\n"
        )
        return head + "".join(streams)
