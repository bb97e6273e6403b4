"""Keys with names and limits: `http.api_keys`, which have neither, and those of `http.keys_file`, which is read again
when it changes. A key that is gone from the file opens nothing more; sessions that it opened go on.

```toml
[[keys]]
name = "shop"                          # shown in the audit log and in metrics' stead of the key
sha256 = "9f86d081…"                   # printf %s KEY | sha256sum. Two may have one name while they change
max_sessions = 8                       # at once; 0 = no limit of its own
minutes_per_day = 600                  # of all its sessions together, by UTC's days; 0 = no limit
finest_hz = 8.0                        # no finer frame rate on either side
models = ["agogic"]                    # what may be asked for as ?model=; empty = anything
expires = 2027-01-01T00:00:00Z
```
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from agent.config import ConfigError, Hz, Section


class NamedKey(Section, frozen=True):
    """What one key allows; the key itself is known by its digest only."""

    name: Annotated[str, Meta(pattern=r"^[\w.@-]{1,64}$")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    max_sessions: Annotated[int, Meta(ge=0)] = 0
    minutes_per_day: Annotated[float, Meta(ge=0)] = 0
    finest_hz: Hz = 12.5
    models: tuple[str, ...] = ()
    expires: datetime.datetime | None = None


class _File(Section, frozen=True):
    keys: tuple[NamedKey, ...] = ()


def digest(key: str) -> str:
    """SHA-256 in hex. Headers need not be UTF-8: what could not be read as such comes out as the bytes it was."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """All keys that are good now."""

    def __init__(self, api_keys: Iterable[str], path: str = "") -> None:
        """Raises `ConfigError` where the file cannot be used."""
        self._plain = tuple(NamedKey(name=f"key-{digest(key)[:8]}", sha256=digest(key)) for key in api_keys)
        self._path = path
        self._named: tuple[NamedKey, ...] = ()
        self.read()

    @property
    def is_needed(self) -> bool:
        """Whether anybody is asked for a key. A file without keys lets nobody in, not everybody."""
        return bool(self._plain or self._path)

    def read(self) -> None:
        """Reads the file again. Raises `ConfigError`; then what was read before holds."""
        if self._path:
            self._named = load(Path(self._path))

    @property
    def limited(self) -> frozenset[str]:
        """Names of the keys whose sessions or minutes are counted."""
        return frozenset(key.name for key in self._named if key.max_sessions or key.minutes_per_day)

    def find(self, key: str, now_unix_s: int) -> NamedKey | None:
        """None for a key that is unknown or has expired. Looks at all of them, so that time says nothing."""
        return self.by_digest(digest(key), now_unix_s)

    def by_digest(self, offered: str, now_unix_s: int) -> NamedKey | None:
        """As `find`, of a key that was offered before."""
        found = None
        for known in (*self._plain, *self._named):
            if hmac.compare_digest(offered, known.sha256):
                found = known
        if found is not None and found.expires is not None and found.expires.timestamp() <= now_unix_s:
            return None
        return found


def load(path: Path) -> tuple[NamedKey, ...]:
    """Raises `ConfigError` with one line that shows no digest."""
    try:
        keys = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File).keys
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"http.keys_file = {str(path)!r} cannot be read: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"http.keys_file = {str(path)!r}: {error}") from error
    for key in keys:
        if key.expires is not None and key.expires.tzinfo is None:
            raise ConfigError(
                f"http.keys_file = {str(path)!r}: `expires` of {key.name!r} names no zone; add a Z for UTC"
            )
    digests = [key.sha256 for key in keys]
    if len(set(digests)) != len(digests):
        raise ConfigError(f"http.keys_file = {str(path)!r}: one key stands there twice")
    return keys
