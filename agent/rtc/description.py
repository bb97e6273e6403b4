"""SDP (RFC 8866) as far as a call needs it: what an offer must have, and what an answer says beyond aiortc's own.

Also where this host can be reached. aioice offers every interface but 127.0.0.1; a call from a browser on the same
machine without a network needs exactly that one, and a server with several networks may want to offer only some.
"""

from __future__ import annotations

import contextvars
import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import aioice.ice
from aiortc import sdp

MAX_SDP_BYTES = 64 * 1024
_OPUS = re.compile(r"^a=rtpmap:(\d+) opus/48000/2\r?$", re.IGNORECASE | re.MULTILINE)
_MDNS = re.compile(r"^a=candidate:.*\.local .*\r?\n", re.MULTILINE)

_aioice_addresses = aioice.ice.get_host_addresses
_allowed: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("rtc_addresses", default=())


class BadOffer(Exception):
    """The offer cannot be answered; the message says why."""


def prepare_offer(text: str) -> str:
    """Checks an offer before any resource is spent on it, and takes out what must not be acted upon.

    Candidates with mDNS names are dropped: resolving them sends multicast and may take seconds, and the browser's own
    checks tell its address anyway. Raises `BadOffer`.
    """
    if not text.strip():
        raise BadOffer("the offer is empty: send the SDP of RTCPeerConnection.createOffer()")
    if len(text) > MAX_SDP_BYTES:
        raise BadOffer(f"the offer has {len(text)} characters; the limit is {MAX_SDP_BYTES}")
    if not text.startswith("v=0"):
        raise BadOffer("the offer is no SDP: it does not begin with v=0")
    try:
        description = sdp.SessionDescription.parse(text)
    except Exception as error:  # aiortc's parser raises whatever the malformed line leads to
        raise BadOffer(f"the offer is malformed SDP ({type(error).__name__}: {error})") from error
    audio = [media for media in description.media if media.kind == "audio"]
    if len(audio) != 1:
        raise BadOffer(f"the offer has {len(audio)} audio lines; a call takes exactly one")
    if not any(codec.mimeType.lower() == "audio/opus" for codec in audio[0].rtp.codecs):
        raise BadOffer("the offer's audio line does not list opus/48000/2, the only codec of a call")
    mids = {media.rtp.muxId for media in description.media}
    for group in description.group:
        if group.semantic == "BUNDLE" and not mids.issuperset(map(str, group.items)):
            raise BadOffer("the offer bundles media lines that it does not have")
    return _MDNS.sub("", text)


def offered_addresses(configured: Sequence[str], host: str) -> tuple[str, ...]:
    """Where a call may be reached: where the configuration says, else where the server itself listens; empty = on all
    of this machine's addresses."""
    if configured:
        return tuple(configured)
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:  # a name
        return ()
    return () if address.is_unspecified else (str(address),)


def finish_answer(text: str) -> str:
    """Asks the browser for in-band error correction, for mono, and for no pauses in the packets."""
    match = _OPUS.search(text)
    if match is None:
        return text
    fmtp = f"a=fmtp:{match[1]} minptime=10;useinbandfec=1;stereo=0;sprop-stereo=0;usedtx=0\r\n"
    end = text.index("\n", match.start()) + 1
    return text[:end] + fmtp + text[end:]


@contextmanager
def offering_addresses(addresses: Sequence[str]) -> Iterator[None]:
    """Within it, ICE gathers host candidates on `addresses` only; on all of the host's, loopback too, if empty."""
    token = _allowed.set(tuple(addresses))
    try:
        yield
    finally:
        _allowed.reset(token)


def host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """Stands in for aioice's function of the same purpose."""
    allowed = _allowed.get()
    if not allowed:
        return [*_aioice_addresses(use_ipv4, use_ipv6), *(["127.0.0.1"] if use_ipv4 else [])]
    versions = {4: use_ipv4, 6: use_ipv6}
    return [address for address in allowed if versions[ipaddress.ip_address(address).version]]


aioice.ice.get_host_addresses = host_addresses
