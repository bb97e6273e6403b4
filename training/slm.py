"""Stage 2: merging transformer, Thinker and Talker, jointly, on answers, transcripts and repeated sentences.

Text is learnt from all, speech from those that were recorded in the speaking voice. Spoken turns pass through the
encoder, are grouped by the causal rate controller at a random rate, and merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.networks.frame_rate import frame_rate_embedding
from models.networks.talker import CODE_OFFSET, Talker
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig, EncoderOutput
from training.channels import HardAugmenter
from training.features import Augmenter, noise_bank
from training.hard_data import load_backgrounds
from training.precision import autocast
from training.recogniser import Example as CtcExample
from training.recogniser import character_ids, loss_of
from training.slm_config import SlmConfig
from training.slm_data import IGNORE, PROMPTS, Examples, Item, speech_streams, speech_targets, word_of_tokens
from training.slm_model import (
    ALIGNMENT_HEAD,
    MAX_GROUP,
    SpeechLanguageModel,
    exact_group_lengths,
    group_lengths,
    merger_config,
    talker_config,
    thinker_config,
)
from training.slm_stores import load_examples, load_finished
from training.slm_trial import accepted

__all__ = [
    "ALIGNMENT_HEAD",
    "MAX_GROUP",
    "PROMPTS",
    "SlmConfig",
    "SlmTraining",
    "main",
    "merger_config",
    "talker_config",
    "thinker_config",
]


DRAWN_TOGETHER = 5
"""Batches whose turns are drawn at once and sorted by length."""


@dataclass(frozen=True)
class Losses:
    text: Tensor
    speech: Tensor
    length: Tensor
    alignment: Tensor
    recognition: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.text, self.speech, self.length, self.alignment, self.recognition

    def total(self) -> Tensor:
        return 2.0 * self.text + self.speech + 0.5 * self.length + 0.3 * self.alignment + 0.5 * self.recognition


class SlmTraining:
    """The run: model, data, optimiser, checkpoint."""

    def __init__(self, config: SlmConfig, data: Examples | None = None) -> None:
        """`data` defaults to what the configuration's stores hold."""
        self.config = config
        torch.manual_seed(config.seed)
        self.data = data or load_examples(config)
        self.rng = self.data.rng
        self.model = SpeechLanguageModel(self.data.tokenizer.get_vocab_size(), config.codes_count)
        self.encoder = BlockCausalEncoder(EncoderConfig())
        self.augment = self._augmenter()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        self.encoder_optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=config.encoder_learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        for part in config.frozen:
            self.model.get_submodule(part).requires_grad_(False)
        self.average = {name: p.detach().clone() for name, p in self._named()}
        self.step, self.minutes = 0, 0.0
        self.drawn: list[list[Item]] = []
        self.checkpoint = Path(config.output)
        if self.checkpoint.exists():
            self._resume()
        elif config.start_from:
            self._start_from(Path(config.start_from))
        elif config.model:
            self._continue_from(load_finished(Path(config.model)))
        if not (config.start_from or config.model) and self.minutes <= config.text_minutes:
            # The recogniser may train on while Thinker and Talker learn from text; its latest weights count.
            self.encoder.load_state_dict(torch.load(config.encoder, weights_only=False)["average"])
            self.average |= {f"encoder.{n}": p.detach().clone() for n, p in self.encoder.named_parameters()}

    def _augmenter(self) -> Augmenter:
        c = self.config
        if c.hardships is not None:
            return HardAugmenter(load_backgrounds(Path(c.hard)), self.rng, c.hardships, c.pauses)
        return Augmenter(noise_bank(self.data.synthetic[:2000], self.rng), self.rng, c.pauses)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.model.named_parameters(), *((f"encoder.{n}", p) for n, p in self.encoder.named_parameters())]

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.encoder.load_state_dict(saved["encoder"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.encoder_optimizer.load_state_dict(saved["encoder_optimizer"])
        self.average = saved["average"]
        self.step, self.minutes = saved["step"], saved["minutes"]

    def _start_from(self, checkpoint: Path) -> None:
        self._continue_from(torch.load(checkpoint, weights_only=False)["average"])

    def _continue_from(self, weights: dict[str, Tensor]) -> None:
        self.average = weights
        with torch.no_grad():
            for name, parameter in self._named():
                parameter.copy_(self.average[name])

    def save(self) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "encoder": self.encoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "encoder_optimizer": self.encoder_optimizer.state_dict(),
                "average": self.average,
                "step": self.step,
                "minutes": self.minutes,
            },
            partial,
        )
        partial.rename(self.checkpoint)

    def merged_audio(
        self, items: list[Item], train_encoder: bool
    ) -> tuple[list[Tensor | None], EncoderOutput | None, Tensor]:
        """Merged embeddings [G, 256] of the items that are spoken, and the encoder's output for its own loss."""
        clips = [item.clip for item in items if item.clip is not None]
        if not clips:
            return [None] * len(items), None, torch.zeros(0)
        mel, lengths = self.augment.batch([clip.mel for clip in clips], 0.45)
        with torch.set_grad_enabled(train_encoder):
            encoded = self.encoder.encode(mel, lengths)
        frames = [encoded.frames[row, : -(-int(length) // 4)] for row, length in enumerate(lengths)]
        rates = [item.input_hz for item in items if item.clip is not None]
        parts = [(x, self._grouping()(x, hz)) for x, hz in zip(frames, rates, strict=True)]
        merged = iter(self.model.merger.forward_batch(parts))
        return [next(merged) if item.clip is not None else None for item in items], encoded, lengths

    def _grouping(self) -> Callable[[Tensor, float], Tensor]:
        return exact_group_lengths if self.rng.random() < self.config.exact_groups else group_lengths

    def losses(self, items: list[Item], train_encoder: bool) -> Losses:
        """Losses of one batch, see `Losses.total`."""
        thinker, talker = self.model.thinker, self.model.talker
        audio, encoded, mel_lengths = self.merged_audio(items, train_encoder)
        rows, starts = [], []
        for item, merged in zip(items, audio, strict=True):
            prompt = self.model.prompt(item.before, item.after, merged)
            starts.append(prompt.shape[0])
            rows.append(torch.cat((prompt, thinker.embed(torch.tensor(item.answer)))))
        inputs = pad_sequence(rows, batch_first=True)
        hidden = thinker.forward(inputs)
        predicting = torch.cat(
            [hidden[i, s - 1 : s - 1 + len(item.answer)] for i, (s, item) in enumerate(zip(starts, items, strict=True))]
        )
        answers = torch.tensor([t for item in items for t in item.answer])
        text = F.cross_entropy(thinker.text_logits(predicting).float(), answers)
        zero = text.new_zeros(())
        recognition = zero
        if train_encoder and encoded is not None:
            recognition = self._recognition(items, encoded, mel_lengths)
        speaking = [i for i, item in enumerate(items) if item.speech is not None]
        if not speaking:
            return Losses(text, zero, zero, zero, recognition)
        return Losses(text, *self._speech_losses(items, speaking, starts, inputs, hidden, talker), recognition)

    def _recognition(self, items: list[Item], encoded: EncoderOutput, mel_lengths: Tensor) -> Tensor:
        """CTC loss on the clips whose words are known."""
        clips = [item.clip for item in items if item.clip is not None]
        known = [row for row, clip in enumerate(clips) if clip.text]
        if not known:
            return encoded.frames.new_zeros(())
        texts = [" " + clips[row].text for row in known]
        examples = [
            CtcExample(clips[row], character_ids(text), self.data.prompts.ids(text))
            for row, text in zip(known, texts, strict=True)
        ]
        rows = torch.tensor(known)
        return loss_of(EncoderOutput(*(part[rows] for part in encoded.parts())), mel_lengths[rows], examples)

    def _speech_losses(
        self, items: list[Item], speaking: list[int], starts: list[int], inputs: Tensor, hidden: Tensor, talker: Talker
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Code, duration and alignment losses over the rows that have speech."""
        spoken = [(items[i].speech, items[i].output_hz) for i in speaking]
        recorded = [speech.codes[hz] for speech, hz in spoken if speech is not None]
        streams = [speech_streams(codes, durations, self.config.delay_tokens) for codes, durations in recorded]
        row_starts = [starts[i] for i in speaking]
        positions = max(start + len(tokens) - 1 for start, (tokens, _) in zip(row_starts, streams, strict=True))
        targets = speech_targets(streams, [self._falsified(tokens) for tokens, _ in streams], row_starts, positions)
        base, context = (
            F.pad(x[speaking], (0, 0, 0, max(0, positions - x.shape[1])))[:, :positions] for x in (hidden, inputs)
        )
        place = torch.arange(positions)
        start = torch.tensor(row_starts)[:, None]
        answer = torch.tensor([len(items[i].answer) for i in speaking])[:, None]
        rates = [
            12.5 * len(codes) / int(durations.sum()) if len(codes) else hz
            for (codes, durations), (_, hz) in zip(recorded, spoken, strict=True)
        ]
        z = talker.condition(
            base,
            torch.stack([frame_rate_embedding(hz, 256, torch.float32) for hz in rates]),
            talker.audio_emb(targets.fed_tokens),
            talker.length_emb(targets.fed_lengths),
            context,
            in_prompt=place < start,
            text_ended=place >= start + answer,
        )
        out, attention = talker.forward_with_attention(z, ALIGNMENT_HEAD)
        known = targets.next_tokens != IGNORE
        flat = out[known]
        speech = F.cross_entropy(talker.speech_logits(flat).float(), targets.next_tokens[known], label_smoothing=0.02)
        length = F.cross_entropy(talker.length_logits(flat).float(), targets.next_lengths[known])
        return speech, length, self._alignment(items, speaking, starts, attention)

    def _falsified(self, tokens: Tensor) -> Tensor:
        """Talker ids [n] with some codes replaced at random: the Talker must go on after its own mistakes."""
        noisy = tokens.clone()
        corrupt = (torch.rand(len(tokens)) < 0.06) & (tokens >= CODE_OFFSET)
        noisy[corrupt] = torch.randint(CODE_OFFSET, CODE_OFFSET + self.config.codes_count, (int(corrupt.sum()),))
        return noisy

    def _alignment(self, items: list[Item], speaking: list[int], starts: list[int], attention: Tensor) -> Tensor:
        """-log of the watched head's weight on the words spoken in each code, read where the code is predicted."""
        query_rows, query_places, masks = [], [], []
        for row, i in enumerate(speaking):
            spoken = items[i].speech
            assert spoken is not None
            owner = word_of_tokens(self.data.tokenizer, items[i].answer)
            for j, words in enumerate(spoken.words_of_codes(items[i].output_hz)):
                k = self.config.delay_tokens - 1 + j
                keys = [starts[i] + t for t, word in enumerate(owner) if word in words and t <= k]
                if keys:
                    query_rows.append(row)
                    query_places.append(starts[i] + k)
                    mask = torch.zeros(attention.shape[2])
                    mask[keys] = 1.0
                    masks.append(mask)
        if not masks:
            return attention.new_zeros(())
        weights = attention[torch.tensor(query_rows), torch.tensor(query_places)]
        return -((weights * torch.stack(masks)).sum(-1) + 1e-4).log().mean()

    def _items(self, with_audio: bool) -> list[Item]:
        """A batch whose spoken turns are of like length: with what is drawn at random, half of an encoder's work would
        be padding."""
        if not self.drawn:
            items = [self.data.draw(with_audio) for _ in range(DRAWN_TOGETHER * self.config.batch)]
            spoken = [item for item in items if item.clip is not None]
            spoken.sort(key=lambda item: len(item.clip.mel) if item.clip is not None else 0)
            written = [item for item in items if item.clip is None]
            self.drawn = [_part(spoken, number) + _part(written, number) for number in range(DRAWN_TOGETHER)]
            self.rng.shuffle(self.drawn)
        return self.drawn.pop()

    def train_step(self) -> Losses:
        c = self.config
        with_audio = self.minutes >= c.text_minutes
        train_encoder = self.minutes >= c.finetune_encoder_from * c.minutes
        items = self._items(with_audio)
        done = self.minutes / c.minutes
        factor = min(1.0, (self.step + 1) / c.warmup_steps) * (1.0 if done < 0.4 else max(0.02, (1 - done) / 0.6))
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * factor
        with autocast():
            losses = self.losses(items, train_encoder)
        self.optimizer.zero_grad(set_to_none=True)
        self.encoder_optimizer.zero_grad(set_to_none=True)
        losses.total().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if train_encoder:
            nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
            for group in self.encoder_optimizer.param_groups:
                group["lr"] = c.encoder_learning_rate * factor
            self.encoder_optimizer.step()
        decay = min(0.997, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self._named():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return losses

    def averaged(self) -> tuple[SpeechLanguageModel, BlockCausalEncoder]:
        """Models with the averaged weights."""
        model = SpeechLanguageModel(self.data.tokenizer.get_vocab_size(), self.config.codes_count)
        model.load_state_dict({n: t for n, t in self.average.items() if not n.startswith("encoder.")}, strict=False)
        model.thinker.tie()
        encoder = BlockCausalEncoder(EncoderConfig())
        encoder.load_state_dict(
            {n.removeprefix("encoder."): t for n, t in self.average.items() if n.startswith("encoder.")}
        )
        return model.eval(), encoder.eval()

    def test(self, input_hz: float = 12.5, exact: bool = False, channel: str = "") -> float:
        """Share of held-out recordings whose slots the answer restates exactly, see `slm_trial.accepted`."""
        model, encoder = self.averaged()
        share, text = accepted(model, encoder, self.data, input_hz, exact=exact, channel=channel)
        how = ", grouped offline" * exact + f", {channel}" * bool(channel)
        print(f"  held out at {input_hz} Hz{how}: {100 * share:.1f} % accepted; {text!r}", flush=True)
        return share

    def run(self) -> None:
        report_at, save_at = self.minutes, self.minutes + self.config.test_minutes
        history: list[list[float]] = []
        while self.minutes < self.config.minutes:
            # Processor time: other work on the machine makes a run longer, but not worse.
            started = time.process_time()
            losses = self.train_step()
            history.append([float(x.detach()) for x in losses.parts()])
            self.minutes += (time.process_time() - started) / 60 / torch.get_num_threads()
            if self.minutes >= report_at:
                mean = np.mean(history, axis=0)
                names = ("text", "speech", "length", "alignment", "recognition")
                shown = " ".join(f"{name} {value:.3f}" for name, value in zip(names, mean, strict=True))
                print(f"step {self.step} at {self.minutes:.1f} min: {shown}", flush=True)
                history.clear()
                report_at = self.minutes + 1
            if self.minutes >= save_at:
                self.save()
                if self.minutes >= self.config.text_minutes:
                    self._tests()
                save_at = self.minutes + self.config.test_minutes
        self.save()
        for hz in (12.5, 6.25):
            self._tests(hz)

    def _tests(self, input_hz: float = 12.5) -> None:
        if self.config.hardships is None:
            for exact in (False, True):
                self.test(input_hz, exact=exact)
        else:
            self.test(input_hz)
            self.test(input_hz, channel="telephone")


def _part(items: list[Item], number: int) -> list[Item]:
    """One of `DRAWN_TOGETHER` parts of nearly equal size."""
    return items[len(items) * number // DRAWN_TOGETHER : len(items) * (number + 1) // DRAWN_TOGETHER]


def main(config_path: Path) -> None:
    """`agogic train slm --config FILE`."""
    config = msgspec.toml.decode(config_path.read_bytes(), type=SlmConfig)
    torch.set_num_threads(config.threads)
    SlmTraining(config).run()
