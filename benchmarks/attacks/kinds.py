"""Which attacks there are, and one of them in a process of its own, so that it does not slow down who watches:

python -m benchmarks.attacks.kinds NAME JSON-OF-TARGET
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

import benchmarks.attacks


class Target(msgspec.Struct, frozen=True):
    """A service on this machine. `media_port` is where a call that is watched takes its sound."""

    url: str
    host: str
    port: int
    pid: int
    media_port: int
    key: str = ""


Attack = Callable[[Target], Awaitable[None]]


def attacks() -> dict[str, Attack]:
    """All of them, by name, in the order of their modules."""
    found: dict[str, Attack] = {}
    for entry in sorted(pkgutil.iter_modules(benchmarks.attacks.__path__), key=lambda entry: entry.name):
        if entry.name.startswith("_"):
            continue
        module = importlib.import_module(f"benchmarks.attacks.{entry.name}")
        attack, kinds, run = (getattr(module, name, None) for name in ("attack", "KINDS", "run"))
        if attack is not None and kinds is not None:
            found |= {f"{entry.name}.{kind}": partial(_one_of, attack, kind) for kind in kinds}
        elif kinds is not None and all(_known_parameters(kind) is not None for kind in kinds.values()):
            found |= {f"{entry.name}.{name}": partial(_whole, kind) for name, kind in kinds.items()}
        elif run is not None and _known_parameters(run) is not None:
            found[entry.name] = partial(_whole, run)
    return found


async def _one_of(attack: Callable[[str, str, str], Awaitable[None]], kind: str, target: Target) -> None:
    await attack(kind, target.url, target.key)


async def _whole(run: Callable[..., Awaitable[object]], target: Target) -> None:
    await run(**{name: getattr(target, name) for name in _known_parameters(run) or ()})


def _known_parameters(run: Callable[..., object]) -> list[str] | None:
    """What it must be told; None where a target does not know that, and for what is no attack."""
    if not inspect.iscoroutinefunction(run):
        return None
    needed = [
        parameter.name
        for parameter in inspect.signature(run).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    return needed if needed and set(needed) <= set(Target.__struct_fields__) else None


def main() -> None:
    name, target = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Target)
    asyncio.run(attacks()[name](target))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
