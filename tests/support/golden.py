"""Where the golden numbers lie: the committed subset, and the full set where a checkout has it beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parents[2]
COMMITTED = CHECKOUT / "tests" / "golden"
FULL = CHECKOUT.parent / "shared" / "golden"

RELATIVE_TOLERANCE = 1e-4


def golden_dirs(family: str) -> list[Path]:
    """Folders of golden files of "flexislm" or "flexicodec": the committed one, then the full one where it exists."""
    return [path for path in (COMMITTED / family, FULL / family) if path.is_dir()]


def golden_file(family: str, name: str) -> Path:
    """The named file, from the full set where there is one, else from the committed subset."""
    for folder in reversed(golden_dirs(family)):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"no golden file {family}/{name} in {golden_dirs(family)}")


def golden_variants(name: str) -> list[str]:
    """The FlexiSLM variants (stage2, stage3, ...) that hold a file `name`."""
    return sorted({path.parent.name for folder in golden_dirs("flexislm") for path in folder.glob(f"*/{name}")})


def golden_tensors(family: str, name: str) -> dict[str, Tensor]:
    return load_file(golden_file(family, name))


def weights(tensors: dict[str, Tensor], prefix: str = "sd.") -> dict[str, Tensor]:
    """The state dict stored under `prefix` among other tensors."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expectation."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()).clamp_min(1e-12))


def assert_close(actual: Tensor, expected: Tensor, name: str = "tensor") -> None:
    """Integers identical, floats within 1e-4 relative."""
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), f"{name}: integers differ"
        return
    error = relative_error(actual, expected)
    assert error <= RELATIVE_TOLERANCE, f"{name}: relative error {error:.2e}"
