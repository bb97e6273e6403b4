"""SenseVoice's encoder, the semantic ear of FlexiCodec: self-attention with a depthwise memory (SAN-M) per block.

Block (pre-norm, eps 1e-5): q, k, v = split(Wx + b); x += out(attention) + (v + depthwise_conv11(v)); then
x += W2 relu(W1 x). The first block goes from 560 to 512 and has no attention residual. State-dict keys are
FunASR's; the CTC head, and the second stack of blocks (`tp_encoders`) unless the configuration counts it, are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming.layers.embedding import embedding

FEATURES = 560
QUERY_ROWS = (0, 1, 2, 15)
"""Rows of the query table put in front: language "auto", event, emotion, text without inverse normalisation."""
QUERY_TABLE_ROWS = 16


@dataclass(frozen=True)
class SenseVoiceConfig:
    """Shape of the encoder; the defaults are SenseVoiceSmall as the codec uses it.

    `tp_blocks` counts the text-prediction blocks after the codec's output (20 in the checkpoint, not needed for codes).
    """

    d_model: int = 512
    num_heads: int = 4
    ffn_dim: int = 2048
    num_blocks: int = 50
    tp_blocks: int = 0
    kernel_size: int = 11


def position_code(frames: int, width: int, device: torch.device) -> Tensor:
    """Sinusoids [sin | cos] of positions 1..frames: [frames, width]."""
    half = width // 2
    scale = torch.exp(torch.arange(half, dtype=torch.float32, device=device) * (-math.log(10_000.0) / (half - 1)))
    angle = torch.arange(1, frames + 1, dtype=torch.float32, device=device)[:, None] * scale
    return torch.cat((angle.sin(), angle.cos()), dim=1)


class MemoryAttention(nn.Module):
    """Self-attention plus a depthwise convolution over the values."""

    def __init__(self, input_dim: int, d_model: int, num_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear_q_k_v = nn.Linear(input_dim, 3 * d_model)
        self.linear_out = nn.Linear(d_model, d_model)
        self.fsmn_block = nn.Conv1d(
            d_model, d_model, kernel_size, padding=(kernel_size - 1) // 2, groups=d_model, bias=False
        )

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x [batch, frames, input_dim]; `valid` [batch, frames] bool hides padding."""
        query, key, value = self.linear_q_k_v(x).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(
            *(part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)),
            attn_mask=None if valid is None else valid[:, None, None, :],
        )
        if valid is not None:
            value = value * valid[:, :, None]
        memory = value + self.fsmn_block(value.transpose(1, 2)).transpose(1, 2)
        if valid is not None:
            memory = memory * valid[:, :, None]
        return self.linear_out(attended.transpose(1, 2).flatten(2)) + memory  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(d_model, ffn_dim)
        self.w_2 = nn.Linear(ffn_dim, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.relu(self.w_1(x)))  # type: ignore[no-any-return]


class SenseVoiceBlock(nn.Module):
    def __init__(self, input_dim: int, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.keeps_width = input_dim == config.d_model
        self.self_attn = MemoryAttention(input_dim, config.d_model, config.num_heads, config.kernel_size)
        self.feed_forward = FeedForward(config.d_model, config.ffn_dim)
        self.norm1 = nn.LayerNorm(input_dim)
        self.norm2 = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        attended = self.self_attn(self.norm1(x), valid)
        x = x + attended if self.keeps_width else attended
        return x + self.feed_forward(self.norm2(x))  # type: ignore[no-any-return]


class SenseVoiceStack(nn.Module):
    """The blocks under their official names."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.encoders0 = nn.ModuleList([SenseVoiceBlock(FEATURES, config)])
        self.encoders = nn.ModuleList(SenseVoiceBlock(config.d_model, config) for _ in range(config.num_blocks - 1))
        self.after_norm = nn.LayerNorm(config.d_model)
        if config.tp_blocks:
            self.tp_encoders = nn.ModuleList(SenseVoiceBlock(config.d_model, config) for _ in range(config.tp_blocks))
            self.tp_norm = nn.LayerNorm(config.d_model)


class SenseVoiceEncoder(nn.Module):
    """Normalised features [batch, T, 560] at 16.67 Hz -> vectors [batch, T, d_model]; sees the whole utterance."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SenseVoiceStack(config)
        self.embed = embedding(QUERY_TABLE_ROWS, FEATURES)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.hidden_states(self.prepend_queries(features))[self.config.num_blocks - 1]
        return hidden[:, len(QUERY_ROWS) :]

    def prepend_queries(self, features: Tensor) -> Tensor:
        """[batch, T, 560] -> [batch, 4 + T, 560]."""
        rows = self.embed(torch.tensor(QUERY_ROWS, device=features.device))
        return torch.cat((rows.expand(features.shape[0], -1, -1), features), dim=1)

    def hidden_states(self, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """The normalised output of every block, each [batch, frames, d_model]; x has its queries in front.

        `lengths` [batch] counts the real frames, queries included; without it padding is seen as the codec sees it.
        """
        stack, frames = self.encoder, x.shape[1]
        valid = None if lengths is None else torch.arange(frames, device=x.device) < lengths[:, None]
        x = x * math.sqrt(self.config.d_model) + position_code(frames, FEATURES, x.device).to(x.dtype)
        hidden = []
        for block in (*stack.encoders0, *stack.encoders):
            x = block(x, valid)
            hidden.append(stack.after_norm(x))
        if self.config.tp_blocks:
            x = hidden[-1]
            for block in stack.tp_encoders:
                x = block(x, valid)
                hidden.append(stack.tp_norm(x))
        return hidden
