"""Query-token aggregation: one vector for each group of frames (flexicodec.md section 7).

Behind every group stands a query (mean of its frames plus a learnt vector); a transformer runs over frames and queries,
and its outputs at the queries are the groups' vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streaming.layers.transformer import ProjectedTransformer, TransformerConfig


class QueryAggregator(nn.Module):
    """Keys: query_embedding [1, dim, 1], transformer.* (a ProjectedTransformer)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.query_embedding = nn.Parameter(torch.randn(1, config.input_dim, 1) * 0.02)
        self.transformer = ProjectedTransformer(config)

    def interleave(self, frames: Tensor, durations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames with each group's query behind it.

        frames [batch, L, dim]; durations int64 [batch, G], 0 where an item has fewer groups, sums at most L.
        Returns the sequence [batch, L + G, dim], the queries' places int64 [batch, G] (those of absent groups point
        behind everything real) and which places are real, bool [batch, L + G].
        """
        batch, length, dim = frames.shape
        groups = durations.shape[1]
        ends = durations.cumsum(1)
        order = torch.arange(groups, device=frames.device)
        time = torch.arange(length, device=frames.device)
        total = ends[:, -1:]
        # The number of groups that end at or before a frame is the index of the frame's own group.
        owner = (ends.unsqueeze(2) <= time).sum(1).clamp_max(groups - 1)
        present = durations > 0
        real = time < total
        weight = torch.zeros(batch, groups, length, device=frames.device, dtype=frames.dtype)
        weight.scatter_(1, owner.unsqueeze(1), real.unsqueeze(1).to(frames.dtype))
        means = weight @ frames / durations.clamp_min(1).unsqueeze(2).to(frames.dtype)
        queries = means + self.query_embedding.transpose(1, 2).to(frames.dtype)
        count = present.sum(1, keepdim=True)
        query_place = torch.where(present, ends + order, total + order)
        # Padding frames follow all real frames and queries and the places of absent queries.
        frame_place = torch.where(real, time + owner, time + groups)
        sequence = frames.new_zeros(batch, length + groups, dim)
        sequence = sequence.scatter(1, frame_place.unsqueeze(2).expand(-1, -1, dim), frames)
        sequence = sequence.scatter(1, query_place.unsqueeze(2).expand(-1, -1, dim), queries)
        return sequence, query_place, torch.arange(length + groups, device=frames.device) < total + count

    def forward(self, frames: Tensor, durations: Tensor) -> Tensor:
        """[batch, L, dim], int64 [batch, G] -> [batch, G, output_dim]; rows of absent groups are undefined."""
        sequence, query_place, real = self.interleave(frames, durations)
        out = self.transformer(sequence, None if bool(real.all()) else real)
        return torch.gather(out, 1, query_place.unsqueeze(2).expand(-1, -1, out.shape[2]))
