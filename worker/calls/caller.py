"""What differs between models in how they call functions.

A model that was taught to writes its calls (`worker.calls.template`); of the embedded one, which only speaks, they are
read from what it says (`worker.calls.counter`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.wire import ContextItem, ToolUse
from worker.parts import Called


@dataclass(frozen=True, slots=True)
class Calling:
    """How one answer calls. read: from all of the answer's text, the calls; raises RequestError for an answer that must
    call and does not. say: the answer is this instead; silent: nothing of it is said; begun: what it begins with;
    mark: the token from which on what it writes is no speech.
    """

    read: Callable[[str], list[Called]]
    say: str = ""
    silent: bool = False
    begun: str = ""
    mark: str = ""


class Caller(Protocol):
    @property
    def names(self) -> tuple[str, ...] | None:
        """The functions that it can call, None for any."""

    def introduction(self, tools: ToolUse) -> str:
        """What the system message says about them."""

    def remembered(self, items: tuple[ContextItem, ...]) -> tuple[ContextItem, ...]:
        """What came before, as the model is to remember it."""

    def beginnings(self, items: tuple[ContextItem, ...]) -> tuple[str, ...]:
        """Words of which the answer to the last of the items begins with one; () for any."""

    def calling(self, items: tuple[ContextItem, ...], tools: ToolUse) -> Calling | None:
        """For the answer to the last of the items, whose text is what was understood. None where it calls nothing and
        says nothing special. Raises RequestError where it must call and cannot."""
