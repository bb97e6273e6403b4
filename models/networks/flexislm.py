"""FlexiSLM put together: encoder frames -> groups -> merged embeddings -> prompt; Thinker and Talker beside them.

The audio encoder stands outside (`omni_encoder` in streaming/hearing for official weights, `encoder` there for the
embedded ones); talking step by step is in `generation` beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.config import ENCODER_RATE_HZ, FlexiSLMConfig
from models.networks.frame_rate import frame_rate_embedding
from models.networks.prompts import Prompt
from models.networks.talker import Talker
from models.networks.thinker import Thinker
from models.networks.tokenizer import TextTokenizer
from streaming.merging.grouping import Groups, group_frames
from streaming.merging.merger import InterleavedMergingTransformer, MeanMergingTransformer

AUDIO_MARK = -1
"""Names the learnt vector that opens the audio, which no token is."""


@dataclass(frozen=True)
class MergedUtterance:
    """embeddings [G, H]: what the Thinker hears; groups: which frames each one stands for."""

    embeddings: Tensor
    groups: Groups


class AudioMlp(nn.Module):
    """fc2(gelu(fc1(x))): brings encoder frames to the Thinker's width."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class FlexiSLM(nn.Module):
    """All networks of one checkpoint but the audio encoder, whose frames are `encoder_dim` wide."""

    def __init__(self, config: FlexiSLMConfig, encoder_dim: int) -> None:
        super().__init__()
        self.config = config
        self.encoder_dim = encoder_dim
        hidden = config.hidden_size
        self.thinker = Thinker(config.thinker, tied=config.tie_word_embeddings)
        self.talker_model = Talker(config.talker, hidden, config.max_length_classes)
        self.audio_embed_transform = _audio_transform(config, encoder_dim)
        self.input_merging_transformer: InterleavedMergingTransformer | MeanMergingTransformer
        if config.use_input_merging_transformer_v2:
            self.input_merging_transformer = InterleavedMergingTransformer(config.merger)
        else:
            self.input_merging_transformer = MeanMergingTransformer(config.merger)

    def fuse(self) -> None:
        """Joins products that read the same input, for inference; a checkpoint's keys fit no more."""
        self.thinker.model.fuse()
        self.talker_model.model.model.fuse()

    @property
    def dtype(self) -> torch.dtype:
        return self.thinker.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.thinker.model.embed_tokens.weight.device

    def transform(self, frames: Tensor) -> Tensor:
        """Encoder frames [..., encoder_dim] at the Thinker's width [..., H]."""
        return self.audio_embed_transform(frames)  # type: ignore[no-any-return]

    def merge(
        self,
        frames: Tensor,
        target: float,
        *,
        base_hz: float = ENCODER_RATE_HZ,
        mode: Literal["dynamic", "uniform"] = "dynamic",
    ) -> MergedUtterance:
        """A whole utterance: encoder frames [T, encoder_dim] at `base_hz`; `target` and `mode` as in `group_frames`."""
        groups = group_frames(frames, target, base_hz, max_group=self.config.agogic.max_group_frames, mode=mode)
        return MergedUtterance(self.merge_groups(frames, groups.lengths), groups)

    def merge_groups(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings [G, H] of encoder frames [T, encoder_dim] in groups of `lengths` int64 [G]."""
        merger, transformed = self.input_merging_transformer, self.transform(frames)
        if isinstance(merger, InterleavedMergingTransformer):
            return merger(transformed, lengths)  # type: ignore[no-any-return]
        return merger.merge(transformed, lengths)

    def embed_ids(self, ids: Sequence[int]) -> Tensor:
        """[n, H] of text ids."""
        return self.thinker.embed(torch.tensor(list(ids), dtype=torch.int64, device=self.device))

    def ids_before(self, prompt: Prompt, tokenizer: TextTokenizer) -> list[int]:
        """The prompt up to the audio: ids, and `AUDIO_MARK` in the place of the audio's opening mark.

        The oldest exchanges stay away where the earlier turns are longer than the config's `history_tokens`.
        """
        room = self.config.agogic.prompts.history_tokens
        shortened = prompt.shortened(room, lambda text: len(tokenizer.encode(text)))
        ids = tokenizer.encode(shortened.before)
        return [*ids[:-1], AUDIO_MARK] if prompt.audio else ids

    def embed_named(self, ids: Sequence[int]) -> Tensor:
        """[n, H] of `ids_before`'s; `AUDIO_MARK` is the learnt vector."""
        if not ids or ids[-1] != AUDIO_MARK:
            return self.embed_ids(ids)
        return torch.cat((self.embed_ids(ids[:-1]), self.thinker.audio_start_embedding[None]))

    def embed_after(self, prompt: Prompt, tokenizer: TextTokenizer) -> Tensor:
        """[n, H]: the prompt behind the audio, whose closing mark is the learnt vector."""
        embeddings = self.embed_ids(tokenizer.encode(prompt.after))
        if not prompt.audio:
            return embeddings
        return torch.cat((self.thinker.audio_end_embedding[None], embeddings[1:]))

    def frame_rate(self, rate_hz: float) -> Tensor:
        """[H] for a requested rate, computed in the weights' dtype as the original does."""
        return frame_rate_embedding(rate_hz, self.config.hidden_size, self.dtype).to(self.device)


def _audio_transform(config: FlexiSLMConfig, encoder_dim: int) -> nn.Module:
    """Identity where the widths agree, else an MLP or (without `use_mlp_for_audio_embed`) a plain projection."""
    if encoder_dim == config.hidden_size:
        return nn.Identity()
    if config.use_mlp_for_audio_embed:
        return AudioMlp(encoder_dim, int(config.hidden_size * config.audio_embed_mlp_hidden_ratio), config.hidden_size)
    return nn.Linear(encoder_dim, config.hidden_size)
