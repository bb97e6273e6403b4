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

from streaming.rate_control import RateController, RateState
from streaming.transformer import ProjectedTransformer, TransformerState


@dataclass(frozen=True)
class MergerState:
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

    def __init__(self, transformer: ProjectedTransformer, embed: nn.Module, controller: RateController) -> None:
        self._transformer = transformer
        self._embed = embed
        self._controller = controller

    @property
    def base_hz(self) -> float:
        return self._controller.base_hz

    def initial_state(self, width: int) -> MergerState:
        """width: H, the encoder's."""
        return MergerState(self._controller.initial_state(), self._transformer.initial_state(1), self._none(width))

    def next_utterance(self, state: MergerState) -> MergerState:
        """A fresh start that keeps what the rate controller learned and still owes."""
        fresh = self._transformer.initial_state(1)
        return MergerState(self._controller.next_utterance(state.rate), fresh, state.open_frames[:0])

    def step(self, frames: Tensor, state: MergerState, target_hz: float) -> tuple[Merged, MergerState]:
        """frames [n, H], n may be 0. Raises RateError where the rate cannot be met."""
        rate, seen = self._controller.copy(state.rate), torch.cat((state.open_frames, frames))
        held = state.open_frames.shape[0]
        similarity = F.cosine_similarity(seen[:-1].float(), seen[1:].float(), dim=-1).tolist()
        cuts = []
        for index in range(held, seen.shape[0]):
            starts = self._controller.step(similarity[index - 1] if index else 1.0, rate, target_hz)
            if starts and index:
                cuts.append(index)
        if not cuts:
            return self._merge([], state.transformer, rate, seen)
        groups = list(seen[: cuts[-1]].tensor_split(cuts[:-1]))
        return self._merge(groups, state.transformer, rate, seen[cuts[-1] :])

    def flush(self, state: MergerState) -> tuple[Merged, MergerState]:
        """Closes the open group, if there is one: the utterance is over."""
        groups = [state.open_frames] if state.open_frames.shape[0] else []
        return self._merge(groups, state.transformer, state.rate, state.open_frames[:0])

    def forward(self, frames: Tensor, target_hz: float) -> Merged:
        """A whole utterance [T, H] in one pass of the transformer, with the cuts that the stream would make."""
        state = self.initial_state(frames.shape[-1])
        similarity = F.cosine_similarity(frames[:-1].float(), frames[1:].float(), dim=-1).tolist()
        starts = [self._controller.step(value, state.rate, target_hz) for value in [1.0, *similarity][: len(frames)]]
        cuts = [index for index, start in enumerate(starts) if start and index]
        groups = list(frames.tensor_split(cuts)) if len(frames) else []
        if not groups:
            return Merged(self._none_merged(frames), ())
        sequence, queries = self._interleave(groups)
        return Merged(self._transformer(sequence[None])[0, queries], tuple(len(group) for group in groups))

    def _merge(
        self, groups: list[Tensor], transformer: TransformerState, rate: RateState, rest: Tensor
    ) -> tuple[Merged, MergerState]:
        if not groups:
            return Merged(self._none_merged(rest), ()), MergerState(rate, transformer, rest)
        sequence, queries = self._interleave(groups)
        mixed, transformer = self._transformer.step(sequence[None], transformer)
        durations = tuple(len(group) for group in groups)
        return Merged(mixed[0, queries], durations), MergerState(rate, transformer, rest)

    def _interleave(self, groups: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Frames of each group with their mean behind them [positions, D], and the positions of the means."""
        parts, queries, end = [], [], -1
        for group in groups:
            embedded = self._embed(group)
            parts += [embedded, embedded.mean(dim=0, keepdim=True)]
            end += len(group) + 1
            queries.append(end)
        return torch.cat(parts), torch.tensor(queries, device=groups[0].device)

    def _none(self, width: int) -> Tensor:
        weight = next(self._transformer.parameters())
        return weight.new_zeros(0, width)

    def _none_merged(self, like: Tensor) -> Tensor:
        return like.new_zeros(0, self._transformer.config.output_dim)
