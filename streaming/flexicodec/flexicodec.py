"""FlexiCodec assembled: 16 kHz speech <-> codes of 1 to 8 frames of 80 ms, at 3 to 12.5 codes a second.

    audio -+- SenseVoice features, encoder, resampling to 12.5 Hz -- merging of alike neighbours --+
           +- convolutional encoder, 12.5 Hz ------------------------------------------------------+
    semantic: aggregate -> ConvNeXt -> FSQ (one code of 15 bits) -> ConvNeXt = S
    acoustic: aggregate - S -> residual quantiser (up to 24 codes of 12 bits) = A
    decode:   S + A, repeated by durations -> transformer -> convolutional decoder

All attention is global, as in the original, so a whole utterance is coded at once. Items are coded one by one: the
original lets padding of a batch leak into its codes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.flexicodec.aggregator import QueryAggregator
from streaming.flexicodec.codec import FRAME_RATE_HZ
from streaming.flexicodec.dac import DacDecoder, DacEncoder
from streaming.flexicodec.fbank import SenseVoiceFrontEnd
from streaming.flexicodec.frame_resampling import resample_frames, resampled_length
from streaming.flexicodec.fsq import FSQ
from streaming.flexicodec.rvq import ResidualQuantizer
from streaming.flexicodec.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from streaming.layers.convnext import ConvNeXtBlock
from streaming.layers.transformer import ProjectedTransformer, TransformerConfig
from streaming.merging.grouping import group_frames, requested_groups

SHORTEST_SAMPLES = 1_360
"""Below 85 ms there is no complete 12.5 Hz frame."""

CONVNEXT_HIDDEN = 2048  # fixed in the original, whatever the width


class AudioTooShortError(ValueError):
    """The audio does not fill a single frame."""


class UnsupportedCodecError(ValueError):
    """The configuration asks for an architecture that the released weights do not have."""


class FlexiCodecConfig(msgspec.Struct, frozen=True):
    """The architecture, under the official configuration's names; the defaults are the shipped 12.5 Hz model."""

    encoder_dim: int = 32
    encoder_rates: tuple[int, ...] = (4, 4, 5, 8, 2)
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (2, 8, 5, 4, 4)
    latent_dim: int = 512
    ssl_dim: int = 512
    n_codebooks: int = 24
    codebook_size: int = 4096
    codebook_dim: int = 8
    convnext_dim: int = 768
    convnext_layers: int = 4
    fsq_levels: tuple[int, ...] = (8, 8, 8, 8, 8)
    similarity_threshold: float = 0.91
    max_tokens_per_group: int = 8
    transformer_num_layers: int = 32
    transformer_dim: int = 512
    transformer_num_heads: int = 8
    transformer_dim_feedforward: int = 2048
    agg_transformer_num_layers: int = 6
    agg_transformer_dim: int = 512
    agg_transformer_num_heads: int = 8
    agg_transformer_dim_feedforward: int = 2048

    @staticmethod
    def from_official(values: Mapping[str, object]) -> FlexiCodecConfig:
        """Read the `model` section of the official YAML; other keys there are training's and change nothing here."""
        required: dict[str, object] = {
            "is_causal": False,
            "transformer_causal": False,
            "use_similarity_alignment": True,
            "use_bottleneck_transformer": True,
            "use_query_token_aggregator": True,
            "semantic_model_type": "sensevoice",
        }
        for key, needed in required.items():
            if key in values and values[key] != needed:
                raise UnsupportedCodecError(f"codec configuration: {key} is {values[key]!r}, only {needed!r} works")
        return msgspec.convert(values, FlexiCodecConfig, strict=False)


@dataclass(frozen=True)
class SpeechCodes:
    """What an utterance became: int64 tensors over its groups."""

    semantic: Tensor  # [groups], 0 .. 32767
    acoustic: Tensor | None  # [books, groups], 0 .. 4095
    durations: Tensor  # [groups], 12.5 Hz frames, 1 .. 8


class DacParts(nn.Module):
    """Holder of the official prefix `dac`."""

    def __init__(self, config: FlexiCodecConfig) -> None:
        super().__init__()
        self.encoder = DacEncoder(config.encoder_dim, config.encoder_rates, config.latent_dim)
        self.quantizer = ResidualQuantizer(
            config.latent_dim, config.n_codebooks, config.codebook_size, config.codebook_dim
        )
        self.decoder = DacDecoder(config.latent_dim, config.decoder_dim, config.decoder_rates)


class SemanticQuantizer(nn.Module):
    """Holder of the official prefix `semantic_vq`."""

    def __init__(self, config: FlexiCodecConfig) -> None:
        super().__init__()
        self.fsq = FSQ(config.fsq_levels, config.convnext_dim)


class PointwiseConv(nn.Conv1d):
    """A 1x1 convolution that takes [batch, frames, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class FlexiCodec(nn.Module):
    def __init__(self, config: FlexiCodecConfig, semantic: SenseVoiceConfig, front_end: SenseVoiceFrontEnd) -> None:
        super().__init__()
        self.config = config
        self.front_end = front_end
        self.semantic_model = SenseVoiceEncoder(semantic)
        self.dac = DacParts(config)
        blocks = range(config.convnext_layers)
        width = config.convnext_dim
        self.convnext_encoder = nn.Sequential(
            PointwiseConv(config.ssl_dim, width, 1), *(ConvNeXtBlock(width, CONVNEXT_HIDDEN) for _ in blocks)
        )
        self.convnext_decoder = nn.Sequential(
            *(ConvNeXtBlock(width, CONVNEXT_HIDDEN) for _ in blocks), PointwiseConv(width, config.latent_dim, 1)
        )
        self.semantic_vq = SemanticQuantizer(config)
        self.bottleneck_transformer = ProjectedTransformer(
            TransformerConfig(
                config.latent_dim,
                config.transformer_dim,
                config.transformer_num_heads,
                config.transformer_num_layers,
                config.transformer_dim_feedforward,
                config.latent_dim,
            )
        )
        self.semantic_aggregator = QueryAggregator(_aggregator(config, config.ssl_dim))
        self.acoustic_aggregator = QueryAggregator(_aggregator(config, config.latent_dim))

    def encode(self, audio: Tensor, target: float | None = None, quantizers: int = 8) -> SpeechCodes:
        """Code one utterance: samples [N] at 16 kHz in [-1, 1].

        `target` above 1 is a rate in Hz (cut at the least alike neighbours), at most 1 a similarity threshold above
        which neighbours merge (None: the model's own). `quantizers` counts the semantic code too: 1 .. 1 + n_codebooks.
        """
        if not 1 <= quantizers <= 1 + self.config.n_codebooks:
            raise ValueError(f"quantizers must be 1 to {1 + self.config.n_codebooks}, not {quantizers}")
        frames = self.semantic_frames(self.semantic_model(self.features(audio)))
        latents = self.dac.encoder(audio[None, None]).transpose(1, 2)
        length = min(frames.shape[1], latents.shape[1])
        frames, latents = frames[:, :length], latents[:, :length]
        durations = self.merge(frames[0], target)[None]
        codes, meaning = self.code_semantics(self.semantic_aggregator(frames, durations))
        if quantizers == 1:
            return SpeechCodes(codes[0], None, durations[0])
        rest = (self.acoustic_aggregator(latents, durations) - meaning).transpose(1, 2)
        acoustic, _, _ = self.dac.quantizer.encode(rest, quantizers - 1)
        return SpeechCodes(codes[0], acoustic[0], durations[0])

    def decode(self, codes: SpeechCodes) -> Tensor:
        """Samples [1280 frames - 16] at 16 kHz."""
        z = self.vectors(codes.semantic[None])
        if codes.acoustic is not None:
            z = z + self.dac.quantizer.decode(codes.acoustic[None]).transpose(1, 2)
        return self.synthesise(z.repeat_interleave(codes.durations, dim=1))[0]

    def features(self, audio: Tensor) -> Tensor:
        """Samples [N] -> SenseVoice features [1, T, 560]."""
        if audio.shape[0] < SHORTEST_SAMPLES:
            raise AudioTooShortError(f"{audio.shape[0]} samples are too short to code; send at least 85 ms of audio")
        return self.front_end(audio[None])  # type: ignore[no-any-return]

    def semantic_frames(self, semantic: Tensor) -> Tensor:
        """SenseVoice output [1, T, ssl_dim] at 16.67 Hz -> 12.5 Hz."""
        return resample_frames(semantic, resampled_length(semantic.shape[1]))

    def merge(self, frames: Tensor, target: float | None) -> Tensor:
        """Durations int64 [groups] of semantic frames [L, ssl_dim]; see `encode`."""
        target = self.config.similarity_threshold if target is None else target
        return merge_frames(frames, target, self.config.max_tokens_per_group)

    def code_semantics(self, aggregated: Tensor) -> tuple[Tensor, Tensor]:
        """Groups [1, G, ssl_dim] -> codes [1, G] and their vectors S [1, G, latent_dim]."""
        quantised, codes = self.semantic_vq.fsq(self.convnext_encoder(aggregated))
        return codes, self.convnext_decoder(quantised)

    def vectors(self, semantic: Tensor) -> Tensor:
        """Semantic codes [1, G] -> S [1, G, latent_dim]."""
        return self.convnext_decoder(self.semantic_vq.fsq.decode(semantic))  # type: ignore[no-any-return]

    def synthesise(self, frames: Tensor) -> Tensor:
        """Frames [1, L, latent_dim] at 12.5 Hz -> samples [1, 1280 L - 16]."""
        return self.dac.decoder(self.bottleneck_transformer(frames).transpose(1, 2))[:, 0]  # type: ignore[no-any-return]


def merge_frames(frames: Tensor, target: float, longest: int) -> Tensor:
    """Durations int64 [groups], 1 to `longest`, of frames [L, width] at 12.5 Hz.

    `target` above 1 is a rate in Hz, kept even where long groups have to be split; at most 1 it is a threshold.
    """
    if target == 1.0:
        # The cosine of equal frames may round to above 1, which a comparison would merge.
        return torch.ones(frames.shape[0], dtype=torch.int64, device=frames.device)
    if target < 1.0:
        return group_frames(frames, target, FRAME_RATE_HZ, max_group=longest).lengths
    # Splitting long groups adds to their number: ask for as many as leave the requested number after it.
    count = frames.shape[0]
    wanted = requested_groups(count, target, FRAME_RATE_HZ)

    def lengths(asked: int) -> Tensor:
        # Twice the number per twice the time: a target of 1 or less would be read as a threshold.
        return group_frames(frames, 2.0 * asked, 2.0 * count, max_group=longest).lengths

    # One more cut never makes fewer groups, so the right number can be searched by halving.
    most = bisect_right(range(1, wanted + 1), wanted, key=lambda asked: len(lengths(asked)))
    return lengths(max(1, most))


def _aggregator(config: FlexiCodecConfig, width: int) -> TransformerConfig:
    return TransformerConfig(
        width,
        config.agg_transformer_dim,
        config.agg_transformer_num_heads,
        config.agg_transformer_num_layers,
        config.agg_transformer_dim_feedforward,
        width,
    )
