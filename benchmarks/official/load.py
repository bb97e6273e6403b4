"""`agogic bench load`: memory that it takes to load a FlexiSLM checkpoint of the released size.

A checkpoint of random weights in the official layout (shards with an index, bfloat16) is written into a temporary
folder and loaded by a fresh process as `agogic talk` and `agogic serve` load it; the peak is the kernel's own count,
less what the interpreter holds with torch imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.official.released_sizes import ENCODER_DIM, Size, released_json
from kernels.packed_linear import pack_linears
from models.checkpoints.flexislm_checkpoint import LORA_PREFIX, load_flexislm, official_key
from models.checkpoints.tensor_files import INDEX
from models.networks.config import parse_config
from models.networks.flexislm import FlexiSLM

CHECKOUT = Path(__file__).resolve().parents[2]
SHARD_BYTES = 300_000_000
LORA_RANK = 32


class LoadBenchError(Exception):
    """The process that loads has failed; the message holds what it said."""


def run(size: Size = "0.5B", *, adapters: bool = False) -> dict[str, object]:
    """Bytes of the checkpoint, peak bytes of loading it, and their ratio; `adapters`: LoRA kept apart, as trained."""
    with tempfile.TemporaryDirectory(prefix="agogic-load-") as folder:
        written = write_checkpoint(Path(folder), size, adapters=adapters)
        measured = load_apart(Path(folder))
    return {
        "size": size,
        "adapters": adapters,
        "checkpoint_bytes": written,
        **measured,
        "peak_ratio": round(measured["peak_bytes"] / written, 3),
        "resident_ratio": round(measured["resident_bytes"] / written, 3),
    }


def load_apart(directory: Path) -> dict[str, float]:
    """Loads the checkpoint in a process of its own; bytes over what that process held before. Raises LoadBenchError."""
    command = [sys.executable, "-m", "benchmarks.official.load", str(directory)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadBenchError(f"loading failed with status {done.returncode}: {done.stderr.strip()[-500:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def write_checkpoint(
    directory: Path, size: Size, *, adapters: bool = False, changes: dict[str, object] | None = None
) -> int:
    """Random weights as the official code saves them; returns the bytes of all shards. A tied head is left out."""
    content = dict(changes or {}) | ({"use_lora": True, "lora_alpha": 64} if adapters else {})
    text = released_json(size, content)
    (directory / "config.json").write_bytes(text)
    with torch.device("meta"):
        model = FlexiSLM(parse_config(text, "config.json"), ENCODER_DIM)
    shapes = {official_key(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    written = 0
    for key, shape in (_with_adapters(shapes) if adapters else shapes).items():
        shard[key] = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02)
        if _bytes(shard) > SHARD_BYTES:
            written += _save(shard, directory, places)
    written += _save(shard, directory, places)
    (directory / INDEX).write_bytes(msgspec.json.encode({"metadata": {"total_size": written}, "weight_map": places}))
    return written


def _with_adapters(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The keys of a Thinker wrapped by adapters: every linear layer with two low-rank factors beside it."""
    wrapped: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if not key.startswith("model."):
            wrapped[key] = shape
            continue
        stem, _, leaf = (LORA_PREFIX + key.removeprefix("model.")).rpartition(".")
        if not stem.endswith("_proj"):
            wrapped[f"{stem}.{leaf}"] = shape
            continue
        wrapped[f"{stem}.base_layer.{leaf}"] = shape
        if leaf == "weight":
            wrapped[f"{stem}.lora_A.default.weight"] = (LORA_RANK, shape[1])
            wrapped[f"{stem}.lora_B.default.weight"] = (shape[0], LORA_RANK)
    return wrapped


def _save(shard: dict[str, Tensor], directory: Path, places: dict[str, str]) -> int:
    """Writes the next shard, notes where its tensors are and empties it; returns its bytes."""
    name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
    save_file(shard, directory / name, metadata={"format": "pt"})
    places |= dict.fromkeys(shard, name)
    shard.clear()
    return (directory / name).stat().st_size


def _bytes(shard: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in shard.values())


def _memory_bytes() -> tuple[int, int]:
    """What this process holds, and the most that it ever held; unlike getrusage's, nothing of its parent's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmRSS"].split()[0]), 1024 * int(lines["VmHWM"].split()[0])


def _load(directory: Path) -> dict[str, float]:
    """What a fresh process needs for it: peak while loading, and what stays once every weight has been read."""
    _, baseline = _memory_bytes()
    started = time.perf_counter()
    model = load_flexislm(directory, dtype=torch.bfloat16)
    pack_linears(model)
    loaded = time.perf_counter() - started
    for parameter in model.parameters():  # what is still mapped from the files becomes resident when it is read
        parameter.flatten()[::1024].sum()
    resident, peak = _memory_bytes()
    return {
        "baseline_bytes": baseline,
        "peak_bytes": peak - baseline,
        "resident_bytes": resident - baseline,
        "load_s": round(loaded, 2),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_load(Path(sys.argv[1]))))
