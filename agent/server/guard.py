"""A mistake inside one session stays there."""

from __future__ import annotations

import contextlib
import logging
from typing import Protocol

log = logging.getLogger("agogic.session")


class Failing(Protocol):
    @property
    def session_id(self) -> str: ...

    def fail(self) -> None: ...


class Guard(contextlib.AbstractContextManager[None]):
    """Confines an exception to the session that raised it."""

    def __init__(self, session: Failing) -> None:
        self._session = session

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        log.error("%s failed", self._session.session_id, exc_info=error)
        self._session.fail()
        return True
