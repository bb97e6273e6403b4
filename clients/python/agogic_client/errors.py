"""What can go wrong, in a sentence that says what to do."""

from __future__ import annotations


class CallError(Exception):
    """`code` is "unreachable", "unauthorised", "overloaded", "refused", "lost", "server", "sound" or "file"."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
