"""Offline grouping of encoder frames to a requested rate.

Cuts at the lowest similarities of neighbours (FlexiSLM section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_GROUP_FRAMES = 16
"""Frames per group at most, in the official engine: 0.64 s at 25 Hz."""


class TooFewFramesError(ValueError):
    """There is no frame to group: the audio is shorter than one encoder frame."""


@dataclass(frozen=True)
class Groups:
    """A partition of T frames into G runs.

    starts, lengths int64 [G]: first frame and number of frames of each group; similarity [T - 1]: cosine of neighbours
    (zeros in uniform mode); requested: groups asked for before long ones were split, None in threshold mode.
    """

    starts: Tensor
    lengths: Tensor
    similarity: Tensor
    requested: int | None

    @property
    def count(self) -> int:
        return self.starts.shape[0]

    @property
    def frame_to_group(self) -> Tensor:
        """int64 [T]."""
        return torch.repeat_interleave(torch.arange(self.count, device=self.lengths.device), self.lengths)

    def rate_hz(self, base_hz: float) -> float:
        """Groups per second, where frames come at `base_hz`."""
        return base_hz * self.count / int(self.lengths.sum())


def neighbour_similarity(frames: Tensor) -> Tensor:
    """Cosine of each frame with the next, [T - 1] in the frames' dtype, of frames [T, width]."""
    return F.cosine_similarity(frames[:-1], frames[1:], dim=-1, eps=1e-8)


def requested_groups(frames: int, target_hz: float, base_hz: float) -> int:
    """round_half_even(target / base * frames), in float32, at least 1."""
    share = torch.tensor(target_hz / base_hz, dtype=torch.float32)
    return max(int(torch.round(share * frames)), 1)


def group_frames(
    frames: Tensor,
    target: float,
    base_hz: float,
    *,
    max_group: int = MAX_GROUP_FRAMES,
    mode: Literal["dynamic", "uniform"] = "dynamic",
) -> Groups:
    """Partition frames [T, width].

    Dynamic: a `target` above 1 is a rate in Hz and cuts at the lowest similarities (of equals the earliest); a target
    of at most 1 is a threshold and cuts wherever the similarity is not above it; groups longer than `max_group` are
    then split. Uniform: equal shares, no split.
    """
    count = frames.shape[0]
    if count == 0:
        raise TooFewFramesError("the audio is too short to hold a single encoder frame; send at least 40 ms")
    if mode == "uniform":
        return _uniform(count, requested_groups(count, target, base_hz), frames)
    similarity = neighbour_similarity(frames)
    if count == 1:
        return _groups(torch.ones(1, dtype=torch.bool, device=frames.device), similarity, 1)
    if target <= 1.0:
        cuts, requested = similarity <= target, None
    else:
        requested = requested_groups(count, target, base_hz)
        cuts = torch.zeros(count - 1, dtype=torch.bool, device=frames.device)
        cuts[similarity.argsort(stable=True)[: min(requested, count) - 1]] = True
    first = torch.cat((torch.ones_like(cuts[:1]), cuts))
    return _groups(_split_long(first, max_group), similarity, requested)


def _groups(first: Tensor, similarity: Tensor, requested: int | None) -> Groups:
    """Groups of which `first` [T] bool marks the first frames."""
    starts = first.nonzero().squeeze(1)
    ends = torch.cat((starts[1:], starts.new_tensor([first.shape[0]])))
    return Groups(starts, ends - starts, similarity, requested)


def _split_long(first: Tensor, max_group: int) -> Tensor:
    """A further start at every `max_group`-th frame of a group."""
    index = torch.arange(first.shape[0], device=first.device)
    start = torch.where(first, index, 0).cummax(0).values
    return first | ((index - start) % max_group == 0)


def _uniform(count: int, requested: int, frames: Tensor) -> Groups:
    index = torch.arange(count, device=frames.device, dtype=torch.float32)
    group = (index * requested / count).floor().long().clamp_max(requested - 1)
    first = torch.cat((torch.ones(1, dtype=torch.bool, device=frames.device), group[1:] != group[:-1]))
    return _groups(first, frames.new_zeros(max(count - 1, 0)), requested)
