"""Copies of sessions, where every service of a cluster finds them: in the memory of one process, for as long as the
session lives and a while longer.

    service A: update, update, …        (killed)
    service B:                               claim(token) ──► parts; A's later updates are refused

A session belongs to the service that opened or claimed it last. Tokens are known by their SHA-256 only, so whoever read
this memory could still resume nothing. What is kept is worthless after `keep_s` without a word of its service.
Bounds: `max_bytes` of all copies, `MAX_SESSION_BYTES` of one: what does not fit is not kept, and its service is told.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from agent.dialogue.copying import Changes
from agent.server.auth import Grant

MAX_SESSION_BYTES = 64 * 1024 * 1024


class Owner(msgspec.Struct, frozen=True):
    """Whose session it is: what `agent.server.auth.Grant` says of the key, and by which a stranger is told apart."""

    owner: str
    key_name: str = ""
    key_sha256: str = ""

    @classmethod
    def of(cls, grant: Grant) -> Owner:
        return cls(grant.owner, grant.name, grant.key.sha256 if grant.key is not None else "")


class Update(msgspec.Struct, frozen=True):
    """What became of one session. `tokens`: the digests of all by which it may be resumed; `whole`: this is all of it;
    `ended`: there is nothing to resume any more."""

    session: str
    tokens: list[str]
    owner: Owner
    changes: Changes
    whole: bool = False
    ended: bool = False


class Batch(msgspec.Struct, frozen=True):
    """What a service has to say; empty: it lives."""

    service: str
    updates: list[Update] = []


class Answer(msgspec.Struct, frozen=True):
    """`life`: which life of the store this is: in another than before everything is to be sent anew. `moved`: sessions
    that another service has; `unknown`: those of which the store needs all; `full`: those that do not fit."""

    life: str
    moved: list[str] = []
    unknown: list[str] = []
    full: list[str] = []


class Claim(msgspec.Struct, frozen=True):
    """`owner`: as of the key by which the client comes."""

    service: str
    token: str
    owner: str


class Claimed(msgspec.Struct, frozen=True):
    """`parts` are None where there is nothing to resume by this token for that owner."""

    session: str = ""
    parts: dict[str, bytes] | None = None
    tokens: list[str] = []
    owner: Owner = Owner("")


def digest(token: str) -> str:
    """What stands for a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass
class _Kept:
    service: str
    owner: Owner
    tokens: list[str] = field(default_factory=list)
    parts: dict[str, bytearray] = field(default_factory=dict)
    size: int = 0


class SessionStore:
    """All methods take and give msgpack, so that whoever calls from another process needs no classes of ours."""

    def __init__(
        self, keep_s: float, max_bytes: int, life: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._life = life
        self._clock = clock
        self._sessions: dict[str, _Kept] = {}
        self._by_token: dict[str, str] = {}
        self._seen_s: dict[str, float] = {}
        self._moved: dict[str, list[str]] = {}
        self._size = 0

    @property
    def held_bytes(self) -> int:
        return self._size

    @property
    def count(self) -> int:
        return len(self._sessions)

    def update(self, data: bytes) -> bytes:
        """`Batch` to `Answer`."""
        batch = msgspec.msgpack.decode(data, type=Batch)
        self._seen_s[batch.service] = self._clock()
        moved = self._moved.pop(batch.service, [])
        unknown: list[str] = []
        full: list[str] = []
        for update in batch.updates:
            kept = self._sessions.get(update.session)
            if kept is not None and kept.service != batch.service:
                moved.append(update.session)
            elif update.ended:
                self._forget(update.session)
            elif kept is None and not update.whole:
                unknown.append(update.session)
            elif not self._take(batch.service, update, kept):
                self._forget(update.session)
                full.append(update.session)
        self._tidy()
        return msgspec.msgpack.encode(Answer(self._life, moved, unknown, full))

    def claim(self, data: bytes) -> bytes:
        """`Claim` to `Claimed`. What was found belongs to the service that asks from now on."""
        claim = msgspec.msgpack.decode(data, type=Claim)
        self._seen_s[claim.service] = self._clock()
        self._tidy()
        session = self._by_token.get(claim.token)
        kept = self._sessions.get(session) if session is not None else None
        if session is None or kept is None or kept.owner.owner != claim.owner:
            return msgspec.msgpack.encode(Claimed())
        if kept.service != claim.service:
            self._moved.setdefault(kept.service, []).append(session)
        kept.service = claim.service
        parts = {name: bytes(part) for name, part in kept.parts.items()}
        return msgspec.msgpack.encode(Claimed(session, parts, kept.tokens, kept.owner))

    def _take(self, service: str, update: Update, kept: _Kept | None) -> bool:
        """False where it does not fit."""
        if kept is None or update.whole:
            self._forget(update.session)
            kept = self._sessions[update.session] = _Kept(service, update.owner)
        before = kept.size
        for name in update.changes.drop:
            kept.size -= len(kept.parts.pop(name, b""))
        for name, part in update.changes.put.items():
            kept.size += len(part) - len(kept.parts.get(name, b""))
            kept.parts[name] = bytearray(part)
        for name, more in update.changes.extend.items():
            kept.parts.setdefault(name, bytearray()).extend(more)
            kept.size += len(more)
        self._size += kept.size - before
        for token in kept.tokens:
            self._by_token.pop(token, None)
        kept.tokens = list(update.tokens)
        self._by_token |= dict.fromkeys(kept.tokens, update.session)
        return kept.size <= MAX_SESSION_BYTES and self._size <= self._max_bytes

    def _forget(self, session: str) -> None:
        kept = self._sessions.pop(session, None)
        if kept is None:
            return
        self._size -= kept.size
        for token in kept.tokens:
            self._by_token.pop(token, None)

    def _tidy(self) -> None:
        """Sessions of services that are gone for so long that no client is waited for."""
        oldest_s = self._clock() - self._keep_s
        gone = {service for service, seen_s in self._seen_s.items() if seen_s < oldest_s}
        if not gone:
            return
        for session in [name for name, kept in self._sessions.items() if kept.service in gone]:
            self._forget(session)
        for service in gone:
            del self._seen_s[service]
            self._moved.pop(service, None)
