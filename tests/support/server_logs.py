"""The logs of all servers that the suite starts, and the keys that were sent to them: none may be in any."""

from __future__ import annotations

import re
import tempfile
import tomllib
from pathlib import Path

_folder = tempfile.TemporaryDirectory(prefix="server-logs-")
_logs: set[Path] = set()
_keys: set[str] = set()
# What servers make themselves: ephemeral keys, tokens to resume by, and the names of calls, which are as good as keys.
_MADE = re.compile(r"\b(?:ek|rtc|resume)_[\w-]{24,}")


def new_log() -> Path:
    path = Path(_folder.name) / f"{len(_logs)}.log"
    _logs.add(path)
    return path


def add_log(path: Path) -> None:
    _logs.add(path)


def add_keys(*keys: str) -> None:
    """Sent to some server, right or wrong."""
    _keys.update(keys)


def add_keys_of(config: str) -> None:
    """Those that a configuration file names."""
    _keys.update(tomllib.loads(config).get("http", {}).get("api_keys", []))


def leaks() -> list[str]:
    """Lines with a key in them."""
    return leaks_in("\n".join(log.read_text(errors="replace") for log in _logs if log.exists()), _keys)


def leaks_in(text: str, keys: set[str]) -> list[str]:
    # A word of ordinary English would be found by chance.
    known = [key for key in keys if len(key) > 6]
    return [line for line in text.splitlines() if _MADE.search(line) or any(key in line for key in known)]
