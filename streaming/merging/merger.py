"""InterleavedMergingTransformer: one embedding for each group of encoder frames (FlexiSLM sections 2.5 and 3.5).

Version 2 runs a transformer over every group's frames followed by their mean, and reads it at the means; version 1
runs it over the means alone. With causal attention version 2 works frame by frame as well.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from streaming.layers.transformer import ProjectedTransformer, TransformerConfig


def group_means(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean of each group, [G, H], of frames [T, H] in groups of `lengths` int64 [G] that sum to T."""
    owner = torch.repeat_interleave(torch.arange(lengths.shape[0], device=frames.device), lengths)
    total = frames.new_zeros(lengths.shape[0], frames.shape[1]).index_add(0, owner, frames)
    return total / lengths.unsqueeze(1).to(frames.dtype)


def interleave(frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [T, H] with each group's mean right behind it, [T + G, H], and the places of the means, int64 [G]."""
    groups = lengths.shape[0]
    order = torch.arange(groups, device=frames.device)
    owner = torch.repeat_interleave(order, lengths)
    mean_place = lengths.cumsum(0) + order
    sequence = frames.new_zeros(frames.shape[0] + groups, frames.shape[1])
    sequence = sequence.index_copy(0, torch.arange(frames.shape[0], device=frames.device) + owner, frames)
    return sequence.index_copy(0, mean_place, group_means(frames, lengths)), mean_place


class InterleavedMergingTransformer(nn.Module):
    """Version 2. Keys: `transformer.*` of a ProjectedTransformer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.transformer = ProjectedTransformer(config)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """One utterance: frames [T, H], group lengths int64 [G] -> [G, H]."""
        sequence, mean_place = interleave(frames, lengths)
        return self.transformer(sequence[None])[0, mean_place]  # type: ignore[no-any-return]

    def forward_batch(self, utterances: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """`forward` of several utterances in one padded pass, with gradients."""
        parts = [interleave(frames, lengths) for frames, lengths in utterances]
        sequences = nn.utils.rnn.pad_sequence([sequence for sequence, _ in parts], batch_first=True)
        sizes = torch.tensor([sequence.shape[0] for sequence, _ in parts], device=sequences.device)
        valid = torch.arange(sequences.shape[1], device=sequences.device) < sizes[:, None]
        merged = self.transformer(sequences, valid)
        return [merged[row, place] for row, (_, place) in enumerate(parts)]


class MeanMergingTransformer(ProjectedTransformer):
    """Version 1: the transformer runs over the group means. Keys: those of a ProjectedTransformer, directly."""

    def merge(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """One utterance: frames [T, H], group lengths int64 [G] -> [G, H]."""
        return self(group_means(frames, lengths)[None])[0]  # type: ignore[no-any-return]


def merger_mode(causal: bool) -> Literal["causal", "window"]:
    """What `input_merging_transformer_causal` means: a past of `context` positions, or context / 2 to either side."""
    return "causal" if causal else "window"
