"""`agogic bench golden`: both families of official networks against recorded outputs of the originals."""

from __future__ import annotations

from pathlib import Path

from benchmarks.golden import codec as golden_codec
from benchmarks.golden import flexislm as golden_flexislm
from benchmarks.golden.files import COMMITTED

TOLERANCE = 1e-4


def run(golden_dir: Path = COMMITTED) -> dict[str, object]:
    """Summary over the folders `flexislm` and `flexicodec` of `golden_dir`; tensors in float32 on the CPU."""
    results = []
    for family, compare in (("flexislm", golden_flexislm.run), ("flexicodec", golden_codec.run)):
        if (golden_dir / family).is_dir():
            results += compare(golden_dir / family)
    if not results:
        raise FileNotFoundError(f"{golden_dir} holds neither flexislm nor flexicodec; give a folder of golden numbers")
    worst = max(results, key=lambda result: result.relative_error)
    return {
        "fixtures": len({result.fixture for result in results}),
        "tensors": len(results),
        "worst_relative_error": worst.relative_error,
        "worst_tensor": f"{worst.fixture} {worst.tensor}",
        "over_tolerance": sum(result.relative_error > TOLERANCE for result in results),
        "integer_mismatches": sum(result.mismatches for result in results),
    }
