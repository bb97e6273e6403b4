"""Frames in, merged embeddings out, group by group while the user is still speaking.

Each frame either joins the open group or closes it and opens the next (`rate_control`). A closed group enters the
merging transformer as its frames followed by their mean, the query; the output at the query is the group's embedding
(FlexiSLM section 3.5, causal mode). Nothing that comes later changes a group that was given out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.layers.transformer import TransformerState
from streaming.merging.grouping import group_frames
from streaming.merging.merger import InterleavedMergingTransformer, group_means
from streaming.merging.rate_control import RateController, RateState


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


@dataclass(frozen=True)
class _Closing:
    """Groups of one stream that close: frames [sum of lengths, H], and the past that they are merged behind."""

    frames: Tensor
    lengths: tuple[int, ...]
    transformer: TransformerState


class CausalMerger:
    """Drives the merging transformer (mode "causal") of one model over streams, alone or several at once.

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
        return self.step_together([frames], [state], [target_hz])[0]

    def step_together(
        self, frames: list[Tensor], states: list[StreamState], target_hz: list[float]
    ) -> list[tuple[Merged, StreamState]]:
        """`step` of several streams, whose closed groups are merged in one pass of the transformer.

        Each stream brings as many frames [n, H] as it has, gets what it would get alone, and keeps its old state if
        another's rate raises RateError.
        """
        stepped: list[tuple[Merged, StreamState]] = []
        closing: dict[int, _Closing] = {}
        for piece, state, hz, similarity in zip(frames, states, target_hz, _similarities(frames, states), strict=True):
            if len(piece):
                rate, held = self.controller.copy(state.rate), len(state.open_frames)
                starts = [place for place, s in enumerate(similarity, held) if self.controller.step(s, rate, hz)]
                seen, cuts = torch.cat((state.open_frames, piece)), [place for place in starts if place]
                if cuts:
                    closing[len(stepped)] = _Closing(seen[: cuts[-1]], _lengths(cuts), state.transformer)
                state = StreamState(rate, state.transformer, seen[cuts[-1] if cuts else 0 :])
            stepped.append((Merged(self.nothing(piece), ()), state))
        if closing:
            for stream, (merged, transformer) in zip(closing, self._merge(list(closing.values())), strict=True):
                stepped[stream] = merged, replace(stepped[stream][1], transformer=transformer)
        return stepped

    def flush(self, state: StreamState) -> tuple[Merged, StreamState]:
        """Closes the open group, if there is one: the utterance is over."""
        frames, rest = state.open_frames, state.open_frames[:0]
        if not len(frames):
            return Merged(self.nothing(rest), ()), state
        [(merged, transformer)] = self._merge([_Closing(frames, (len(frames),), state.transformer)])
        return merged, StreamState(state.rate, transformer, rest)

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

    def _merge(self, closing: list[_Closing]) -> list[tuple[Merged, TransformerState]]:
        """What the streams' groups become, in one pass over all of them."""
        sizes = [length for stream in closing for length in stream.lengths]
        frames = self._embed(torch.cat([stream.frames for stream in closing]))
        means = group_means(frames, torch.tensor(sizes, device=frames.device))
        rows, queries = _arrange([stream.lengths for stream in closing])
        longest = max(map(len, rows))
        # Each row is padded with a vector of its own: one stream's garbage must not reach another.
        order = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=frames.device)
        mixed, states = self._transformer.step_ragged(
            torch.cat((frames, means))[order], list(map(len, rows)), [stream.transformer for stream in closing]
        )
        return [
            (Merged(y[places], stream.lengths), state)
            for y, places, stream, state in zip(mixed, queries, closing, states, strict=True)
        ]


def _similarities(frames: list[Tensor], states: list[StreamState]) -> list[list[float]]:
    """Cosine of each stream's new frames with the frame before, 1 where there is none."""
    rows = [part for piece, state in zip(frames, states, strict=True) for part in (state.open_frames[-1:], piece)]
    every = torch.cat(rows).float()
    neighbours = F.cosine_similarity(every[:-1], every[1:], dim=-1).tolist() if len(every) > 1 else []
    similarities, place = [], 0
    for piece, state in zip(frames, states, strict=True):
        place += min(1, len(state.open_frames))
        # neighbours[i] compares the rows i and i + 1 of all streams in a row; between two streams nothing is compared.
        first = [] if len(state.open_frames) or not len(piece) else [1.0]
        similarities.append(first + neighbours[place - 1 + len(first) : place - 1 + len(piece)])
        place += len(piece)
    return similarities


def _arrange(lengths: list[tuple[int, ...]]) -> tuple[list[list[int]], list[list[int]]]:
    """For each stream the order of its frames and means, a group's mean behind its frames, and where the means are.

    Frames are counted through all streams, then the means.
    """
    rows, queries, frame, mean = [], [], 0, sum(map(sum, lengths))
    for stream in lengths:
        row: list[int] = []
        places = []
        for length in stream:
            row += [*range(frame, frame + length), mean]
            places.append(len(row) - 1)
            frame, mean = frame + length, mean + 1
        rows.append(row)
        queries.append(places)
    return rows, queries


def _lengths(ends: list[int]) -> tuple[int, ...]:
    """Lengths of the groups that end before these indices."""
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
