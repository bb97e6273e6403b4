"""FlexiCodec-TTS, the autoregressive text-to-speech model: text ids -> semantic codes with durations.

Input sequence of the language model: start, frame rate, text states, task, then one vector per speech token, which is
speech_embedding[token i] + duration_embedding[duration of token i-1]. The hidden state after token i-1 predicts
both the duration of token i-1 and token i, so a duration is known one step after its token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streaming.flexicodec.relative_encoder import RelativeEncoder, RelativeEncoderConfig
from streaming.layers.embedding import embedding

START, TASK = 0, 1  # rows of llm_embedding
NO_DURATION_YET = 0  # class that enters with the first prompt token


RELEASED_TEXT = RelativeEncoderConfig(1024, 8, 3584, 4, "text")
RELEASED_LANGUAGE = RelativeEncoderConfig(1024, 8, 5376, 16, "language")


@dataclass(frozen=True)
class ArTtsConfig:
    """Sizes; the defaults are the released model. `frame_rates` are merging thresholds, not Hz."""

    text: RelativeEncoderConfig = RELEASED_TEXT
    language: RelativeEncoderConfig = RELEASED_LANGUAGE
    text_vocabulary: int = 51_866
    speech_vocabulary: int = 32_768
    duration_classes: int = 10
    speaker_dim: int = 192
    frame_rates: tuple[float, ...] = (0.86, 0.91)


@dataclass(frozen=True)
class ArSampling:
    """How tokens and durations are drawn; `top_k` 1 is greedy. Lengths are relative to the number of text ids."""

    top_k: int = 25
    duration_top_k: int = 1
    duration_temperature: float = 0.9
    max_length_ratio: float = 20.0
    min_length_ratio: float = 0.0


@dataclass(frozen=True)
class TimedCodes:
    """Codes and their durations in 12.5 Hz frames, equally many of both."""

    codes: list[int]
    durations: list[int]


class ArTts(nn.Module):
    def __init__(self, config: ArTtsConfig) -> None:
        super().__init__()
        self.config = config
        width = config.language.width
        self.text_embedding = embedding(config.text_vocabulary, config.text.width)
        self.text_encoder = RelativeEncoder(config.text)
        self.text_encoder_affine_layer = nn.Linear(config.text.width, width)
        self.llm_embedding = embedding(2, width)
        self.llm = RelativeEncoder(config.language)
        self.llm_decoder = nn.Linear(width, config.speech_vocabulary + 1)
        self.speech_embedding = embedding(config.speech_vocabulary, width)
        # Part of every checkpoint, used by none of the released flows.
        self.spk_embed_affine_layer = nn.Linear(config.speaker_dim, width)
        self.framerate_embed_affine_layer = nn.Linear(len(config.frame_rates), width)
        self.duration_decoder = nn.Linear(width, config.duration_classes)
        self.duration_embedding = embedding(config.duration_classes + 1, width)

    def encode_text(self, text: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Text ids [batch, n] -> states [batch, n, width]."""
        return self.text_encoder_affine_layer(self.text_encoder(self.text_embedding(text), lengths))  # type: ignore[no-any-return]

    def speech_input(self, codes: Tensor, previous_durations: Tensor) -> Tensor:
        """Input vectors of speech tokens [batch, n], given the durations of the tokens before them."""
        return self.speech_embedding(codes) + self.duration_embedding(previous_durations)  # type: ignore[no-any-return]

    def prompt_input(self, text: Tensor, frame_rate: float, codes: Tensor, durations: Tensor) -> Tensor:
        """The sequence up to and including the prompt's tokens, for text [1, n] and a prompt [1, m] (m may be 0)."""
        if frame_rate not in self.config.frame_rates:
            allowed = ", ".join(map(str, self.config.frame_rates))
            raise ValueError(f"frame rate {frame_rate} is not one of the model's: {allowed}")
        choice = torch.tensor([rate == frame_rate for rate in self.config.frame_rates], device=text.device)
        rate = self.framerate_embed_affine_layer(choice.to(self.llm_embedding.weight.dtype))
        before = torch.cat((torch.full_like(durations[:, :1], NO_DURATION_YET), durations[:, :-1]), dim=1)
        parts = (
            self.llm_embedding.weight[START].expand(1, 1, -1),
            rate.expand(1, 1, -1),
            self.encode_text(text),
            self.llm_embedding.weight[TASK].expand(1, 1, -1),
            self.speech_input(codes, before),
        )
        return torch.cat(parts, dim=1)

    @torch.inference_mode()
    def generate(
        self,
        text: Sequence[int],
        frame_rate: float,
        prompt: TimedCodes,
        sampling: ArSampling,
        generator: torch.Generator | None = None,
    ) -> TimedCodes:
        """Speak `text` (which starts with the prompt's words, where there is a prompt), until the stop token."""
        device = self.llm_embedding.weight.device
        longest, shortest = int(len(text) * sampling.max_length_ratio), int(len(text) * sampling.min_length_ratio)
        prefix = self.prompt_input(
            torch.tensor([text], device=device),
            frame_rate,
            torch.tensor([prompt.codes], dtype=torch.int64, device=device),
            torch.tensor([prompt.durations], dtype=torch.int64, device=device),
        )
        state = self.llm.initial_state(1, prefix.shape[1] + longest)
        hidden, state = self.llm.step(prefix, state)
        codes: list[int] = []
        durations = list(prompt.durations)
        stop = self.config.speech_vocabulary
        for number in range(longest):
            refused = stop if number < shortest else None
            code = _draw(self.llm_decoder(hidden[0, -1]), sampling.top_k, refused, generator)
            if code == stop:
                break
            before = durations[-1] if durations else NO_DURATION_YET
            x = self.speech_input(torch.tensor([[code]], device=device), torch.tensor([[before]], device=device))
            hidden, state = self.llm.step(x, state)
            logits = self.duration_decoder(hidden[0, -1]) / sampling.duration_temperature
            codes.append(code)
            durations.append(_draw(logits, sampling.duration_top_k, None, generator))
        return TimedCodes(codes, durations[len(prompt.durations) :])


def _draw(logits: Tensor, top_k: int, refused: int | None, generator: torch.Generator | None) -> int:
    """One of the `top_k` likeliest classes of logits [classes], in proportion to their probabilities."""
    best = logits.topk(min(top_k + (refused is not None), logits.numel())).indices
    if refused is not None:
        best = best[best != refused][:top_k]
    if best.numel() == 1:
        return int(best[0])
    return int(best[torch.multinomial(logits[best].softmax(-1), 1, generator=generator)])
