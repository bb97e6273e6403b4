"""How much may be held in memory: by one session, by all sessions of one key, by all.

What a client sends is added up, and every `RECOUNT_BYTES` of it what the session really holds is counted anew. Small
messages always pass: how many of them a session keeps is bounded elsewhere, and who has no room left must be able to
delete. What waits to be sent to a client counts as well, to the byte. Where there is no room, sessions whose client is
away go before anybody who is there is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from agent.config import LimitsConfig

SMALL_BYTES = 4096
RECOUNT_BYTES = 256 * 1024


class Budget:
    """What all sessions hold together, in bytes, and whose it is. An empty key is nobody's: it has no limit."""

    def __init__(self, limits: LimitsConfig, make_room: Callable[[str | None], bool] = lambda key: False) -> None:
        """`make_room` ends a session that nobody is in, of this key or (None) of any; False where there is none."""
        self._limits = limits
        self._make_room = make_room
        self._all = 0
        self._by_key: Counter[str] = Counter()

    def open(self, key: str) -> Account:
        return Account(self, key)

    @property
    def held(self) -> int:
        return self._all

    def change(self, key: str, by: int) -> None:
        self._all += by
        if key:
            self._by_key[key] += by
            if self._by_key[key] <= 0:
                del self._by_key[key]

    def refusal(self, key: str, session: int, more: int, *, final: bool = True) -> str | None:
        """Why there is no room for `more` bytes where the session holds `session`; None where there is. Where that is
        `final`, room is made first."""
        limits = self._limits
        if session + more > limits.session_bytes:
            return (
                f"This session may hold {limits.session_bytes} bytes and has {session}; delete items, or send less at "
                "once."
            )
        while key and self._by_key[key] + more > limits.key_bytes:
            if final and self._make_room(key):
                continue
            return f"All sessions of this key together may hold {limits.key_bytes} bytes; end some, or delete items."
        while self._all + more > limits.all_bytes:
            if final and self._make_room(None):
                continue
            return "The server holds as much as it may for all sessions together; delete items, or try again later."
        return None


class Account:
    """One session's part of the budget."""

    def __init__(self, budget: Budget, key: str) -> None:
        self._budget = budget
        self._key = key
        self._held = 0
        self._waiting = 0
        self._uncounted = 0
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be held: who lets much wait has to go."""
        return self._budget.refusal(self._key, self._held + self._waiting, 0) is not None

    def waits(self, by: int) -> None:
        """So many bytes more, or fewer, wait to be sent."""
        if not self._closed:
            self._waiting += by
            self._budget.change(self._key, by)

    def refuses(self, more: int, count: Callable[[], int]) -> str | None:
        """Why a message of so many bytes cannot be taken; None where it is, and is then held. `count` says what the
        session really holds."""
        self._uncounted += more
        full = self._budget.refusal(self._key, self._held + self._waiting, more, final=False) is not None
        if full or self._uncounted > RECOUNT_BYTES:
            self._uncounted = 0
            self._set(count())
            if (
                more > SMALL_BYTES
                and (why := self._budget.refusal(self._key, self._held + self._waiting, more)) is not None
            ):
                return why
        self._set(self._held + more)
        return None

    def recount(self, held: int) -> None:
        """So much the session really holds."""
        if not self._closed:
            self._uncounted = 0
            self._set(held)

    def hears(self, more: int, count: Callable[[], int]) -> bool:
        """Sound of a call, which comes in whether there is room or not: whether the session has to let some go."""
        self._uncounted += more
        held = self._held + more
        if self._uncounted > RECOUNT_BYTES:
            self._uncounted = 0
            held = count()
        self._set(held)
        return self._uncounted == 0 and self.is_full

    def close(self) -> None:
        self.waits(-self._waiting)
        self._set(0)
        self._closed = True

    def _set(self, held: int) -> None:
        if self._closed:
            return
        self._budget.change(self._key, held - self._held)
        self._held = held
