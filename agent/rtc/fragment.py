"""Pieces of SDP that bring candidates and credentials of ICE after the offer (RFC 8840):
`application/trickle-ice-sdpfrag`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aiortc.sdp import candidate_from_sdp

MAX_FRAGMENT_BYTES = 16 * 1024
MAX_CANDIDATES = 64
_LINE = re.compile(r"a=(ice-ufrag|ice-pwd|candidate|end-of-candidates)(?::(.*))?")
_CREDENTIAL = re.compile(r"[A-Za-z0-9+/]{4,256}")


class BadFragment(Exception):
    """It cannot be acted upon; the message says why."""


@dataclass(frozen=True)
class Fragment:
    """`candidates` are the values of `a=candidate` lines; `ufrag` and `password` are "" where it has none."""

    ufrag: str = ""
    password: str = ""
    candidates: tuple[str, ...] = ()
    is_last: bool = False


def parse(text: str) -> Fragment:
    """Raises `BadFragment`. Candidates with mDNS names are left out, as in offers."""
    if len(text) > MAX_FRAGMENT_BYTES:
        raise BadFragment(f"the fragment has more than {MAX_FRAGMENT_BYTES} characters")
    values: dict[str, str] = {}
    candidates = []
    for line in text.splitlines():
        if line[:2] not in ("a=", "m="):
            if line.strip():
                raise BadFragment(f"{line[:60]!r} is no line of a fragment")
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            continue
        name, value = match[1], match[2] or ""
        if name == "candidate":
            candidates.append(checked(value))
        else:
            values.setdefault(name, value)
    ufrag, password = values.get("ice-ufrag", ""), values.get("ice-pwd", "")
    if any(value and not _CREDENTIAL.fullmatch(value) for value in (ufrag, password)):
        raise BadFragment("its ice-ufrag or ice-pwd is none")
    if len(candidates) > MAX_CANDIDATES:
        raise BadFragment(f"it has more than {MAX_CANDIDATES} candidates")
    usable = tuple(value for value in candidates if value and not is_mdns(value))
    return Fragment(ufrag, password, usable, "end-of-candidates" in values)


def checked(value: str) -> str:
    """The value of a candidate line, without its name. Raises `BadFragment`."""
    value = value.strip().removeprefix("a=").removeprefix("candidate:")
    if value:
        try:
            candidate_from_sdp(value)
        except Exception as error:  # aiortc's parser raises whatever the malformed line leads to
            raise BadFragment(f"{value[:60]!r} is no candidate") from error
    return value


def is_mdns(candidate: str) -> bool:
    """Whether its address is a name: resolving it sends multicast, and its own checks tell where it is."""
    return candidate.split()[4].endswith(".local")


def render(mid: str, ufrag: str, password: str, candidates: Sequence[str]) -> str:
    """This side's part of a restart."""
    lines = [f"a=ice-ufrag:{ufrag}", f"a=ice-pwd:{password}", "m=audio 9 UDP/TLS/RTP/SAVPF 0", f"a=mid:{mid}"]
    return "\r\n".join([*lines, *(f"a=candidate:{value}" for value in candidates), "a=end-of-candidates", ""])
