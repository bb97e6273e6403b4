"""The safetensors files of a checkpoint directory, single or sharded.

Read tensor by tensor without loading the rest.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.errors import CheckpointError
from streaming.layers.compact import SCALE_SUFFIX, expand

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class TensorFiles:
    """Keys of a checkpoint and the files that hold them."""

    def __init__(self, directory: Path, single: str = SINGLE) -> None:
        """From `directory`'s index and shards, else from its one file `single`; raises `CheckpointError`."""
        self.directory = directory
        index = directory / INDEX
        if single == SINGLE and index.exists():
            self._file = self._sharded(index)
        elif (directory / single).exists():
            path = directory / single
            self._file = dict.fromkeys(_keys(path), path)
        else:
            raise CheckpointError(f"{directory} holds neither {single} nor {INDEX}; download the weights into it")

    @property
    def keys(self) -> set[str]:
        """All but the row scales, which belong to the packed matrices beside them."""
        return set(self._file) - {key + SCALE_SUFFIX for key in self._file}

    def path(self, key: str) -> Path:
        return self._file[key]

    def shape(self, key: str) -> tuple[int, ...]:
        with _open(self._file[key]) as tensors:
            return tuple(tensors.get_slice(key).get_shape())

    def read(self, key: str) -> Tensor:
        """The tensor as stored, mapped from the file on the CPU; float32 where it is packed (`streaming.layers`)."""
        tensor, scale = self._read(key), key + SCALE_SUFFIX
        return expand({key: tensor, scale: self._read(scale)})[key] if scale in self._file else tensor

    def _read(self, key: str) -> Tensor:
        with _open(self._file[key]) as tensors:
            tensor: Tensor = tensors.get_tensor(key)
        return tensor

    def _sharded(self, index: Path) -> dict[str, Path]:
        try:
            weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
        except msgspec.MsgspecError as error:
            raise CheckpointError(f"{index} is not an index of shards ({error}); download it again") from None
        found: dict[str, Path] = {}
        for name in sorted(set(weight_map.values())):
            shard = self.directory / name
            if not shard.exists():
                raise CheckpointError(f"{shard} is missing though {INDEX} lists it; download the shard")
            held = _keys(shard)
            lost = sorted(key for key, file in weight_map.items() if file == name and key not in held)
            if lost:
                raise CheckpointError(f"{shard} lacks {lost[0]}, which {INDEX} lists; download shard and index again")
            found |= dict.fromkeys(held, shard)
        return found


def _keys(path: Path) -> set[str]:
    with _open(path) as tensors:
        return set(tensors.keys())


def _open(path: Path) -> safe_open:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again") from None
