"""Stage 1: the audio encoder with CTC heads, from synthesised customers and recorded orders whose words are unknown.

A recorded order comes with its slots only. Its transcript is taken to be the phrasing of those slots to which the
model's own CTC head gives the highest likelihood; it is drawn up anew as the model improves.
"""

from __future__ import annotations

import copy
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig, EncoderOutput
from training.features import Augmenter, Clip, held_out, load_recordings, load_store, noise_bank, scale
from training.phrases import CARRIERS
from training.precision import autocast
from training.world import order_bodies

ALPHABET = " abcdefghijklmnopqrstuvwxyz'"
"""Characters of the CTC head; class 0 is the blank, class i + 1 is ALPHABET[i]."""


class RecogniserConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Budgets in minutes of training; recordings join after `synthetic_minutes` with share `recorded_share`."""

    speech: str
    clips: str
    labels: str
    tokenizer: str
    output: str
    minutes: float = 50.0
    synthetic_minutes: float = 12.0
    relabel_minutes: float = 8.0
    recorded_share: float = 0.45
    batch_frames: int = 2600
    learning_rate: float = 1.3e-3
    warmup_steps: int = 300
    clean_steps: int = 1500
    threads: int = 1
    seed: int = 3


@dataclass
class Example:
    clip: Clip
    characters: list[int]
    pieces: list[int]


def character_ids(text: str) -> list[int]:
    return [ALPHABET.index(c) + 1 for c in text]


def greedy_characters(logits: Tensor) -> str:
    """Best path of character logits [frames, characters], blanks and repeats removed."""
    ids = torch.unique_consecutive(logits.argmax(-1)).tolist()
    return "".join(ALPHABET[i - 1] for i in ids if i)


def greedy_pieces(logits: Tensor, tokenizer: Tokenizer) -> str:
    """Best path of piece logits [frames, pieces]; the blank is the last class."""
    blank = logits.shape[-1] - 1
    ids = [i for i in torch.unique_consecutive(logits.argmax(-1)).tolist() if i != blank]
    return tokenizer.decode(ids).strip()


def _targets(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([i for row in rows for i in row]), torch.tensor([len(row) for row in rows])


def _ctc(logits: Tensor, frames: Tensor, rows: list[list[int]], blank: int) -> Tensor:
    targets, lengths = _targets(rows)
    log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)
    loss = F.ctc_loss(log_probabilities, targets, frames, lengths, blank=blank, reduction="none", zero_infinity=True)
    return (loss / lengths.clamp_min(1)).mean()


def loss_of(encoded: EncoderOutput, mel_lengths: Tensor, examples: list[Example]) -> Tensor:
    """0.5 characters + 0.3 pieces + 0.3 middle-layer characters, each per token."""
    frames = -(-mel_lengths // 4)
    characters = [e.characters for e in examples]
    return (
        0.5 * _ctc(encoded.characters, frames, characters, 0)
        + 0.3 * _ctc(encoded.middle_characters, frames, characters, 0)
        + 0.3 * _ctc(encoded.pieces, frames, [e.pieces for e in examples], encoded.pieces.shape[-1] - 1)
    )


@torch.no_grad()
def likeliest_phrasing(encoder: BlockCausalEncoder, clip: Clip, slots: dict[str, str]) -> str:
    """The transcript with these slots that the character head finds likeliest: carrier first, then body and ending."""
    logits = encoder.encode(scale(torch.from_numpy(clip.mel.astype("float32")))[None]).characters
    log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)

    def best(candidates: list[str]) -> str:
        targets, lengths = _targets([character_ids(" " + text) for text in candidates])
        frames = torch.full((len(candidates),), log_probabilities.shape[0])
        loss = F.ctc_loss(log_probabilities.expand(-1, len(candidates), -1), targets, frames, lengths, reduction="none")
        return candidates[int(loss.argmin())]

    bodies = order_bodies(slots)
    body = best(bodies)
    carrier = best([f"{c} {body}".strip() for c in CARRIERS]).removesuffix(body).strip()
    body = best([f"{carrier} {b}".strip() for b in bodies])
    return best([body + ending for ending in ("", " please", " thank you", " thanks")])


def slots_heard(text: str, slots: dict[str, str]) -> bool:
    """Whether every slot value stands in the text word for word: a quick look at recognition, not the evaluation."""
    return all(f" {value} " in f" {text} " for value in slots.values())


class Recogniser:
    """The training run: data, model, optimiser, and a checkpoint that resumes it."""

    def __init__(self, config: RecogniserConfig) -> None:
        self.config = config
        self.rng = random.Random(config.seed)
        torch.manual_seed(config.seed)
        self.tokenizer = Tokenizer.from_file(config.tokenizer)
        self.model = BlockCausalEncoder(EncoderConfig(dropout=0.05))
        self.average = copy.deepcopy(self.model).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.step = 0
        self.minutes = 0.0
        self.synthetic = [self._example(clip) for clip in load_store(Path(config.speech))]
        recordings = load_recordings(Path(config.clips), Path(config.labels))
        self.recordings = [pair for pair in recordings if not held_out(pair[0].name)]
        self.tests = [pair for pair in recordings if held_out(pair[0].name)]
        self.recorded: list[Example] = []
        self.augment = Augmenter(noise_bank([e.clip for e in self.synthetic[:2000]], self.rng), self.rng)
        self.checkpoint = Path(config.output)
        if self.checkpoint.exists():
            self._resume()

    def _example(self, clip: Clip) -> Example:
        text = " " + clip.text
        return Example(clip, character_ids(text), self.tokenizer.encode(text).ids)

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.minutes = saved["step"], saved["minutes"]

    def _save(self) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "minutes": self.minutes,
            },
            partial,
        )
        partial.rename(self.checkpoint)

    def relabel(self) -> None:
        """New pseudo-transcripts for the recordings."""
        texts = [likeliest_phrasing(self.average, clip, slots) for clip, slots in self.recordings]
        changed = len(self.recorded) and sum(e.clip.text != t for e, t in zip(self.recorded, texts, strict=True))
        self.recorded = [
            self._example(Clip(clip.mel, text, None, clip.name))
            for (clip, _), text in zip(self.recordings, texts, strict=True)
        ]
        print(f"relabelled, {changed} texts changed; e.g. {texts[:3]}", flush=True)

    def _draw(self) -> list[Example]:
        batch: list[Example] = []
        # Clips of like length share a batch: draw one, then its neighbours in length.
        frames = 0
        target = self.rng.choice(self.synthetic).clip.mel.shape[0]
        while frames < self.config.batch_frames:
            pool = self.recorded if self.recorded and self.rng.random() < self.config.recorded_share else self.synthetic
            example = min(self.rng.sample(pool, min(6, len(pool))), key=lambda e: abs(e.clip.mel.shape[0] - target))
            batch.append(example)
            frames += example.clip.mel.shape[0]
        return batch

    def _learning_rate(self) -> float:
        c = self.config
        done = self.minutes / c.minutes
        decay = 1.0 if done < 0.45 else max(0.01, (1 - done) / 0.55)
        return c.learning_rate * min(1.0, (self.step + 1) / c.warmup_steps) * decay

    def train_step(self) -> float:
        examples = self._draw()
        mel, lengths = self.augment.batch(
            [e.clip.mel for e in examples], 1.0 if self.step < self.config.clean_steps else 0.45
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with autocast():
            encoded = self.model.encode(mel, lengths)
        loss = loss_of(encoded, lengths, examples)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(0.998, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def test(self) -> None:
        """Share of held-out recordings whose slot values all stand in the greedy transcripts."""
        by_piece = by_character = 0
        sample = ""
        for clip, slots in self.tests:
            encoded = self.average.encode(scale(torch.from_numpy(clip.mel.astype("float32")))[None])
            sample = greedy_pieces(encoded.pieces[0], self.tokenizer)
            by_piece += slots_heard(sample, slots)
            by_character += slots_heard(greedy_characters(encoded.characters[0]).strip(), slots)
        n = len(self.tests)
        print(
            f"  held out {n}: greedy pieces {100 * by_piece / n:.1f} %, "
            f"characters {100 * by_character / n:.1f} %; {sample!r}",
            flush=True,
        )

    def run(self) -> None:
        relabel_at = self.config.synthetic_minutes
        report_at = save_at = self.minutes
        losses: list[float] = []
        while self.minutes < self.config.minutes:
            if self.minutes >= relabel_at:
                self.relabel()
                relabel_at = self.minutes + self.config.relabel_minutes
            started = time.process_time()
            self.model.train()
            losses.append(self.train_step())
            self.minutes += (time.process_time() - started) / 60 / torch.get_num_threads()
            if self.minutes >= report_at:
                print(f"step {self.step} at {self.minutes:.1f} min: loss {sum(losses) / len(losses):.3f}", flush=True)
                losses.clear()
                report_at = self.minutes + 1
            if self.minutes >= save_at:
                self._save()
                self.test()
                save_at = self.minutes + 4
        self._save()
        self.test()


def export(checkpoint: Path, output: Path) -> None:
    """Averaged weights as float16 safetensors."""
    average = torch.load(checkpoint, weights_only=False)["average"]
    save_file(
        {name: tensor.to(torch.float16).contiguous() for name, tensor in average.items()},
        output,
        metadata={"format": "pt", "config": json.dumps(msgspec.structs.asdict(EncoderConfig()))},
    )


def main(config_path: Path) -> None:
    """`agogic train recogniser --config FILE`."""
    config = msgspec.toml.decode(config_path.read_bytes(), type=RecogniserConfig)
    torch.set_num_threads(config.threads)
    Recogniser(config).run()
    export(Path(config.output), Path(config.output).with_suffix(".safetensors"))
