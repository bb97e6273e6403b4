"""The Thinker: a Qwen2 decoder that writes text, one token per step (FlexiSLM sections 2.1 and 2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels.paged_attention import PagedAttention
from kernels.paged_cache import PagedCache
from models.networks.qwen2 import DecoderConfig, Qwen2Model


class Thinker(nn.Module):
    """Text decoder, its head, the marks around user audio, and the Talker-to-Thinker projection of Stage 3."""

    def __init__(self, config: DecoderConfig, *, tied: bool) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.model = Qwen2Model(config)
        self.lm_head = nn.Linear(hidden, config.vocab_size, bias=False)
        # Zeros, and no torch.eye below: on the meta device randn and eye import torch's compiler, which takes seconds.
        self.audio_start_embedding = nn.Parameter(torch.zeros(hidden))
        self.audio_end_embedding = nn.Parameter(torch.zeros(hidden))
        self.combined_embed_proj = nn.Linear(4 * hidden, hidden, bias=False)
        with torch.no_grad():  # the text passes through, everything else starts silent
            self.combined_embed_proj.weight.zero_().fill_diagonal_(1.0)
        if tied:
            self.tie()

    def tie(self) -> None:
        """Share the embedding table with the head."""
        self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, token: Tensor) -> Tensor:
        """[..., H] for text ids [...]."""
        return self.model.embed_tokens(token)  # type: ignore[no-any-return]

    def combine(self, text_emb: Tensor, audio_emb: Tensor, length_emb: Tensor, frame_rate: Tensor) -> Tensor:
        """Stage 3 input [..., H] from the embeddings of a position's text, speech token, length and rate.

        All [..., H].
        """
        parts = torch.cat((text_emb, audio_emb, length_emb, frame_rate), dim=-1)
        return self.combined_embed_proj(parts)  # type: ignore[no-any-return]

    def forward(self, embeddings: Tensor, valid: Tensor | None = None) -> Tensor:
        """Hidden states [batch, positions, H] after the final norm; `valid` as in `Qwen2Model.forward`."""
        hidden, _ = self.model(embeddings, valid)
        return hidden  # type: ignore[no-any-return]

    def prefill(
        self,
        embeddings: Tensor,
        cache: PagedCache,
        sequences: Sequence[int],
        counts: Sequence[int],
        attention: PagedAttention,
    ) -> Tensor:
        """Hidden states [tokens, H] of further positions; see `Qwen2Model.prefill`."""
        return self.model.prefill(embeddings, cache, sequences, counts, attention)[0]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[..., vocabulary]."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]
