"""Typed training configurations in TOML; a wrong key or value is one sentence, not a traceback."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

Config = TypeVar("Config", bound=msgspec.Struct)


class TrainingConfigError(ValueError):
    """The configuration file cannot be used; the message says which key and why."""


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read `path` as `kind` (a Struct with `forbid_unknown_fields`). Raises TrainingConfigError."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except OSError as error:
        raise TrainingConfigError(f"{path}: cannot be read ({error.strerror}); give an existing TOML file") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise TrainingConfigError(f"{path}: {error}") from error
