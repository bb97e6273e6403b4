"""What a unit of work changes, kept so that a unit that failed halfway can be tried again for each caller alone."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable

from torch import nn

ROOMS = ("worker", "streaming", "models")


class Undo:
    """The attributes of some objects, and of the objects of ours that they hold, as they are now.

    Lists and deques are copied; networks are left alone, and whatever else is held counts as a value.
    """

    def __init__(self, things: Iterable[object]) -> None:
        seen: dict[int, object] = {}
        for thing in things:
            _follow(thing, seen)
        self._kept = [(thing, {name: _copied(value) for name, value in vars(thing).items()}) for thing in seen.values()]

    def restore(self) -> None:
        for thing, attributes in self._kept:
            vars(thing).clear()
            vars(thing).update(attributes)


def _follow(thing: object, seen: dict[int, object]) -> None:
    if id(thing) in seen or not _changes(thing):
        return
    seen[id(thing)] = thing
    for value in vars(thing).values():
        _follow(value, seen)


def _changes(thing: object) -> bool:
    """Whether it is an object of ours whose attributes may be set anew."""
    if not hasattr(thing, "__dict__") or isinstance(thing, nn.Module | type):
        return False
    if type(thing).__module__.partition(".")[0] not in ROOMS:
        return False
    return not (dataclasses.is_dataclass(thing) and thing.__dataclass_params__.frozen)  # type: ignore[union-attr]


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, list | deque) else value
