"""What stage 2 trains: merging transformer, Thinker and Talker at the embedded size, and how they are fed."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.paged_attention import GatheredPages
from models.networks.qwen2 import DecoderConfig, HeadOfLayer
from models.networks.talker import CODE_OFFSET, Talker
from models.networks.thinker import Thinker
from streaming.layers.transformer import LayerScale, TransformerConfig
from streaming.merging.grouping import group_frames
from streaming.merging.merger import InterleavedMergingTransformer, merger_mode
from streaming.merging.rate_control import group_causal

ENCODER_HZ = 25.0
MAX_GROUP = 16
ALIGNMENT_HEAD = HeadOfLayer(1, 0)


def thinker_config(vocabulary: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_layers=4, num_heads=4, num_kv_heads=2
    )


def talker_config(codes: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=CODE_OFFSET + codes,
        hidden_size=256,
        intermediate_size=768,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
    )


def merger_config() -> TransformerConfig:
    return TransformerConfig(
        input_dim=256,
        output_dim=256,
        d_model=256,
        num_heads=4,
        num_layers=2,
        ffn_dim=768,
        mode=merger_mode(True),
        context=32,
    )


class SpeechLanguageModel(nn.Module):
    """What is trained together."""

    def __init__(self, vocabulary: int, codes: int) -> None:
        super().__init__()
        self.merger = InterleavedMergingTransformer(merger_config())
        self.thinker = Thinker(thinker_config(vocabulary), tied=True)
        self.talker = Talker(talker_config(codes), 256, 32)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Embedding) else 0.04)
            if isinstance(module, LayerScale):
                nn.init.constant_(module.scale, 0.4)  # the official start, 0.01, is for long runs

    def prompt(self, before: list[int], after: list[int], audio: Tensor | None) -> Tensor:
        """Embeddings [P, 256]: of the text ids alone, or around a spoken turn's merged embeddings [G, 256]."""
        left, right = (self.thinker.embed(torch.tensor(ids)) for ids in (before, after))
        if audio is None:
            return torch.cat((left, right))
        begin, end = self.thinker.audio_start_embedding[None], self.thinker.audio_end_embedding[None]
        return torch.cat((left[:-1], begin, audio.to(left.dtype), end, right[1:]))


def group_lengths(frames: Tensor, hz: float) -> Tensor:
    """Lengths int64 [G] of the groups that the causal controller cuts frames [T, C] into."""
    similarity = F.cosine_similarity(frames[:-1].float(), frames[1:].float(), dim=-1).detach().numpy()
    starts = np.flatnonzero(group_causal(similarity, hz, ENCODER_HZ, MAX_GROUP))
    return torch.from_numpy(np.diff(np.append(starts, frames.shape[0])))


def exact_group_lengths(frames: Tensor, hz: float) -> Tensor:
    """Lengths int64 [G] of the groups that offline top-k cuts frames [T, C] into."""
    return group_frames(frames.detach().float(), hz, ENCODER_HZ, max_group=MAX_GROUP).lengths


def greedy_text(thinker: Thinker, prompt: Tensor, stop: int, limit: int = 60) -> list[int]:
    """Greedy continuation of prompt embeddings [P, H] up to `stop`."""
    cache = thinker.model.new_cache(1, prompt.shape[0] + limit)
    attention = GatheredPages(cache.page)
    hidden = thinker.prefill(prompt, cache, [0], [len(prompt)], attention)
    ids: list[int] = []
    while len(ids) < limit:
        token = int(thinker.text_logits(hidden[-1]).argmax(-1))
        if token == stop:
            break
        ids.append(token)
        hidden = thinker.prefill(thinker.embed(torch.tensor([token])), cache, [0], [1], attention)
    return ids
