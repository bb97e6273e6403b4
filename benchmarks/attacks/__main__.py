"""One attack in a process of its own, so that it does not slow down who watches:

python -m benchmarks.attacks http slow_headers URL [KEY]
"""

from __future__ import annotations

import asyncio
import importlib
import sys


def main() -> None:
    what, url, *rest = sys.argv[1:]
    name, _, kind = what.partition(":")
    module, key = importlib.import_module(f"benchmarks.attacks.{name}"), rest[0] if rest else ""
    asyncio.run(module.attack(kind, url, key) if kind else module.run(url, key))


main()
