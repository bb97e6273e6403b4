"""Sessions whose client may come back: by which token, and which of them wait for theirs.

    connected ──(connection lost)──► kept ──(token)──► connected
                                      └──(too long, or its room is needed)──► over

A token is good until the client has shown that it holds the next one, so that a connection which is lost while it is
made costs nothing. Kept sessions count as sessions everywhere, but stand in nobody's way: whoever is let in may end
the one that has waited longest. Bound: `at_most` are kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from agent.ids import secret

_FORMER = 4  # used tokens of a session that are told from unknown ones
_UNCONFIRMED = 8  # tokens of a session that may be good at once


class ResumeRefused(Exception):
    """There is nothing to resume by this token; `code` tells programs why, the message people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Resumable(Protocol):
    """A session as the keeper sees it."""

    owner: str
    address: str

    @property
    def closed(self) -> bool: ...

    def can_resume(self, after: str) -> bool: ...

    def disconnect(self, reason: str) -> None: ...


S = TypeVar("S", bound=Resumable)


class Keeper(Generic[S]):
    """`for_s`: so long a session waits for its client; 0 = none is kept."""

    def __init__(self, for_s: float, at_most: int) -> None:
        self.for_s = for_s
        self._at_most = at_most
        self._tokens: dict[str, S] = {}
        self._used: dict[str, S] = {}
        # Oldest first.
        self._waiting: dict[S, asyncio.TimerHandle] = {}

    @property
    def count(self) -> int:
        """Sessions that wait for their client."""
        return len(self._waiting)

    def issue(self, session: S) -> str:
        """A token for the session; the one before it stays good until `confirm`."""
        mine = self._of(self._tokens, session)
        if len(mine) >= _UNCONFIRMED:  # the oldest is the one that its client surely holds
            del self._tokens[mine[1]]
        token = secret("resume")
        self._tokens[token] = session
        return token

    def adopt(self, session: S, token: str) -> None:
        """The session was another server's, and may be resumed by this token, which that one issued."""
        self._tokens[token] = session

    def tokens(self, session: S) -> list[str]:
        """All that are good for it now."""
        return self._of(self._tokens, session)

    def knows(self, token: str) -> bool:
        """Whether it is, or was, good for a session here."""
        return token in self._tokens or token in self._used

    def confirm(self, session: S) -> None:
        """Its client holds the newest token: the others are used up."""
        *former, _ = self._of(self._tokens, session)
        for token in former:
            self._used[token] = self._tokens.pop(token)
        for token in self._of(self._used, session)[:-_FORMER]:
            del self._used[token]

    def find(self, token: str, owner: str, after: str) -> S:
        """The session to resume for that owner after that event. Raises `ResumeRefused`."""
        session = self._tokens.get(token)
        if session is None and (used := self._used.get(token)) is not None and used.owner == owner:
            raise ResumeRefused("resume_token_used", "This token was used already; each resumption brings a new one.")
        if session is None or session.owner != owner or session.closed:
            raise ResumeRefused(
                "resume_token_unknown",
                f"No session can be resumed by this token: it is wrong, another key's, or of a session that ended. "
                f"Sessions are kept for {self.for_s:g} s; open a new one.",
            )
        if not session.can_resume(after):
            raise ResumeRefused(
                "resume_events_lost", "What was sent after that event is no longer known here; open a new session."
            )
        return session

    def keep(self, session: S) -> None:
        """Its client is gone."""
        loop = asyncio.get_running_loop()
        self._waiting[session] = loop.call_later(self.for_s, self._waited, session)
        if len(self._waiting) > self._at_most:
            crowds = Counter((waiting.owner, waiting.address) for waiting in self._waiting)
            (owner, address), _ = crowds.most_common(1)[0]
            self.make_room(lambda each: each.owner == owner and each.address == address)

    def resumed(self, session: S) -> None:
        timer = self._waiting.pop(session, None)
        if timer is not None:
            timer.cancel()

    def make_room(self, of: Callable[[S], bool]) -> bool:
        """Ends the one that has waited longest of these; False if none waits."""
        oldest = next((session for session in self._waiting if of(session)), None)
        if oldest is None:
            return False
        self.resumed(oldest)
        oldest.disconnect("its room was needed")
        return True

    def ended(self, session: S) -> None:
        """It is over."""
        self.resumed(session)
        for tokens in (self._tokens, self._used):
            for token in self._of(tokens, session):
                del tokens[token]

    def waits(self, session: S) -> bool:
        return session in self._waiting

    def _waited(self, session: S) -> None:
        self.resumed(session)
        session.disconnect(f"nobody came back within {self.for_s:g} s")

    @staticmethod
    def _of(tokens: dict[str, S], session: S) -> list[str]:
        return [token for token, owner in tokens.items() if owner is session]
