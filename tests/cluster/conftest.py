"""These need Ray, which is no part of the tests' environment: `make cluster-test` makes one that has it."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("ray") is not None else ["test_*.py"]
