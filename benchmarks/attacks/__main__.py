"""One attack in a process of its own, so that it does not slow down who watches:

python -m benchmarks.attacks http slow_headers URL [KEY]
"""

from __future__ import annotations

import asyncio
import importlib
import sys


def main() -> None:
    module, kind, url, *rest = sys.argv[1:]
    asyncio.run(importlib.import_module(f"benchmarks.attacks.{module}").attack(kind, url, rest[0] if rest else ""))


main()
