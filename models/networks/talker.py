"""The Talker: a Qwen2 decoder that speaks (code, duration) tokens, conditioned through five slots (FlexiSLM 2.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.paged_attention import PagedAttention
from kernels.paged_cache import PagedCache
from models.networks.qwen2 import DecoderConfig, HeadOfLayer, Qwen2Model
from streaming.layers.embedding import embedding

AUDIO_END = 0
AUDIO_START = 1
AUDIO_TAG = 2
CODE_OFFSET = 3
"""Talker id of codec code 0."""

CONDITION_SLOTS = 5


class SpeechDecoder(nn.Module):
    """The decoder and its speech head, under the official prefix `talker_model.model`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Qwen2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class LengthHead(nn.Module):
    """fc2(gelu(fc1(h))), exact gelu."""

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.fc2 = nn.Linear(4 * hidden_size, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))  # type: ignore[no-any-return]


class Talker(nn.Module):
    """H = Thinker width, D = Talker width (`config.hidden_size`); projections exist only where they differ."""

    def __init__(self, config: DecoderConfig, thinker_hidden_size: int, length_classes: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.model = SpeechDecoder(config)
        same = hidden == thinker_hidden_size
        self.talker_embed_to_hidden = nn.Identity() if same else nn.Linear(hidden, thinker_hidden_size)
        self.lm_to_talker_proj = nn.Identity() if same else nn.Linear(thinker_hidden_size, hidden)
        self.talker_cond_proj = nn.Linear(CONDITION_SLOTS * hidden, hidden)
        self.talker_length_decoder = LengthHead(hidden, length_classes)
        self.length_embedding = embedding(length_classes, thinker_hidden_size)

    def audio_emb(self, token: Tensor) -> Tensor:
        """[..., H] for Talker ids [...] (0 END, 1 START, 2 TAG, code + 3)."""
        return self.talker_embed_to_hidden(self.model.model.embed_tokens(token))  # type: ignore[no-any-return]

    def length_emb(self, length: Tensor) -> Tensor:
        """[..., H] for length classes [...]: the class is the number of 12.5 Hz frames, 0 for none."""
        return self.length_embedding(length)  # type: ignore[no-any-return]

    def condition(
        self,
        base: Tensor,
        frame_rate: Tensor,
        audio_emb: Tensor | None,
        length_emb: Tensor | None,
        text_context: Tensor,
        *,
        in_prompt: Tensor | None = None,
        text_ended: Tensor | None = None,
    ) -> Tensor:
        """Talker input z [batch, positions, D].

        base: the Thinker's hidden state after its final norm; text_context: the Thinker's input embedding; audio_emb
        and length_emb: of the tokens fed at this position; each [batch, positions, H]. frame_rate [batch, H]. Speech
        slots are zero *after* the projection where they are None or `in_prompt` [batch, positions] bool is True; text
        slots likewise where `text_ended` [batch, positions] bool is True (official inference, section 4.2 and 4.3).
        """
        project = self.lm_to_talker_proj
        rate = project(frame_rate)[:, None].expand(-1, base.shape[1], -1)
        text = [_without(project(part), text_ended) for part in (base, text_context)]
        speech = [
            torch.zeros_like(text[0]) if part is None else _without(project(part), in_prompt)
            for part in (audio_emb, length_emb)
        ]
        slots = torch.cat((text[0], rate, *speech, text[1]), dim=-1)
        return self.talker_cond_proj(slots)  # type: ignore[no-any-return]

    def condition_step(self, given: Tensor, audio_emb: Tensor, length_emb: Tensor, ended: Tensor) -> Tensor:
        """`condition` of one answer position of each row, [rows, D]: given [rows, 3, H] are base, frame rate and text
        context; audio_emb and length_emb [rows, H]; ended bool [rows, 1]."""
        speech = (audio_emb[:, None], length_emb[:, None])
        slots = self.lm_to_talker_proj(torch.cat((given[:, :2], *speech, given[:, 2:]), dim=1))
        text = slots[:, :: CONDITION_SLOTS - 1]  # the first and the last
        text.masked_fill_(ended[:, :, None], 0.0)
        return self.talker_cond_proj(slots.flatten(1))  # type: ignore[no-any-return]

    def forward(self, z: Tensor, valid: Tensor | None = None) -> Tensor:
        """Hidden states [batch, positions, D] of whole sequences z; `valid` as in `Qwen2Model.forward`."""
        hidden, _ = self.model.model(z, valid)
        return hidden  # type: ignore[no-any-return]

    def forward_with_attention(
        self, z: Tensor, watch: HeadOfLayer, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward` and one head's float32 attention weights [batch, positions, positions], for an alignment loss."""
        hidden, attention = self.model.model(z, valid, watch)
        return hidden, attention

    def prefill(
        self,
        z: Tensor,
        cache: PagedCache,
        sequences: Sequence[int],
        counts: Sequence[int],
        attention: PagedAttention,
        watch: HeadOfLayer | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [tokens, D] of further positions and the watched head's weights; see `Qwen2Model.prefill`."""
        return self.model.model.prefill(z, cache, sequences, counts, attention, watch)

    def speech_logits(self, hidden: Tensor) -> Tensor:
        """[..., 3 + codes] over END, START, TAG and the codes."""
        return self.model.lm_head(hidden)  # type: ignore[no-any-return]

    def length_logits(self, hidden: Tensor) -> Tensor:
        """[..., classes]: how long the token *fed* at this position lasts (section 4.1)."""
        return self.talker_length_decoder(hidden)  # type: ignore[no-any-return]


def _without(projected: Tensor, absent: Tensor | None) -> Tensor:
    return projected if absent is None else projected.masked_fill(absent.unsqueeze(-1), 0.0)
