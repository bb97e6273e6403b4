"""How long each key's sessions have lasted today (UTC), and the audit log: one line a session, without its content."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass

import msgspec

audit = logging.getLogger("agogic.audit")

_DAY_S = 86_400


@dataclass
class Visit:
    """One session as far as its key and the audit log care."""

    session: str
    name: str
    transport: str
    model: str
    began_s: float


class Usage:
    """Minutes that have passed belong to the day in which they are counted; a session is counted at its end, those that
    go on up to now."""

    def __init__(self) -> None:
        self._day = 0
        self._spent_s: dict[str, float] = defaultdict(float)
        self._open: dict[str, Visit] = {}

    def began(self, visit: Visit) -> None:
        self._open[visit.session] = visit

    def minutes(self, name: str, now_s: float, now_unix_s: int) -> float:
        """Of today, of all sessions of this name; `now_s` on the clock that sessions begin on."""
        self._turn_the_page(now_unix_s)
        midnight_s = now_s - now_unix_s % _DAY_S
        going_on = (now_s - max(visit.began_s, midnight_s) for visit in self._open.values() if visit.name == name)
        return (self._spent_s[name] + sum(going_on)) / 60

    def open_sessions(self) -> list[Visit]:
        """Those that go on."""
        return list(self._open.values())

    def spent_s(self, now_unix_s: int) -> dict[str, float]:
        """Of today, of sessions that are over, by name."""
        self._turn_the_page(now_unix_s)
        return dict(self._spent_s)

    def ended(self, session: str, reason: str, now_s: float, now_unix_s: int) -> None:
        """Writes the session's line."""
        visit = self._open.pop(session, None)
        if visit is None:
            return
        self._turn_the_page(now_unix_s)
        midnight_s = now_s - now_unix_s % _DAY_S
        self._spent_s[visit.name] += now_s - max(visit.began_s, midnight_s)
        fields = {
            "session": visit.session,
            "key": visit.name,
            "transport": visit.transport,
            "model": visit.model,
            "began": now_unix_s - round(now_s - visit.began_s),
            "seconds": round(now_s - visit.began_s, 1),
            "end": reason,
        }
        audit.info("%s", msgspec.json.encode(fields).decode(), extra={"session": visit.session})

    def _turn_the_page(self, now_unix_s: int) -> None:
        day = now_unix_s // _DAY_S
        if day != self._day:
            self._day = day
            self._spent_s.clear()
