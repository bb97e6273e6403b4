"""`agogic export`: any of our models in the layout of the official checkpoints, and official ones in ours."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from agent.cli.measuring import as_json


class Precision(StrEnum):
    """How weights are stored; int8 (rows with a scale) is read by agogic alone, the others by the original as well."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    int8 = "int8"


class Report(msgspec.Struct, frozen=True):
    """What was written. copied: the files that went along unchanged."""

    directory: str
    tensors: int
    parameters: int
    bytes: int
    copied: list[str]


def export(
    model: Annotated[str, typer.Argument(help="'embedded' or a checkpoint directory")],
    output: Annotated[Path, typer.Argument(help="the directory to write")],
    precision: Annotated[Precision, typer.Option(help="how weights are stored")] = Precision.bfloat16,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Write a model in the official layout: Thinker, Talker and merger, adapters merged, with config and tokenizer."""
    import torch

    from models.checkpoints.export import copy_companions, export_flexislm, official_tensors
    from models.checkpoints.flexislm_checkpoint import load_flexislm
    from models.checkpoints.hub import EMBEDDED, EMBEDDED_DIRECTORY
    from models.errors import CheckpointError

    directory = EMBEDDED_DIRECTORY if model == EMBEDDED else Path(model)
    if output.resolve() == directory.resolve():
        print("agogic export: the model would be written over itself; give another directory", file=sys.stderr)
        raise typer.Exit(2)
    packed = precision is Precision.int8
    dtype = torch.float32 if packed else getattr(torch, precision.value)
    try:
        network = load_flexislm(directory, dtype=dtype)
        export_flexislm(network, directory / "tokenizer.json", output, dtype=dtype, packed=packed)
    except CheckpointError as error:
        print(f"agogic export: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    copied = copy_companions(directory, output)
    tensors = official_tensors(network)
    report = Report(
        directory=str(output),
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(path.stat().st_size for path in output.iterdir() if path.is_file()),
        copied=copied,
    )
    if json:
        print(as_json(report))
    else:
        millions, megabytes = report.parameters / 1e6, report.bytes / 1e6
        print(f"{report.directory}: {report.tensors} tensors, {millions:.1f} M parameters, {megabytes:.1f} MB")
