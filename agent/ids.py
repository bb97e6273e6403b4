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

    def is_to_come(self, identifier: str) -> bool:
        """Whether `new` would make it one day."""
        found = re.fullmatch(rf"[a-z]+_{re.escape(self.stem)}([0-9a-f]{{6,16}})", identifier)
        return found is not None and int(found[1], 16) > self._count


def secret(prefix: str) -> str:
    """Unguessable token with 192 bits, such as an ephemeral key (`ek`)."""
    return f"{prefix}_{secrets.token_urlsafe(24)}"
