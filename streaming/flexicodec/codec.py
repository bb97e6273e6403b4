"""The speech codes of the embedded model: FlexiCodec's semantic branch over a small log-mel encoder.

16 kHz log-mel -> 12.5 Hz features -> neighbours merged to a rate -> one vector per group (query aggregator) ->
ConvNeXt -> FSQ code. The way back (codes -> vectors) is here too; sound comes from the flow decoder. Modules and keys
of the branch are FlexiCodec's; only the feature encoder differs, and convnext_decoder has no block with context, so
that a code's vector does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.flexicodec.aggregator import QueryAggregator
from streaming.flexicodec.fsq import FSQ
from streaming.hearing.windows import HOP_SAMPLES
from streaming.layers.convnext import ConvNeXtBlock
from streaming.layers.transformer import ProjectedTransformer, TransformerConfig

FRAME_RATE_HZ = 12.5
LOG_MEL_FRAMES = 8
INPUT_FRAME_SAMPLES = LOG_MEL_FRAMES * HOP_SAMPLES
"""16 kHz samples of one 12.5 Hz frame."""
MAX_GROUP_FRAMES = 8


class CodecConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mel_bins: int = 80
    dim: int = 192
    vector_dim: int = 256
    num_heads: int = 4
    ffn_dim: int = 512
    encoder_layers: int = 3
    encoder_context_frames: int = 64
    aggregator_layers: int = 2
    convnext_blocks: int = 1
    levels: tuple[int, ...] = (8, 8, 5, 5)


class MelSemanticEncoder(nn.Module):
    """[batch, 8 L, mel_bins] at 100 Hz -> [batch, L, dim] at 12.5 Hz; sees about 3 s to both sides."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        widths = (config.mel_bins, config.dim, config.dim, config.dim)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 5, stride=2, padding=2) for before, after in pairwise(widths)
        )
        self.transformer = ProjectedTransformer(
            TransformerConfig(
                config.dim, config.dim, config.num_heads, config.encoder_layers, config.ffn_dim, config.dim,
                "window", config.encoder_context_frames,
            )
        )  # fmt: skip
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, log_mel: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` bool [batch, L] marks the real frames of a padded batch."""
        x = log_mel.transpose(1, 2)
        for convolution in self.convolutions:
            x = F.gelu(convolution(x))
        return self.norm(self.transformer(x.transpose(1, 2), valid))  # type: ignore[no-any-return]


def merge_to_rate(similarity: Tensor, frames: int, rate_hz: float) -> list[int]:
    """Durations (1..8 frames, summing to `frames`) of groups cut where neighbours are least alike.

    similarity [>= frames - 1]: cosine of frames t and t + 1. The number of groups is frames * rate_hz / 12.5, more
    where the longest allowed group demands it.
    """
    wanted = max(1, min(frames, round(frames * rate_hz / FRAME_RATE_HZ)))
    cuts = torch.topk(similarity[: frames - 1], wanted - 1, largest=False).indices.sort().values.add(1).tolist()
    durations = []
    for start, end in zip([0, *cuts], [*cuts, frames], strict=True):
        run = end - start
        durations += [MAX_GROUP_FRAMES] * (run // MAX_GROUP_FRAMES)
        if run % MAX_GROUP_FRAMES:
            durations.append(run % MAX_GROUP_FRAMES)
    return durations


def merge_batch(features: Tensor, lengths: Sequence[int], rates_hz: Sequence[float]) -> Tensor:
    """Durations int64 [batch, G] of every item at its rate, padded with 0; features [batch, L, dim]."""
    with torch.no_grad():
        similarity = F.cosine_similarity(features[:, :-1].float(), features[:, 1:].float(), dim=-1, eps=1e-8).cpu()
        items = [merge_to_rate(s, n, hz) for s, n, hz in zip(similarity, lengths, rates_hz, strict=True)]
    durations = torch.zeros(len(items), max(map(len, items)), dtype=torch.int64)
    for row, item in zip(durations, items, strict=True):
        row[: len(item)] = torch.tensor(item)
    return durations.to(features.device)


class _SemanticVQ(nn.Module):
    """Holder that gives the quantiser its official key prefix `semantic_vq.fsq`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.fsq = FSQ(config.levels, config.dim)


class _Pointwise(nn.Module):
    """A 1x1 convolution on [batch, frames, dim]; weight [out, in, 1] as in the official files."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(after, before, 1))
        self.bias = nn.Parameter(torch.zeros(after))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, :, 0], self.bias)


class SpeechCodec(nn.Module):
    """`encode` speech to (codes, durations); `vectors` of codes."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.semantic_model = MelSemanticEncoder(config)
        self.semantic_aggregator = QueryAggregator(
            TransformerConfig(dim, dim, config.num_heads, config.aggregator_layers, config.ffn_dim, dim)
        )
        blocks = [ConvNeXtBlock(dim, 2 * dim) for _ in range(config.convnext_blocks)]
        self.convnext_encoder = nn.Sequential(_Pointwise(dim, dim), *blocks)
        self.semantic_vq = _SemanticVQ(config)
        self.convnext_decoder = nn.Sequential(_Pointwise(dim, config.vector_dim))

    def quantise(self, features: Tensor, durations: Tensor) -> tuple[Tensor, Tensor]:
        """features [batch, L, dim], durations int64 [batch, G] -> vectors [batch, G, vector_dim] and
        codes int64 [batch, G].
        """
        present = (durations > 0).unsqueeze(2)
        groups = self.semantic_aggregator(features, durations)
        for module in self.convnext_encoder:
            # Absent groups are zeros, as the padding of a single utterance is.
            groups = module(groups) * present
        quantised, codes = self.semantic_vq.fsq(groups)
        return self.convnext_decoder(quantised), codes

    def vectors(self, codes: Tensor) -> Tensor:
        """codes int64 [...] -> [..., vector_dim], what the decoder reads for them."""
        return self.convnext_decoder(self.semantic_vq.fsq.decode(codes))  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, log_mel: Tensor, rate_hz: float) -> tuple[Tensor, Tensor]:
        """One utterance: log-mel [8 L, mel_bins] -> codes and durations, int64 [G] each."""
        features = self.semantic_model(log_mel.unsqueeze(0))
        durations = merge_batch(features, [features.shape[1]], [rate_hz])
        return self.quantise(features, durations)[1][0], durations[0]
