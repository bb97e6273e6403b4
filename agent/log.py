"""The service's log: no line shows a secret, and nobody can fill it by sending junk.

Both hold for every line of the process, those of the libraries too, because they are kept where lines are written and
not where they are made.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TextIO

EVERY_S = 60.0
_MAX_KINDS = 256
_HIDDEN = "[hidden]"
# What looks like a key, whoever made it: of browsers' subprotocols, of the Authorization header, and our own kinds.
_SECRETS = re.compile(
    r"(?P<head>openai-insecure-api-key\.|\bbearer\s+|\b(?:ek|rtc|resume)_(?=[\w-]{16})|\bsk-(?=[\w-]{8}))[^\s,;'\"<>()\[\]{}\\]+",
    re.IGNORECASE,
)
# Whatever is said of a session names it (`agent.ids`).
_SESSION = re.compile(r"\bsess_[0-9a-f]{12,}\b")
_CHANGING = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")


class Redactor:
    """Hides what looks like a key, and the given keys whatever they look like."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        known = sorted(filter(None, keys), key=len, reverse=True)
        choice = "|".join(re.escape(key) for key in known)
        self._known = re.compile(rf"(?<![\w-])(?:{choice})(?![\w-])") if known else None

    def __call__(self, text: str) -> str:
        text = _SECRETS.sub(rf"\g<head>{_HIDDEN}", text)
        return self._known.sub(_HIDDEN, text) if self._known is not None else text


class RedactingFormatter(logging.Formatter):
    """Redacts the finished line, its traceback included."""

    def __init__(self, template: str, redact: Redactor) -> None:
        super().__init__(template)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """A line is an object: `time` (RFC 3339, UTC), `level`, `logger`, `process` and `message`; `session` where it is
    about one, `exception` with its traceback where there is one. Redacted like any other line."""

    def __init__(self, process: str, redact: Redactor) -> None:
        super().__init__()
        self._process = process
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        message = self._redact(record.getMessage())
        whole = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
        line = {
            "time": whole,
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": message,
        }
        named = _SESSION.search(message)
        if (session := getattr(record, "session", named[0] if named is not None else None)) is not None:
            line["session"] = str(session)
        if record.exc_info:
            line["exception"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


@dataclass
class _Kind:
    written_s: float
    left_out: int = 0


class Seldom(logging.Filter):
    """Lets through one warning of a kind per `every_s`; the next one says how many were left out in between.

    A kind is a logger, a level and a message without its arguments and numbers; where an exception is shown, its type
    and the line that raised it. Lines below `WARNING` pass: whoever asks for those wants them all.
    Bound: the `_MAX_KINDS` kinds that were written last.
    """

    def __init__(self, every_s: float = EVERY_S, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._now_s = now_s
        self._kinds: OrderedDict[tuple[object, ...], _Kind] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key, now_s = _kind_of(record), self._now_s()
        known = self._kinds.get(key)
        if known is not None and now_s - known.written_s < self._every_s:
            known.left_out += 1
            return False
        if known is not None and known.left_out:
            record.msg = f"{record.getMessage()} (and {known.left_out} more like it since the last one shown)"
            record.args = None
        self._kinds[key] = _Kind(now_s)
        self._kinds.move_to_end(key)
        if len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)
        return True


def configure(
    level: str | int,
    keys: Iterable[str] = (),
    stream: TextIO | None = None,
    *,
    log_format: Literal["text", "json"] = "text",
    process: str = "service",
) -> None:
    """Sends the log of this process to `stream` (stderr where None)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    redact = Redactor(keys)
    if log_format == "json":
        handler.setFormatter(JsonFormatter(process, redact))
    else:
        handler.setFormatter(RedactingFormatter("%(asctime)s %(name)s %(levelname)s %(message)s", redact))
    handler.addFilter(Seldom())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _kind_of(record: logging.LogRecord) -> tuple[object, ...]:
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        return record.name, record.levelno, type(error), _origin(error.__traceback__)
    return record.name, record.levelno, _CHANGING.sub("#", str(record.msg))[:200]


def _origin(traceback: TracebackType | None) -> tuple[str, int] | None:
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
