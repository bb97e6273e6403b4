"""Where an answer's speech is cut into the chunks of the flow decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChunkPlan:
    """Lengths of the first chunks and how far each looks beyond its end, in 12.5 Hz frames; the last ones repeat.

    Short first chunks without look-ahead let sound begin after a single code. `together` says how many chunks the
    first calls of the decoder make at once: a chunk hears no more of the future for that, it is made later and cheaper.
    Raises ValueError.
    """

    lengths: tuple[int, ...]
    look_ahead: tuple[int, ...]
    together: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"chunks last at least 1 frame, not {self.lengths}")
        if not self.look_ahead or min(self.look_ahead) < 0:
            raise ValueError(f"a chunk looks at least 0 frames ahead, not {self.look_ahead}")
        if not self.together or min(self.together) < 1:
            raise ValueError(f"a call makes at least 1 chunk, not {self.together}")

    def length(self, index: int) -> int:
        return self.lengths[min(index, len(self.lengths) - 1)]

    def ahead(self, index: int) -> int:
        return self.look_ahead[min(index, len(self.look_ahead) - 1)]

    def chunks(self, call: int) -> int:
        """How many chunks the decoder's call number `call` makes, when no end of speech cuts it short."""
        return self.together[min(call, len(self.together) - 1)]

    def layout(self, frames: int, first_chunk: int = 0) -> Layout:
        """The chunk of every one of `frames` frames, counted from the beginning of chunk `first_chunk`."""
        start: list[int] = []
        end: list[int] = []
        visible: list[int] = []
        index = first_chunk
        while len(start) < frames:
            length = self.length(index)
            first = len(start)
            start += [first] * length
            end += [first + length] * length
            visible += [first + length + self.ahead(index)] * length
            index += 1
        return Layout(*(torch.tensor(part[:frames]) for part in (start, end, visible)))


@dataclass(frozen=True)
class Layout:
    """For every 12.5 Hz frame, int64 [frames] or [rows, frames]: where its chunk starts, where it ends, and the first
    frame that the chunk may not look at any more."""

    start: Tensor
    end: Tensor
    visible: Tensor

    def as_row(self) -> Layout:
        """[frames] as the only row of a batch."""
        return Layout(self.start[None], self.end[None], self.visible[None])
