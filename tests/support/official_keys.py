"""Keys and shapes of the official checkpoints, committed as lists in which `{0..31}` stands for a run of numbers."""

from __future__ import annotations

import re

from tests.support.golden import COMMITTED


def official_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Shape by key, of the list `tests/golden/keys/NAME.txt`."""
    shapes = {}
    for line in (COMMITTED / "keys" / f"{name}.txt").read_text().splitlines():
        key, shape = line.split("\t")
        size = tuple(int(number) for number in re.findall(r"\d+", shape))
        run = re.search(r"\{(\d+)\.\.(\d+)\}", key)
        if run is None:
            shapes[key] = size
            continue
        for number in range(int(run[1]), int(run[2]) + 1):
            shapes[key.replace(run[0], str(number))] = size
    return shapes


def folded(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """With each pair `weight_g`, `weight_v` as the one `weight` that weight normalisation makes of it."""
    gains = {key for key in shapes if key.endswith(".weight_g")}
    return {re.sub(r"\.weight_v$", ".weight", key): size for key, size in shapes.items() if key not in gains}
