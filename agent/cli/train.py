"""`agogic train STAGE --config FILE`: trains one part of the embedded model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

STAGES = (
    "speech_data", "recogniser", "slm", "voice_data", "codec", "flow", "vocoder", "talker", "hard_data", "hearing",
    "codes", "assemble", "turn_end", "backchannel",
)  # fmt: skip


def train(
    stage: Annotated[str, typer.Argument(help="one of " + ", ".join(STAGES))],
    config: Annotated[Path, typer.Option(help="the stage's TOML file, see configs/train")],
) -> None:
    """Train a part of the embedded model; a run that was interrupted goes on where it stopped."""
    if stage not in STAGES:
        print(f"agogic train: there is no stage {stage!r}; choose one of {', '.join(STAGES)}", file=sys.stderr)
        raise typer.Exit(2)
    if not config.is_file():
        print(f"agogic train: {config} does not exist; configs/train holds one for each stage", file=sys.stderr)
        raise typer.Exit(2)
    try:
        module = importlib.import_module(f"training.{stage}")
    except ModuleNotFoundError as error:
        print(f'agogic train: {error.name} is not installed; run pip install -e ".[train]"', file=sys.stderr)
        raise typer.Exit(2) from error
    module.main(config)
