"""Training of the embedded flow decoder on frozen codes.

It starts from the codec's own decoder (`Unmerge`, mel head, the codes' vectors). The solver takes few steps and names
each by the middle of its time, so training shows it exactly those states: for a step i of n, the sample at time i/n
with the label (i + 1/2)/n. The noise has a random size, 0 included, since the size is a dial when speaking. Half of the
batches are cut into chunks of random lengths with random look-ahead, so that an answer may begin with short ones.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoints.voice_files import load_codec, load_flow, save_network
from streaming.speaking.chunk_plan import ChunkPlan
from streaming.speaking.flow import FlowConfig, Voicebox
from training.codec import mel_loss, phone_loss
from training.precision import autocast
from training.toml_config import load_config
from training.voice_codes import RATES_HZ, CodeStore, load_codes, pad_codes
from training.voice_features import MEL_PER_FRAME, PHONES, VoiceBatch, VoiceSet, batches, collate, load
from training.voice_loop import Progress

STEP_COUNTS = (1, 2, 4, 8)
DECODED_CLIPS = 1200
HASTY = ChunkPlan((1,), (0,))
"""The hardest cut: every frame by itself."""


class FlowTrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    voice: str
    codec_checkpoint: str
    codec_weights: str
    checkpoint: str
    weights: str
    minutes: float
    flow: FlowConfig
    threads: int = 1
    clips_per_batch: int = 12
    learning_rate: float = 1e-3


class FlowTrainer(nn.Module):
    """The decoder and the two heads that keep its condition close to sound and words."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.voicebox = Voicebox(config)
        self.mel_head = nn.Linear(config.hidden, 128)
        self.phones_of_sound = nn.Linear(config.hidden, len(PHONES))

    def start_from(self, checkpoint: Path, codec_weights: Path) -> None:
        """Take over the codec's decoder and its vector of every code."""
        average = torch.load(checkpoint, weights_only=True)["average"]
        for name, module in (("mel_head", self.mel_head), ("phones_of_sound", self.phones_of_sound),
                             ("unmerge", self.voicebox.unmerge)):  # fmt: skip
            assert module is not None
            module.load_state_dict(
                {key[len(name) + 1 :]: value for key, value in average.items() if key.startswith(name + ".")}
            )
        with torch.no_grad():
            codes = torch.arange(self.voicebox.config.codebook_size)
            self.voicebox.cond_emb.weight.copy_(load_codec(codec_weights).vectors(codes))

    def forward(
        self, codes: Tensor, durations: Tensor, batch: VoiceBatch, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Velocity and its target [batch, 4 L, 128], regression mel, phone logits."""
        plan = random_plan(rng, self.voicebox.plan()) if rng.random() < 0.5 else None
        condition = self.voicebox.condition(codes, durations, plan)
        count = len(batch.frames)
        steps = rng.choice(STEP_COUNTS, count, p=(0.2, 0.4, 0.3, 0.1))
        index = (rng.random(count) * steps).astype(np.int64)
        now = torch.from_numpy(index / steps).float().view(-1, 1, 1)
        label = torch.from_numpy((index + 0.5) / steps).float()
        size = torch.from_numpy(np.where(rng.random(count) < 0.2, 0.0, rng.random(count))).float().view(-1, 1, 1)
        noise = torch.randn_like(batch.mel) * size
        state = (1 - now) * noise + now * batch.mel
        mask = self.voicebox.mask(batch.real.repeat_interleave(MEL_PER_FRAME, dim=1), plan)
        velocity = self.voicebox.diff_estimator(state, label, condition, mask)
        return velocity, batch.mel - noise, self.mel_head(condition), self.phones_of_sound(condition)


def random_plan(rng: np.random.Generator, uniform: ChunkPlan) -> ChunkPlan:
    """Chunks of up to twice the uniform length, look-ahead up to the uniform one, anew for each of the first 64."""
    return ChunkPlan(
        tuple(rng.integers(1, 2 * uniform.lengths[0], 64, endpoint=True).tolist()),
        tuple(rng.integers(0, uniform.look_ahead[0], 64, endpoint=True).tolist()),
    )


def velocity_loss(velocity: Tensor, target: Tensor, batch: VoiceBatch) -> Tensor:
    weight = batch.real.repeat_interleave(MEL_PER_FRAME, dim=1).unsqueeze(2)
    error = (velocity.float() - target) * weight
    return (0.5 * error.abs() + error.square()).sum() / (weight.sum() * target.shape[2])


@torch.no_grad()
def evaluate(voicebox: Voicebox, voice: VoiceSet, stores: dict[float, CodeStore], chosen: list[int]) -> str:
    """Held-out mel L1 at each rate: from no noise in one step, from half the noise in two, and the first in `HASTY`
    chunks."""
    shown = []
    for rate_hz, store in stores.items():
        errors = {"mean": 0.0, "2 steps": 0.0, "hasty": 0.0}
        frames = 0.0
        for first in range(0, len(chosen), 20):
            part = chosen[first : first + 20]
            batch = collate(voice, part)
            codes, durations = pad_codes([store.clip(index) for index in part])
            real = batch.real.repeat_interleave(MEL_PER_FRAME, dim=1)
            frames += float(real.sum())
            for name, noise, steps, plan in (
                ("mean", 0.0, 1, None), ("2 steps", 0.5, 2, None), ("hasty", 0.0, 1, HASTY)
            ):  # fmt: skip
                condition = voicebox.condition(codes, durations, plan)
                start = torch.randn(batch.mel.shape, generator=torch.Generator().manual_seed(1)) * noise
                mel = voicebox.solve(condition, start, steps=steps, real=real, plan=plan)
                errors[name] += float(((mel - batch.mel).abs().mean(2) * real).sum())
        shown.append(f"{rate_hz:g} Hz: " + ", ".join(f"{name} {error / frames:.3f}" for name, error in errors.items()))
    return "; ".join(shown)


def train(config: FlowTrainingConfig) -> Voicebox:
    torch.set_num_threads(config.threads)
    torch.manual_seed(2)
    voice = load(Path(config.voice))
    stores = {rate_hz: load_codes(Path(config.voice), rate_hz) for rate_hz in RATES_HZ}
    trainer = FlowTrainer(config.flow)
    if not Path(config.checkpoint).exists():
        trainer.start_from(Path(config.codec_checkpoint), Path(config.codec_weights))
    print(f"flow {sum(p.numel() for p in trainer.voicebox.parameters()) / 1e6:.2f} M parameters", flush=True)
    progress = Progress(trainer, Path(config.checkpoint), minutes=config.minutes, learning_rate=config.learning_rate)
    rng = np.random.default_rng(progress.step + 2)
    chosen, queue = voice.part("reply", "open"), list[list[int]]()
    judged = voice.part("held_out_reply", "held_out_open")[::4]
    for step in progress.steps():
        if not queue:
            queue = batches(voice, chosen, config.clips_per_batch, rng)
        part = queue.pop()
        batch = collate(voice, part)
        rates = rng.choice(RATES_HZ, len(part), p=(0.32, 0.17, 0.17, 0.17, 0.17))
        codes, durations = pad_codes([stores[float(hz)].clip(index) for hz, index in zip(rates, part, strict=True)])
        with autocast():
            velocity, target, mel, phones = trainer(codes, durations, batch, rng)
        flow, regression = velocity_loss(velocity, target, batch), mel_loss(mel, batch)
        words = phone_loss(phones, batch)
        progress.update(
            flow + 0.3 * regression + 0.1 * words, flow=flow.item(), regression=regression.item(), words=words.item()
        )
        if step % 500 == 499:
            print(evaluate(trainer.voicebox, voice, stores, judged), flush=True)
    trainer.load_state_dict(progress.average)
    print(evaluate(trainer.voicebox, voice, stores, judged), flush=True)
    return trainer.voicebox.eval()


@torch.no_grad()
def write_decoded_mel(voicebox: Voicebox, voice: VoiceSet, stores: dict[float, CodeStore], path: Path) -> None:
    """A file like mel.npy: some clips decoded from their codes at random rates, the rest 0, for the vocoder."""
    rng = np.random.default_rng(9)
    decoded = np.lib.format.open_memmap(path, "w+", np.float16, voice.mel.shape)
    some = rng.choice(voice.part("reply", "open"), DECODED_CLIPS, replace=False)
    some = sorted(some.tolist(), key=lambda index: voice.frames[index])
    for first in range(0, len(some), 24):
        part = some[first : first + 24]
        rate_hz = float(rng.choice(RATES_HZ, p=(0.4, 0.15, 0.15, 0.15, 0.15)))
        codes, durations = pad_codes([stores[rate_hz].clip(index) for index in part])
        with autocast():
            condition = voicebox.condition(codes, durations)
        noise = 0.3 * torch.randn(len(part), condition.shape[1], 128)
        real = torch.arange(condition.shape[1]) < durations.sum(1, keepdim=True) * MEL_PER_FRAME
        mel = voicebox.solve(condition.float(), noise, steps=2, real=real)
        for row, index in enumerate(part):
            at, frames = int(voice.first_frame[index]) * MEL_PER_FRAME, int(voice.frames[index]) * MEL_PER_FRAME
            decoded[at : at + frames] = mel[row, :frames].numpy()
    decoded.flush()


def main(config_path: Path) -> None:
    config = load_config(config_path, FlowTrainingConfig)
    save_network(train(config), config.flow, Path(config.weights))
    voice = load(Path(config.voice))
    stores = {rate_hz: load_codes(Path(config.voice), rate_hz) for rate_hz in RATES_HZ}
    write_decoded_mel(load_flow(Path(config.weights)), voice, stores, Path(config.voice) / "mel_decoded.npy")
    print(f"wrote {config.weights}", flush=True)
