"""What the services of a cluster must agree on about keys: ephemeral keys that any of them minted, and how much of its
limits each key has used. In the memory of the store's process.

    service A: Mint ──► kept      service B: Look ──► its settings      Admit ──► used up and counted, or why not
    every service, once a second and when a session ends: Report ──► all that it has open and has spent

An ephemeral key is known by its SHA-256 only. A report is whole, so whatever was lost or came twice is right again with
the next one. After a restart services bring the ephemeral keys that they know again; until all have had the time,
nobody is told that a key is unknown, or let in by one that may have been used.
Bounds: `MAX_SECRETS` and `MAX_ALL_SECRETS_BYTES` of ephemeral keys, as each service has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from agent.server.auth import MAX_ALL_SECRETS_BYTES, MAX_SECRETS

SILENT_S = 10.0
"""A service that has said nothing for so long has nothing open any more; what it had spent stays."""
SETTLE_S = 5.0
"""So long after a restart services bring again what they know."""
_DAY_S = 86_400

Code = Literal["", "full", "unknown", "settling", "used", "sessions", "minutes"]
"""Why not; "" where there is no reason."""


class Shared(msgspec.Struct, frozen=True):
    """An ephemeral key: `agent.server.auth.ClientSecret` without itself. `session`: settings as JSON, empty = none."""

    digest: str
    expires_at: int
    session: bytes = b""
    single_use: bool = False
    used: bool = False
    minted_by: str | None = None


class Mint(msgspec.Struct, frozen=True, tag=True):
    """Ephemeral keys that others are to know; `again`: they were brought before."""

    secrets: list[Shared]
    again: bool = False


class Look(msgspec.Struct, frozen=True, tag=True):
    """Who knows this one?"""

    digest: str


class Admit(msgspec.Struct, frozen=True, tag=True):
    """A session is to be opened by the key `name`, with its limits (0 = none); `secret`: the digest of an ephemeral key
    that is good for one."""

    service: str
    number: int
    session: str
    name: str = ""
    max_sessions: int = 0
    minutes_per_day: float = 0.0
    secret: str = ""


class Visiting(msgspec.Struct, frozen=True):
    """An open session. waits: for its client, whose connection was lost."""

    name: str
    began_unix_s: int
    waits: bool = False


class Report(msgspec.Struct, frozen=True, tag=True):
    """All that a service has open, by session, and has spent today (of UTC, `day` since 1970) on sessions that are
    over, in seconds by key. `number`: of its messages, rising."""

    service: str
    number: int
    day: int = 0
    spent: dict[str, float] = {}
    visits: dict[str, Visiting] = {}


class Reply(msgspec.Struct, frozen=True):
    """`life`: which life of the store this is; `end`: sessions that wait for their client and whose room is needed."""

    life: str
    code: Code = ""
    secret: Shared | None = None
    end: list[str] = []


@dataclass
class _Service:
    seen_s: float
    number: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    visits: dict[str, Visiting] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)


@dataclass
class _Kept:
    secret: Shared
    again: bool


class Ledger:
    """`settle_s`: of a life that is not the first."""

    def __init__(
        self,
        life: str,
        settle_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        self._life = life
        self._clock = clock
        self._calendar = calendar
        self._settled_s = clock() + settle_s
        self._secrets: dict[str, _Kept] = {}
        self._held = 0
        self._services: dict[str, _Service] = {}
        self._gone: dict[str, dict[str, float]] = {}
        """Of services that are gone: seconds of today, by key."""
        self._day = 0

    def ask(self, data: bytes) -> bytes:
        """One of `Mint`, `Look`, `Admit`, `Report` to `Reply`, as msgpack."""
        asked = msgspec.msgpack.decode(data, type=Mint | Look | Admit | Report)
        self._tidy()
        match asked:
            case Mint():
                reply = self._reply(self._mint(asked))
            case Look():
                kept = self._secrets.get(asked.digest)
                code: Code = "" if kept is not None else "settling" if self._settles else "unknown"
                reply = Reply(self._life, code, kept.secret if kept is not None else None)
            case Admit():
                reply = self._reply(self._admit(asked))
            case Report():
                reply = Reply(self._life, end=self._report(asked))
        return msgspec.msgpack.encode(reply)

    def minutes(self, name: str) -> float:
        """Of today, of all sessions of this key."""
        now = self._calendar()
        spent = sum(spent.get(name, 0.0) for spent in self._gone.values())
        for service in self._services.values():
            spent += service.spent.get(name, 0.0)
            spent += sum(self._seconds(visit, now) for visit in service.visits.values() if visit.name == name)
        return spent / 60

    @property
    def _settles(self) -> bool:
        return self._clock() < self._settled_s

    def _reply(self, code: Code) -> Reply:
        return Reply(self._life, code)

    # --- ephemeral keys ---

    def _mint(self, asked: Mint) -> Code:
        for secret in asked.secrets:
            if (known := self._secrets.get(secret.digest)) is not None:
                if secret.used:
                    known.secret = msgspec.structs.replace(known.secret, used=True)
            elif not self._has_room(len(secret.session)):
                return "full"
            else:
                self._secrets[secret.digest] = _Kept(secret, asked.again)
                self._held += len(secret.session)
        return ""

    def _has_room(self, size: int) -> bool:
        def fits() -> bool:
            return len(self._secrets) < MAX_SECRETS and self._held + size <= MAX_ALL_SECRETS_BYTES

        if not fits():
            now = self._calendar()
            self._secrets = {name: kept for name, kept in self._secrets.items() if kept.secret.expires_at > now}
            self._held = sum(len(kept.secret.session) for kept in self._secrets.values())
        return fits()

    # --- limits ---

    def _admit(self, asked: Admit) -> Code:
        kept = self._secrets.get(asked.secret)
        if asked.secret:
            if kept is None:
                return "settling" if self._settles else "unknown"
            if kept.secret.used:
                return "used"
            if kept.again and self._settles:
                return "settling"
        if asked.max_sessions and not self._has_place(asked):
            return "sessions"
        if asked.minutes_per_day and self.minutes(asked.name) >= asked.minutes_per_day:
            return "minutes"
        if kept is not None:
            kept.secret = msgspec.structs.replace(kept.secret, used=True)
        if asked.max_sessions or asked.minutes_per_day:
            service = self._services.setdefault(asked.service, _Service(self._clock()))
            service.seen_s, service.number = self._clock(), max(service.number, asked.number)
            service.visits[asked.session] = Visiting(asked.name, int(self._calendar()))
        return ""

    def _has_place(self, asked: Admit) -> bool:
        """Where there is none, one that waits for its client is to end."""
        found: dict[str, tuple[_Service, bool]] = {}
        for service in self._services.values():
            for session, visit in service.visits.items():
                if visit.name == asked.name and session != asked.session and session not in service.ending:
                    found[session] = (service, visit.waits)
        waiting = [(session, service) for session, (service, waits) in found.items() if waits]
        too_many = len(found) - asked.max_sessions + 1
        if too_many > len(waiting):
            return False
        for session, service in waiting[: max(0, too_many)]:
            service.ending.add(session)
        return True

    def _report(self, asked: Report) -> list[str]:
        service = self._services.setdefault(asked.service, _Service(self._clock()))
        self._gone.pop(asked.service, None)
        service.seen_s = self._clock()
        if asked.number < service.number:
            return []
        service.number, service.visits = asked.number, asked.visits
        service.spent = asked.spent if asked.day == self._day else {}
        service.ending = {name for name in service.ending if name in asked.visits and asked.visits[name].waits}
        return sorted(service.ending)

    def _seconds(self, visit: Visiting, until_unix_s: float) -> float:
        return max(0.0, until_unix_s - max(visit.began_unix_s, self._day * _DAY_S))

    def _tidy(self) -> None:
        now_s, now_unix_s = self._clock(), self._calendar()
        day = int(now_unix_s // _DAY_S)
        if day != self._day:
            self._day = day
            self._gone.clear()
            for service in self._services.values():
                service.spent = {}
        for name in [name for name, service in self._services.items() if now_s - service.seen_s >= SILENT_S]:
            service = self._services.pop(name)
            gone = self._gone[name] = dict(service.spent)
            seen_unix_s = now_unix_s - (now_s - service.seen_s)
            for visit in service.visits.values():
                gone[visit.name] = gone.get(visit.name, 0.0) + self._seconds(visit, seen_unix_s)
