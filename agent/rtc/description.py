"""SDP (RFC 8866) as far as a call needs it: what an offer must have, and what an answer says beyond aiortc's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiortc import sdp

MAX_SDP_BYTES = 64 * 1024
_SECTIONS = re.compile(r"^(?=m=)", re.MULTILINE)
_MEDIA = re.compile(r"m=(\w+) (\d{1,5})(?:/\d+)? (\S+) (.*)$", re.MULTILINE)
_MID = re.compile(r"^a=mid:(\S+)\r?$", re.MULTILINE)
_BUNDLE = re.compile(r"^a=group:BUNDLE([^\r\n]*)", re.MULTILINE)
_BUNDLE_ONLY = re.compile(r"^a=bundle-only\r?$", re.MULTILINE)
_ONE_WAY = re.compile(r"^a=(?:sendonly|inactive)\r?$", re.MULTILINE)
_OPUS = re.compile(r"^a=rtpmap:(\d+) opus/48000/2\r?$", re.IGNORECASE | re.MULTILINE)
_MDNS = re.compile(r"^a=candidate:.*\.local .*\r?\n", re.MULTILINE)


class BadOffer(Exception):
    """The offer cannot be answered; the message says why."""


@dataclass(frozen=True)
class Offer:
    """What of an offer is answered: `text` has the media lines that a call uses; `declined`, for each line of the
    offer, the answer that declines it, None where it is among the used. `mid` is the audio's. Without a channel
    (`has_channel`) nothing but sound is exchanged, and with `listens` False the client takes no sound."""

    text: str
    declined: tuple[str | None, ...]
    mid: str
    has_channel: bool
    listens: bool


def prepare_offer(text: str) -> Offer:
    """Checks an offer before any resource is spent on it, and takes out what must not be acted upon.

    A call uses the first audio line that it can and one data channel. Other lines are declined, as are those that the
    offer itself has switched off with port 0. Candidates with mDNS names are dropped: resolving them sends multicast
    and may take seconds, and the browser's own checks tell its address anyway. Raises `BadOffer`.
    """
    if not text.strip():
        raise BadOffer("the offer is empty: send the SDP of RTCPeerConnection.createOffer()")
    if len(text) > MAX_SDP_BYTES:
        raise BadOffer(f"the offer has {len(text)} characters; the limit is {MAX_SDP_BYTES}")
    if not text.startswith("v=0"):
        raise BadOffer("the offer is no SDP: it does not begin with v=0")
    head, *sections = _SECTIONS.split(_MDNS.sub("", text))
    lines = [_MediaLine(section) for section in sections]
    mids = {line.mid for line in lines}
    if any(not mids.issuperset(match[1].split()) for match in _BUNDLE.finditer(head)):
        raise BadOffer("the offer bundles media lines that it does not have")
    used = _used(lines)
    declined = tuple(None if line in used else line.declined() for line in lines)
    gone = mids - {line.mid for line in used}
    head = _BUNDLE.sub(lambda match: _bundle(mid for mid in match[1].split() if mid not in gone), head)
    prepared = head + "".join(line.text for line in used)
    try:
        sdp.SessionDescription.parse(prepared)
    except Exception as error:  # aiortc's parser raises whatever the malformed line leads to
        raise BadOffer(f"the offer is malformed SDP ({type(error).__name__}: {error})") from error
    audio = next(line for line in used if line.kind == "audio")
    return Offer(prepared, declined, audio.mid, len(used) > 1, audio.listens)


def finish_answer(text: str, offer: Offer) -> str:
    """Asks the browser for in-band error correction, for mono, and for no pauses in the packets; declines the rest."""
    match = _OPUS.search(text)
    if match is not None:
        fmtp = f"a=fmtp:{match[1]} minptime=10;useinbandfec=1;stereo=0;sprop-stereo=0;usedtx=0\r\n"
        end = text.index("\n", match.start()) + 1
        text = text[:end] + fmtp + text[end:]
    head, *sections = _SECTIONS.split(text)
    answered = iter(sections)
    return head + "".join(next(answered) if line is None else line for line in offer.declined)


class _MediaLine:
    """One `m=` line with what belongs to it, read only as far as choosing among them needs."""

    def __init__(self, text: str) -> None:
        match = _MEDIA.match(text)
        if match is None:
            raise BadOffer(f"the offer is malformed SDP: {text.splitlines()[0][:100]!r} is no media line")
        self.text = text
        self.kind, self._port, self._profile, self._formats = match.groups()
        mid = _MID.search(text)
        self.mid = mid[1] if mid is not None else ""

    @property
    def is_on(self) -> bool:
        """Port 0 switches it off, unless it says that it shares another line's port (RFC 8843)."""
        return int(self._port) != 0 or _BUNDLE_ONLY.search(self.text) is not None

    @property
    def listens(self) -> bool:
        """RFC 3264, section 5.1: what is neither said nor off goes both ways."""
        return _ONE_WAY.search(self.text) is None

    @property
    def has_opus(self) -> bool:
        return _OPUS.search(self.text) is not None

    def declined(self) -> str:
        """RFC 3264, section 6: the same line with port 0."""
        named = f"a=mid:{self.mid}\r\n" if self.mid else ""
        line = f"m={self.kind} 0 {self._profile} {self._formats.strip()}\r\n"
        return f"{line}c=IN IP4 0.0.0.0\r\na=inactive\r\n{named}"


def _used(lines: Sequence[_MediaLine]) -> list[_MediaLine]:
    """In the offer's order. Raises `BadOffer` where there is no audio to take."""
    audio = [line for line in lines if line.kind == "audio"]
    if not audio:
        raise BadOffer("the offer has 0 audio lines; a call needs one")
    if not any(line.is_on for line in audio):
        raise BadOffer("the offer has switched its audio off (port 0); a call needs one audio line")
    voice = next((line for line in audio if line.is_on and line.has_opus), None)
    if voice is None:
        raise BadOffer("the offer's audio line does not list opus/48000/2, the only codec of a call")
    events = next((line for line in lines if line.kind == "application" and line.is_on), None)
    return [line for line in lines if line is voice or line is events]


def _bundle(mids: Iterable[str]) -> str:
    return " ".join(("a=group:BUNDLE", *mids))
