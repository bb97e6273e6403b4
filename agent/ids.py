"""Identifiers in the Realtime protocol's shapes."""

from __future__ import annotations

import re
import secrets


class Ids:
    """Makes identifiers: `item_…`, `resp_…`. One per session, so that replay can inject its own."""

    def __init__(self, stem: str | None = None) -> None:
        self.stem = stem if stem is not None else secrets.token_hex(6)
        self._count = 0

    def new(self, kind: str) -> str:
        """`kind` is the prefix the protocol uses: event, item, resp, conv, sess, call, rtc."""
        self._count += 1
        return f"{kind}_{self.stem}{self._count:06x}"

    @property
    def count(self) -> int:
        """How many were made."""
        return self._count

    def skip_to(self, count: int) -> None:
        """As if so many had been made."""
        self._count = max(self._count, count)

    def number(self, identifier: str) -> int | None:
        """The how-manieth of these it is, was, or would be."""
        found = re.fullmatch(rf"[a-z]+_{re.escape(self.stem)}([0-9a-f]{{6,16}})", identifier)
        return int(found[1], 16) if found is not None else None

    def is_to_come(self, identifier: str) -> bool:
        """Whether `new` would make it one day."""
        number = self.number(identifier)
        return number is not None and number > self._count


def secret(prefix: str) -> str:
    """Unguessable token with 192 bits, such as an ephemeral key (`ek`)."""
    return f"{prefix}_{secrets.token_urlsafe(24)}"
