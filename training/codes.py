"""Codes of further recordings of the speaking voice, by the finished codec: `agogic train codes --config FILE`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from models.checkpoints.voice_files import load_codec
from training.codec import write_codes
from training.toml_config import load_config
from training.voice_features import load


class CodesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`voice`: a folder that `voice_data` wrote; `codec_weights`: the codec whose codes the Talker speaks."""

    voice: str
    codec_weights: str
    threads: int = 1


def main(config_path: Path) -> None:
    config = load_config(config_path, CodesConfig)
    torch.set_num_threads(config.threads)
    voice = load(Path(config.voice))
    write_codes(load_codec(Path(config.codec_weights)), voice, Path(config.voice))
    print(f"wrote the codes of {len(voice.clips)} clips")
