"""The encoder learns hard listening from itself: what it makes of a clear recording is what it shall make of the same
recording over a telephone or in a noisy place.

The finished encoder stays as the teacher; merger, Thinker and Talker, which know its frames, need not change. Beside
the likeness to the teacher's frames stand the CTC loss of `training.recogniser` and what the finished Thinker answers
to the pupil's frames of a recorded order, so that the pupil may become better than the teacher.
`agogic train hearing --config ...`
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.checkpoints.packing import load_packed, save_packed
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig, EncoderOutput
from training.channels import HardAugmenter, Hardships
from training.features import Clip
from training.hard_data import load_backgrounds
from training.precision import autocast
from training.recogniser import Example, character_ids, loss_of
from training.slm_config import SlmConfig
from training.slm_data import Examples
from training.slm_model import SpeechLanguageModel, group_lengths
from training.slm_stores import load_examples, load_finished
from training.slm_trial import accepted
from training.toml_config import load_config
from training.voice_codes import RATES_HZ
from training.world import confirm

Slots = dict[str, str]
PARTS = 4
"""Parts of a batch that pass through the encoder one after the other."""


class HearingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The finished model in `model` goes on learning from the stores; `hard` is `agogic train hard_data`'s folder.

    recorded: share of the batches' clips that are recorded orders; recognition, answers: weights of the CTC loss and of
    the loss of the Thinker's answers to recorded orders beside the likeness. `output` is the run's checkpoint,
    `weights` the encoder at its end: `pupil_share` of the pupil's weights, the rest the teacher's. The pupil begins as
    its teacher, or as the encoder in the file `start_from`.
    """

    model: str
    speech: str
    clips: str
    labels: str
    hard: str
    output: str
    weights: str
    start_from: str = ""
    more_speech: tuple[str, ...] = ()
    hardships: Hardships = Hardships()
    minutes: float = 30.0
    save_minutes: float = 3.0
    test_minutes: float = 6.0
    batch_frames: int = 4500
    recorded: float = 0.5
    recognition: float = 0.25
    answers: float = 1.0
    pauses: float = 0.2
    learning_rate: float = 6e-4
    warmup_steps: int = 60
    average_decay: float = 0.99
    pupil_share: float = 1.0
    threads: int = 1
    seed: int = 41


def _encoder(weights: dict[str, Tensor]) -> BlockCausalEncoder:
    encoder = BlockCausalEncoder(EncoderConfig())
    encoder.load_state_dict({n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")})
    return encoder


def likeness_loss(heard: Tensor, wanted: Tensor, mel_lengths: Tensor) -> Tensor:
    """Squared distance of frames [rows, n, hidden] over the frames that are real, relative to what is wanted."""
    frames = -(-mel_lengths // 4)
    real = (torch.arange(heard.shape[1]) < frames[:, None]).unsqueeze(2)
    error = ((heard.float() - wanted.float()).square() * real).sum()
    return error / (wanted.float().square() * real).sum().clamp_min(1e-6)


class Hearing:
    """The run: teacher, pupil, data, optimiser, and a checkpoint that resumes it."""

    def __init__(self, config: HearingConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.weights = load_finished(Path(config.model))
        self.teacher, self.model, self.average = (_encoder(self.weights) for _ in range(3))
        if config.start_from:
            for encoder in (self.model, self.average):
                encoder.load_state_dict(load_packed(Path(config.start_from)))
        self.data = self._examples()
        self.answering = self._answering()
        self.teacher.requires_grad_(False).eval()
        self.average.requires_grad_(False).eval()
        self.rng: random.Random = self.data.rng
        self.augment = HardAugmenter(load_backgrounds(Path(config.hard)), self.rng, config.hardships, config.pauses)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.step, self.minutes = 0, 0.0
        self.checkpoint = Path(config.output)
        if self.checkpoint.exists():
            self._resume()

    def _examples(self) -> Examples:
        c = self.config
        tokenizer = str(Path(c.model) / "tokenizer.json")
        return load_examples(
            SlmConfig(
                c.speech, c.clips, c.labels, tokenizer, "", "", "", model=c.model, more_speech=c.more_speech,
                hard=c.hard, transcribed=True, seed=c.seed,
            )
        )  # fmt: skip

    def _answering(self) -> SpeechLanguageModel:
        """The finished merger and Thinker, which learn nothing here."""
        model = SpeechLanguageModel(self.data.tokenizer.get_vocab_size(), codes=1)  # nothing is spoken here
        parts = {n: w for n, w in self.weights.items() if n.startswith(("merger.", "thinker."))}
        model.load_state_dict(parts, strict=False)
        model.thinker.tie()
        return model.requires_grad_(False).eval()

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.minutes = saved["step"], saved["minutes"]

    def save(self) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        state = {"model": self.model.state_dict(), "average": self.average.state_dict()}
        torch.save(
            {**state, "optimizer": self.optimizer.state_dict(), "step": self.step, "minutes": self.minutes}, partial
        )
        partial.rename(self.checkpoint)

    def _draw(self) -> list[tuple[Clip, Slots | None]]:
        """Clips of like length, recorded orders with their slots: one is drawn, then the nearest of a few others again
        and again."""
        data, batch, frames = self.data, list[tuple[Clip, Slots | None]](), 0
        orders = (data.trimmed, data.trimmed, data.copies or data.trimmed, data.recordings)
        target = len(self.rng.choice(data.synthetic).mel)
        while frames < self.config.batch_frames:
            found: list[tuple[Clip, Slots | None]] = []
            if self.rng.random() < self.config.recorded:
                found += self.rng.sample(self.rng.choice(orders[: 3 + (frames == 0)]), 6)
            else:
                found += [(clip, None) for clip in self.rng.sample(data.synthetic, 6)]
            batch.append(min(found, key=lambda pair: abs(len(pair[0].mel) - target)))
            frames += len(batch[-1][0].mel)
        return batch

    def train_step(self) -> tuple[float, float, float]:
        """Likeness, recognition and answer losses of one batch."""
        c, batch = self.config, self._draw()
        clips = [clip for clip, _ in batch]
        mel, lengths, clean = self.augment.pairs([clip.mel for clip in clips], [clip.clean for clip in clips])
        done = self.minutes / c.minutes
        factor = min(1.0, (self.step + 1) / c.warmup_steps) * (1.0 if done < 0.4 else max(0.02, (1 - done) / 0.6))
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(3)
        # Tempo and pauses make even clips of like length differ: in parts of their own, less of the work is padding.
        for rows in lengths.argsort().tensor_split(PARTS):
            share, longest = len(rows) / len(batch), int(lengths[rows].max())
            heard = mel[rows, :longest], clean[rows, :longest], lengths[rows]
            losses = torch.stack(self._losses([batch[row] for row in rows.tolist()], *heard))
            (share * losses @ torch.tensor((1.0, c.recognition, c.answers))).backward()  # type: ignore[no-untyped-call]
            total += share * losses.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(c.average_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        self.step += 1
        likeness, recognition, answers = total.tolist()
        return likeness, recognition, answers

    def _losses(
        self, batch: list[tuple[Clip, Slots | None]], mel: Tensor, clean: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Likeness, recognition and answer losses of encoder inputs [rows, frames, 80], hard and clean."""
        with autocast():
            with torch.no_grad():
                wanted = self.teacher.encode(clean, lengths).frames
            encoded = self.model.encode(mel, lengths)
            answers = self._answers([slots for _, slots in batch], encoded, lengths)
        likeness = likeness_loss(encoded.frames, wanted, lengths)
        return likeness, self._recognition([clip for clip, _ in batch], encoded, lengths), answers

    def _recognition(self, clips: list[Clip], encoded: EncoderOutput, mel_lengths: Tensor) -> Tensor:
        known = [row for row, clip in enumerate(clips) if clip.text]
        if not known:
            return encoded.frames.new_zeros(())
        texts = [" " + clips[row].text for row in known]
        examples = [
            Example(clips[row], character_ids(text), self.data.prompts.ids(text))
            for row, text in zip(known, texts, strict=True)
        ]
        rows = torch.tensor(known)
        return loss_of(EncoderOutput(*(part[rows] for part in encoded.parts())), mel_lengths[rows], examples)

    def _answers(self, orders: list[Slots | None], encoded: EncoderOutput, mel_lengths: Tensor) -> Tensor:
        """Cross-entropy of the Thinker's restatements of the orders that are recorded, each heard at a rate of its
        own."""
        known = [(row, slots) for row, slots in enumerate(orders) if slots is not None]
        if not known or not self.config.answers:
            return encoded.frames.new_zeros(())
        thinker, prompts = self.answering.thinker, self.data.prompts
        heard = [encoded.frames[row, : -(-int(mel_lengths[row]) // 4)] for row, _ in known]
        merged = self.answering.merger.forward_batch([(x, group_lengths(x, self.rng.choice(RATES_HZ))) for x in heard])
        before, after = prompts.around([], "", audio=True)
        starts = [self.answering.prompt(before, after, audio) for audio in merged]
        replies = [prompts.answer(confirm(slots)) for _, slots in known]
        rows = [torch.cat((x, thinker.embed(torch.tensor(ids)))) for x, ids in zip(starts, replies, strict=True)]
        hidden = thinker.forward(pad_sequence(rows, batch_first=True))
        predicting = [hidden[i, len(x) - 1 : len(rows[i]) - 1] for i, x in enumerate(starts)]
        wanted = torch.tensor([token for ids in replies for token in ids])
        return F.cross_entropy(thinker.text_logits(torch.cat(predicting)).float(), wanted)

    def test(self) -> None:
        """Held-out recordings, clear and over a telephone, answered by the finished model with the pupil's ear."""
        for hz, channel in ((12.5, ""), (8.0, ""), (8.0, "telephone")):
            share, _ = accepted(self.answering, self.average, self.data, hz, channel=channel)
            print(f"  held out at {hz:g} Hz {channel}: {100 * share:.1f} % accepted", flush=True)

    def run(self) -> None:
        report_at, save_at = self.minutes, self.minutes + self.config.save_minutes
        test_at = self.minutes + self.config.test_minutes
        history: list[tuple[float, float, float]] = []
        while self.minutes < self.config.minutes:
            # Processor time: other work on the machine makes a run longer, but not worse.
            started = time.process_time()
            history.append(self.train_step())
            self.minutes += (time.process_time() - started) / 60 / torch.get_num_threads()
            if self.minutes >= report_at:
                likeness, recognition, answers = (sum(part) / len(history) for part in zip(*history, strict=True))
                shown = f"likeness {likeness:.3f} recognition {recognition:.3f} answers {answers:.3f}"
                print(f"step {self.step} at {self.minutes:.1f} min: {shown}", flush=True)
                history.clear()
                report_at = self.minutes + 1
            if self.minutes >= save_at:
                self.save()
                save_at = self.minutes + self.config.save_minutes
            if self.minutes >= test_at:
                self.test()
                test_at = self.minutes + self.config.test_minutes
        self.save()
        self.test()
        learnt, share = self.average.state_dict(), self.config.pupil_share
        mean = {name: torch.lerp(value, learnt[name], share) for name, value in self.teacher.state_dict().items()}
        save_packed(mean, Path(self.config.weights))


def main(config_path: Path) -> None:
    """`agogic train hearing --config FILE`."""
    config = load_config(config_path, HearingConfig)
    torch.set_num_threads(config.threads)
    Hearing(config).run()
