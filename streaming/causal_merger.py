"""Frames in, merged embeddings out, group by group while the user is still speaking.

Each frame either joins the open group or closes it and opens the next (`streaming.rate_control`). A closed group enters
the merging transformer as its frames followed by their mean, the query; the output at the query is the group's
embedding (FlexiSLM section 3.5, causal mode). Nothing that comes later changes a group that was given out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.grouping import group_frames
from streaming.merger import InterleavedMergingTransformer, interleave
from streaming.rate_control import RateController, RateState
from streaming.transformer import TransformerState


@dataclass(frozen=True)
class StreamState:
    """One stream. open_frames [k, H] are the encoder frames of the open group, k at most `max_group`."""

    rate: RateState
    transformer: TransformerState
    open_frames: Tensor


@dataclass(frozen=True)
class Merged:
    """embeddings [groups, D] of the groups that closed and how many frames each one holds."""

    embeddings: Tensor
    durations_frames: tuple[int, ...]


class CausalMerger:
    """Drives the merging transformer (mode "causal") of one model over single streams.

    embed: maps encoder frames to the Thinker's width before they are merged (identity where the widths agree); grouping
    looks at the frames themselves. A state is a value: keeping an old one undoes what came after it.
    """

    def __init__(self, merging: InterleavedMergingTransformer, embed: nn.Module, controller: RateController) -> None:
        self._merging = merging
        self._transformer = merging.transformer
        self._embed = embed
        self.controller = controller

    @property
    def base_hz(self) -> float:
        return self.controller.base_hz

    def initial_state(self, width: int) -> StreamState:
        """width: H, the encoder's."""
        nothing = next(self._transformer.parameters()).new_zeros(0, width)
        return StreamState(self.controller.initial_state(), self._transformer.initial_state(1), nothing)

    def next_utterance(self, state: StreamState) -> StreamState:
        """A fresh start that keeps what the rate controller learned and still owes."""
        fresh = self._transformer.initial_state(1)
        return StreamState(self.controller.next_utterance(state.rate), fresh, state.open_frames[:0])

    def step(self, frames: Tensor, state: StreamState, target_hz: float) -> tuple[Merged, StreamState]:
        """frames [n, H], n may be 0. Raises RateError where the rate cannot be met."""
        if not len(frames):
            return Merged(self.nothing(frames), ()), state
        rate, seen = self.controller.copy(state.rate), torch.cat((state.open_frames, frames))
        held = state.open_frames.shape[0]
        similarity = F.cosine_similarity(seen[:-1].float(), seen[1:].float(), dim=-1).tolist()
        cuts = []
        for index in range(held, seen.shape[0]):
            starts = self.controller.step(similarity[index - 1] if index else 1.0, rate, target_hz)
            if starts and index:
                cuts.append(index)
        if not cuts:
            return Merged(self.nothing(seen), ()), StreamState(rate, state.transformer, seen)
        return self._merge(seen[: cuts[-1]], _lengths(cuts), state.transformer, rate, seen[cuts[-1] :])

    def flush(self, state: StreamState) -> tuple[Merged, StreamState]:
        """Closes the open group, if there is one: the utterance is over."""
        closing, rest = state.open_frames, state.open_frames[:0]
        if not len(closing):
            return Merged(self.nothing(rest), ()), state
        return self._merge(closing, (len(closing),), state.transformer, state.rate, rest)

    def forward(self, frames: Tensor, target_hz: float) -> Merged:
        """A whole utterance [T, H] in one pass of the transformer, with the cuts that the stream would make."""
        state = self.initial_state(frames.shape[-1])
        if not len(frames):
            return Merged(self.nothing(frames), ())
        similarity = F.cosine_similarity(frames[:-1].float(), frames[1:].float(), dim=-1).cpu().numpy()
        starts = self.controller.whole(similarity, state.rate, target_hz).nonzero()[0]
        lengths = _lengths([*starts[1:].tolist(), len(frames)])
        return Merged(self._merging(self._embed(frames), torch.tensor(lengths, device=frames.device)), lengths)

    def exact(self, frames: Tensor, target_hz: float) -> Merged:
        """A whole utterance [T, H], T > 0, cut by top-k as offline (section 3.4) and merged in one pass."""
        groups = group_frames(frames, target_hz, self.base_hz, max_group=self.controller.max_group)
        return Merged(self._merging(self._embed(frames), groups.lengths), tuple(groups.lengths.tolist()))

    def nothing(self, like: Tensor) -> Tensor:
        """Embeddings [0, D] of no group."""
        return like.new_zeros(0, self._transformer.config.output_dim)

    def _merge(
        self,
        frames: Tensor,
        lengths: tuple[int, ...],
        transformer: TransformerState,
        rate: RateState,
        rest: Tensor,
    ) -> tuple[Merged, StreamState]:
        sequence, queries = interleave(self._embed(frames), torch.tensor(lengths, device=frames.device))
        mixed, transformer = self._transformer.step(sequence[None], transformer)
        return Merged(mixed[0, queries], lengths), StreamState(rate, transformer, rest)


def _lengths(ends: list[int]) -> tuple[int, ...]:
    """Lengths of the groups that end before these indices."""
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
