"""The Qwen2.5-Omni audio encoder: log-mel at 100 Hz to frames at 25 Hz, block by block (FlexiSLM section 2.7).

Nothing crosses the borders of its 2 s blocks (200 mel frames): convolutions pad with zeros, positions restart,
attention stays inside, pooling is aligned. So a stream gives the very frames that the whole clip gives, two seconds
late; a shorter last block is encoded as if it stood alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attend
from streaming.layers.module import StreamingModule

POSITION_PERIOD = 10_000.0
MEL_FRAMES_PER_FRAME = 4


class OmniEncoderConfig(msgspec.Struct, frozen=True):
    """The keys of the official `audio_config` that matter; `n_window` is half a block in mel frames."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    output_dim: int
    num_mel_bins: int = 128
    n_window: int = 100


@dataclass(frozen=True)
class OmniEncoderState:
    """pending [rows, p, mel_bins]: mel frames of the open block, p below its length."""

    pending: Tensor


class OmniAttention(nn.Module):
    """Multi-head attention; the key projection has no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            projection(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attend(query, key, value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class OmniLayer(nn.Module):
    """Pre-norm attention and exact-gelu feed-forward."""

    def __init__(self, config: OmniEncoderConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = OmniAttention(config.d_model, config.encoder_attention_heads)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))  # type: ignore[no-any-return]


class OmniEncoder(StreamingModule[OmniEncoderState]):
    """mel [rows, T, mel_bins] -> frames [rows, ((T - 1) // 2 + 1) // 2 (per block), output_dim]; T < 3 gives none."""

    def __init__(self, config: OmniEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.block_mel_frames = 2 * config.n_window
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(OmniLayer(config) for _ in range(config.encoder_layers))
        self.ln_post = nn.LayerNorm(config.d_model)
        self.proj = nn.Linear(config.d_model, config.output_dim)

    def encode_blocks(self, mel: Tensor) -> Tensor:
        """Blocks of equal length on their own.

        Mel [blocks, T, mel_bins], T at most a block -> [blocks, frames, output_dim].
        """
        x = F.gelu(self.conv1(mel.transpose(1, 2)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self._positions(x)
        for layer in cast(list[OmniLayer], list(self.layers)):
            x = layer(x)
        pooled = F.avg_pool1d(x.transpose(1, 2), 2, 2).transpose(1, 2) if x.shape[1] > 1 else x[:, :0]
        return self.proj(self.ln_post(pooled))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        head, state = self.step(x, self.initial_state(x.shape[0]))
        return torch.cat((head, self.flush(state)[0]), dim=1)

    def initial_state(self, batch: int) -> OmniEncoderState:
        return OmniEncoderState(self.conv1.weight.new_zeros(batch, 0, self.config.num_mel_bins))

    def step(self, x: Tensor, state: OmniEncoderState) -> tuple[Tensor, OmniEncoderState]:
        """The frames of every block that x completes. Rows out of phase must be stepped by whole blocks."""
        mel = torch.cat((state.pending, x), dim=1)
        whole = mel.shape[1] // self.block_mel_frames
        rows = mel.shape[0]
        frames = mel.new_zeros(rows, 0, self.config.output_dim)
        if whole:
            blocks = mel[:, : whole * self.block_mel_frames].reshape(rows * whole, self.block_mel_frames, -1)
            frames = self.encode_blocks(blocks).reshape(rows, -1, self.config.output_dim)
        return frames, OmniEncoderState(mel[:, whole * self.block_mel_frames :])

    def flush(self, state: OmniEncoderState) -> tuple[Tensor, OmniEncoderState]:
        """The open block as if the clip ended here. The state passed in stays good: the block may still go on."""
        if state.pending.shape[1] == 0:
            return state.pending.new_zeros(state.pending.shape[0], 0, self.config.output_dim), state
        return self.encode_blocks(state.pending), OmniEncoderState(state.pending[:, :0])

    def _positions(self, x: Tensor) -> Tensor:
        """Sine half and cosine half of block-local positions, [frames, d_model] in x's dtype."""
        half = self.config.d_model // 2
        rate = math.log(POSITION_PERIOD) / (half - 1)
        frequency = torch.exp(-rate * torch.arange(half, device=x.device, dtype=torch.float32))
        angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * frequency
        return torch.cat((angle.sin(), angle.cos()), dim=1).to(x.dtype)
