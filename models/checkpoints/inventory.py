"""What a model consists of: which files are there and fit together, how large the networks are. Reads no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models.checkpoints.flexicodec_checkpoint import CodecFiles, check_flexicodec, check_vocos, check_voicebox
from models.checkpoints.flexislm_checkpoint import check_flexislm, load_tokenizer
from models.checkpoints.hub import (
    AUDIO_ENCODER,
    EMBEDDED_CODEC,
    FLOW,
    VOCODER,
    VOICE_CODEC,
    Companions,
    find_checkpoint,
    find_codec,
    find_part,
    is_embedded,
    is_hub_id,
)
from models.checkpoints.omni_checkpoint import check_omni_encoder
from models.checkpoints.tensor_files import TensorFiles
from models.errors import CheckpointError
from models.networks.config import FlexiSLMConfig
from models.networks.qwen2 import DecoderConfig


@dataclass(frozen=True)
class Part:
    """where: file or directory, "" where it was not found; problem: one sentence, "" where all is well."""

    what: str
    where: str
    file_bytes: int
    problem: str = ""


@dataclass(frozen=True)
class Sizes:
    """Parameters of each network; of the language model all, and those that every step reads.

    cache_values: keys and values that one position of a prompt holds.
    """

    language: int
    step: int
    cache_values: int
    encoder: int
    flow: int
    vocoder: int


@dataclass(frozen=True)
class Inventory:
    """sizes: None where a part is missing or damaged."""

    name: str
    embedded: bool
    parts: tuple[Part, ...]
    sizes: Sizes | None

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(part.problem for part in self.parts if part.problem)

    @property
    def file_bytes(self) -> int:
        return sum(part.file_bytes for part in self.parts)


@dataclass
class _Findings:
    """What the checks have found out so far."""

    parts: list[Part]
    counts: dict[str, int]
    config: FlexiSLMConfig | None = None
    encoder_dim: int = 0
    step: int = 0

    def check(self, what: str, look: Callable[[], tuple[Path, Iterable[Path], int]]) -> None:
        """look: gives where the part lies, its files and its parameters; raises `CheckpointError`."""
        try:
            where, files, count = look()
        except CheckpointError as error:
            self.parts.append(Part(what, "", 0, str(error)))
            return
        self.parts.append(Part(what, str(where), sum(file.stat().st_size for file in set(files))))
        self.counts[what] = count

    def sizes(self) -> Sizes | None:
        if self.config is None or any(part.problem for part in self.parts):
            return None
        counts = self.counts
        return Sizes(
            language=counts["language model"],
            step=self.step,
            cache_values=_cache_values(self.config.thinker) + _cache_values(self.config.talker),
            encoder=counts["audio encoder"],
            flow=counts["flow decoder"],
            vocoder=counts["vocoder"],
        )


def take_inventory(spec: str) -> Inventory:
    """Of 'embedded', a directory or a hub id, without fetching anything; raises `CheckpointError` for no model."""
    found = _Findings([], {})
    directory: Path | None = None
    try:
        directory = find_checkpoint(spec, offline=True)
    except CheckpointError as error:
        if not is_hub_id(spec):
            raise
        # What goes with it may be here already.
        found.parts.append(Part("language model", "", 0, str(error)))
    if directory is not None:
        if is_embedded(spec, directory):
            return _embedded(spec, directory)
        _check_language_model(found, directory)

    def encoder() -> tuple[Path, Iterable[Path], int]:
        return _omni(found, find_part(directory, AUDIO_ENCODER, offline=True))

    found.check("audio encoder", encoder)
    found.check("codec", lambda: _codec(find_codec(directory, VOICE_CODEC, offline=True)))
    found.check("flow decoder", lambda: _flow(found, find_part(directory, FLOW, offline=True) / FLOW.files[0]))
    found.check("vocoder", lambda: _vocoder(find_part(directory, VOCODER, offline=True) / VOCODER.files[0]))
    return Inventory(spec, False, tuple(found.parts), found.sizes())


def inspect_files(directory: Path, name: str, companions: Companions) -> Inventory:
    """Of a checkpoint whose companions were found already."""
    found = _Findings([], {})
    _check_language_model(found, directory)
    found.check("audio encoder", lambda: _omni(found, companions.audio_encoder))
    found.check("codec", lambda: _codec(companions.codec))
    found.check("flow decoder", lambda: _flow(found, companions.flow))
    found.check("vocoder", lambda: _vocoder(companions.vocoder))
    return Inventory(name, False, tuple(found.parts), found.sizes())


def _embedded(spec: str, directory: Path) -> Inventory:
    found = _Findings([], {})
    _check_language_model(found, directory)
    files = {
        "audio encoder": "encoder.safetensors",
        "codec": EMBEDDED_CODEC,
        "flow decoder": "flow.safetensors",
        "vocoder": "vocoder.safetensors",
    }
    for what, name in files.items():
        found.check(what, lambda name=name: _file(directory, name))  # type: ignore[misc]
    return Inventory(spec, True, tuple(found.parts), found.sizes())


def _check_language_model(found: _Findings, directory: Path) -> None:
    def language_model() -> tuple[Path, Iterable[Path], int]:
        checked = check_flexislm(directory)
        model = checked.model
        found.config, found.encoder_dim = checked.config, model.encoder_dim
        # Of the embedding tables a step reads a row, of the head that may share one all of it.
        found.step = _count(model.thinker.model.layers) + model.thinker.lm_head.weight.numel()
        found.step += _count(model.talker_model) - _count(model.talker_model.model.model.embed_tokens)
        return directory, _tensor_files(TensorFiles(directory)), _count(model)

    def tokenizer() -> tuple[Path, Iterable[Path], int]:
        if found.config is not None:
            load_tokenizer(directory, found.config)
        names = ("tokenizer.json", "vocab.json", "merges.txt")
        return directory, [directory / name for name in names if (directory / name).exists()], 0

    found.check("language model", language_model)
    found.check("tokenizer", tokenizer)


def _omni(found: _Findings, directory: Path) -> tuple[Path, Iterable[Path], int]:
    encoder = check_omni_encoder(directory)
    if found.config is not None and encoder.config.output_dim != found.encoder_dim:
        raise CheckpointError(
            f"{directory} gives frames of width {encoder.config.output_dim}, the checkpoint hears {found.encoder_dim}; "
            "take the encoder that belongs to it"
        )
    return directory, _tensor_files(TensorFiles(directory)), _count(encoder)


def _codec(files: CodecFiles) -> tuple[Path, Iterable[Path], int]:
    check_flexicodec(files)
    paths = [path for path in (files.codec, files.semantic, files.cmvn) if path is not None and path.exists()]
    return files.codec, paths, 0


def _flow(found: _Findings, path: Path) -> tuple[Path, Iterable[Path], int]:
    flow = check_voicebox(path)
    known, spoken = flow.config.codebook_size, found.config.audio_vocab_size if found.config else 0
    if known < spoken:
        raise CheckpointError(
            f"{path} knows {known} codes, the checkpoint speaks {spoken}; take the flow decoder that belongs to it"
        )
    return path, [path], _count(flow)


def _vocoder(path: Path) -> tuple[Path, Iterable[Path], int]:
    return path, [path], _count(check_vocos(path))


def _file(directory: Path, name: str) -> tuple[Path, Iterable[Path], int]:
    files, count = TensorFiles(directory, name), 0
    for key in files.keys:
        values = 1
        for length in files.shape(key):
            values *= length
        count += values
    return directory / name, [directory / name], count


def _tensor_files(files: TensorFiles) -> set[Path]:
    return {files.path(key) for key in files.keys}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _cache_values(config: DecoderConfig) -> int:
    return 2 * config.num_layers * config.num_kv_heads * (config.hidden_size // config.num_heads)
