"""Voicebox: flow matching from speech codes to 50 Hz log-mel (flexicodec.md section 12).

The official network sees the whole utterance and copies the speaker from a mel prompt; the embedded one, of the same
classes, attends chunk by chunk, reads its codes through `Unmerge`, and needs no prompt.
`flow_decoder.py` runs it chunk by chunk.
"""

from __future__ import annotations

import math

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attend
from kernels.rope import Rotation, apply_half, half_rotation, rope_angles
from streaming.layers.embedding import embedding
from streaming.layers.gated_mlp import GatedMLP, joined
from streaming.speaking.chunk_plan import ChunkPlan
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.unmerge import UPSAMPLING, Frames, Unmerge, UnmergeConfig, repeat_codes

ROPE_BASE = 10_000.0
Memory = tuple[Tensor, Tensor]
"""Rotated keys, and values, of past frames, with room for those of this call behind them."""
CHUNKS_TOGETHER = (1, 1, 2, 4)
"""The second chunk is heard while the next two are made, these while four are: fewer calls, no later sound."""
_NORM_EPS = 1e-6


class FlowConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults are the official sizes. `chunk_frames` (50 Hz) 0 means full attention, else a frame sees its own chunk
    and as many frames before it as `context_chunks` chunks hold; `unmerge` None means each code's embedding simply
    repeated.
    """

    hidden: int = 1024
    num_layers: int = 16
    num_heads: int = 16
    ffn_dim: int = 4096
    mlp_dim: int = 4096
    codebook_size: int = 32_768
    chunk_frames: int = 0
    context_chunks: int = 0
    unmerge: UnmergeConfig | None = None


class AdaptiveNorm(nn.Module):
    """RMS norm whose gain is a linear function, `to_weight`, of the time embedding."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.to_weight = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.to_weight.weight)
        nn.init.ones_(self.to_weight.bias)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """x [batch, frames, hidden], gain [batch or 1, 1, hidden]."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=_NORM_EPS).to(x.dtype) * gain

    def fused(self, x: Tensor, gain: Tensor) -> Tensor:
        """The same of x [frames, hidden] at one time, gain [hidden], in one kernel, which rounds once."""
        return F.rms_norm(x, gain.shape, gain, _NORM_EPS)


class _Attention(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.hidden, config.hidden, bias=False)
        self.k_proj = nn.Linear(config.hidden, config.hidden, bias=False)
        self.v_proj = nn.Linear(config.hidden, config.hidden, bias=False)
        self.o_proj = nn.Linear(config.hidden, config.hidden, bias=False)

    def stacked(self, x: Tensor) -> Tensor:
        """Queries, keys and values of x [..., hidden], not rotated: [..., 3 heads, head_dim]."""
        if hasattr(self, "qkv_proj"):
            together = self.qkv_proj(x)
        else:
            together = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        return together.unflatten(-1, (3 * self.num_heads, -1))

    def fuse(self) -> None:
        """One product instead of three, for inference: the keys are those of no checkpoint any more."""
        if not hasattr(self, "qkv_proj"):
            self.qkv_proj = joined(self.q_proj, self.k_proj, self.v_proj)
            del self.q_proj, self.k_proj, self.v_proj

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None, memory: Memory | None) -> Tensor:
        """x [batch, frames, hidden]; `memory` [batch, heads, past + frames, head_dim], whose end this call fills."""
        query, key, value = self.stacked(x).transpose(1, 2).chunk(3, dim=1)
        query, key = apply_half(query, rotation), apply_half(key, rotation)
        if memory is not None:
            memory[0][:, :, -x.shape[1] :] = key
            memory[1][:, :, -x.shape[1] :] = value
            key, value = memory
        return self.o_proj(attend(query, key, value, mask).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = GatedMLP(config.hidden, config.ffn_dim)
        self.input_layernorm = AdaptiveNorm(config.hidden)
        self.post_attention_layernorm = AdaptiveNorm(config.hidden)


def _mlp(before: int, hidden: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, hidden), nn.SiLU(), nn.Linear(hidden, after))


class VelocityNetwork(nn.Module):
    """d mel / d t of the noisy mel at time t, given the condition."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.diff_step_mlp = _mlp(config.hidden, config.mlp_dim, config.hidden)
        self.mel_mlp = _mlp(MEL_BINS, config.mlp_dim, config.hidden)
        self.cond_mlp = _mlp(config.hidden, config.mlp_dim, config.hidden)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = AdaptiveNorm(config.hidden)
        self.mel_out_mlp = _mlp(config.hidden, config.mlp_dim, MEL_BINS)

    def time_embedding(self, t: Tensor) -> Tensor:
        """t [batch] in 0..1 -> [batch, hidden]."""
        half = self.config.hidden // 2
        decay = torch.arange(half, device=t.device, dtype=torch.float32) * -(math.log(10_000.0) / (half - 1))
        angle = t.float().unsqueeze(1) * decay.exp()
        waves = torch.cat((angle.sin(), angle.cos()), dim=1)
        return self.diff_step_mlp(waves.to(self.norm.to_weight.weight.dtype))  # type: ignore[no-any-return]

    def gains(self, t: Tensor) -> Tensor:
        """What every norm multiplies by at times t [n] in 0..1, [n, norms, hidden]: no frame and no code has a say."""
        time = self.time_embedding(t)
        norms = [norm for layer in self.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        return torch.stack([norm.to_weight(time) for norm in (*norms, self.norm)], dim=1)

    def step_gains(self, steps: int) -> Tensor:
        """`gains` in the middle of each of so many Euler steps, [steps, norms, hidden]."""
        middles = [(index + 0.5) / steps for index in range(steps)]
        return self.gains(torch.tensor(middles, device=self.norm.to_weight.weight.device))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, frames, 128], t [batch], condition [batch, frames, hidden] -> [batch, frames, 128].

        `mask` bool, broadcast to [batch, heads, frames, frames], True = may be seen.
        """
        rotation = self.rotation(torch.arange(x.shape[1], device=x.device).unsqueeze(0), x.dtype)
        return self.with_cache(x, self.gains(t), self.cond_mlp(condition), rotation, mask, None)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Rotations of 50 Hz frames at int64 positions [batch or 1, frames]."""
        angles = rope_angles(positions, self.config.hidden // self.config.num_heads, ROPE_BASE)
        return half_rotation(angles, dtype)

    def with_cache(
        self,
        x: Tensor,
        gains: Tensor,
        condition: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        memory: Memory | None,
    ) -> Tensor:
        """Velocity, from the time's `gains` [batch or 1, norms, hidden] and `cond_mlp`'s output, which no step changes.

        `memory` [batch, layers, heads, past + frames, head_dim] holds the past; this call fills in its own frames.
        """
        y = self.mel_mlp(x) + condition
        gain = gains.unsqueeze(2).unbind(1)
        for index, layer in enumerate(self.layers):
            own = None if memory is None else (memory[0][:, index], memory[1][:, index])
            y = y + layer.self_attn(layer.input_layernorm(y, gain[2 * index]), rotation, mask, own)
            y = y + layer.mlp(layer.post_attention_layernorm(y, gain[2 * index + 1]))
        return self.mel_out_mlp(self.norm(y, gain[-1]))  # type: ignore[no-any-return]


class Voicebox(nn.Module):
    """Codes to mel. Keys: cond_emb, diff_estimator.* (official), and unmerge.* where the config has it."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.cond_emb = embedding(config.codebook_size, config.hidden)
        self.diff_estimator = VelocityNetwork(config)
        self.unmerge = Unmerge(config.unmerge) if config.unmerge is not None else None

    def condition(self, codes: Tensor, durations: Tensor, plan: ChunkPlan | None = None) -> Tensor:
        """codes and durations int64 [batch, G] (duration 0 = absent) -> [batch, 4 * frames, hidden]."""
        owner, position, duration, real = repeat_codes(durations)
        vectors = self.cond_emb(codes.gather(1, owner))
        if self.unmerge is None:
            return vectors.repeat_interleave(UPSAMPLING, dim=1)  # type: ignore[no-any-return]
        layout = None if plan is None else plan.layout(real.shape[1])
        return self.unmerge(Frames(vectors, position, duration, real), layout)  # type: ignore[no-any-return]

    def fuse(self) -> None:
        """Joins products that read the same input, for inference; a checkpoint's keys fit no more."""
        for layer in self.diff_estimator.layers:
            layer.self_attn.fuse()
            layer.mlp.fuse()

    def plan(self) -> ChunkPlan:
        """Uniform chunks with the whole look-ahead of chunk-causal weights."""
        assert self.unmerge is not None
        length = self.config.chunk_frames // UPSAMPLING
        return ChunkPlan((length,), (self.unmerge.config.look_ahead_frames,), CHUNKS_TOGETHER)

    def mask(self, real: Tensor, plan: ChunkPlan | None = None) -> Tensor | None:
        """What each 50 Hz frame may see; real bool [batch, frames]. None where that is everything."""
        frames = real.shape[1]
        if self.config.chunk_frames == 0:
            return None if bool(real.all()) else real[:, None, None, :]
        layout = (plan or self.plan()).layout(-(-frames // UPSAMPLING))
        start, end = (
            edge.to(real.device).repeat_interleave(UPSAMPLING)[:frames, None] * UPSAMPLING
            for edge in (layout.start, layout.end)
        )
        key = torch.arange(frames, device=real.device)
        near = (key >= start - self.config.context_chunks * self.config.chunk_frames) & (key < end)
        own = torch.eye(frames, dtype=torch.bool, device=real.device)
        return near & real[:, None, None, :] | own

    def solve(
        self,
        condition: Tensor,
        noise: Tensor,
        *,
        steps: int,
        prompt: Tensor | None = None,
        guidance: float = 0.0,
        rescale: float = 0.75,
        real: Tensor | None = None,
        plan: ChunkPlan | None = None,
    ) -> Tensor:
        """Mel float32 [batch, T, 128] by `steps` Euler steps from `noise` [batch, T, 128].

        What the steps add up stays in float32 whatever the network multiplies in.

        condition [batch, P + T, hidden] covers prompt and target; prompt [batch, P, 128] clean mel. Velocities are
        taken at the middle of each step's time. `guidance` > 0 extrapolates from an unconditional pass (without prompt)
        and pulls the result's spread back by `rescale`. `real` bool [batch, P + T] marks a padded batch's real frames.
        `plan` cuts chunk-causal weights' answer otherwise than uniformly.
        """
        batch, frames = noise.shape[:2]
        held = condition.shape[1] - frames
        everything = torch.ones(batch, condition.shape[1], dtype=torch.bool, device=noise.device)
        mask = self.mask(everything if real is None else real, plan)
        bare_mask = self.mask((everything if real is None else real)[:, held:], plan)
        network, x, dtype = self.diff_estimator, noise.float(), self.cond_emb.weight.dtype
        given = network.cond_mlp(condition)
        nothing = network.cond_mlp(torch.zeros_like(condition[:, held:])) if guidance > 0 else None
        rotation, bare_rotation = (
            network.rotation(torch.arange(n, device=noise.device).unsqueeze(0), dtype)
            for n in (condition.shape[1], frames)
        )
        for gains in network.step_gains(steps).unsqueeze(1):
            whole = x if prompt is None else torch.cat((prompt.float(), x), dim=1)
            velocity = network.with_cache(whole.to(dtype), gains, given, rotation, mask, None)[:, held:].float()
            if nothing is not None:
                bare = network.with_cache(x.to(dtype), gains, nothing, bare_rotation, bare_mask, None).float()
                guided = velocity + guidance * (velocity - bare)
                # The official solver takes the spread over the whole tensor, batch and all.
                rescaled = guided * (velocity.std() / guided.std())
                velocity = rescale * rescaled + (1 - rescale) * guided
            x = x + velocity / steps
        return x
