"""Training of the embedded model's speech codes.

Codec and a regression decoder (the flow decoder's own `Unmerge` and a mel head) are trained end to end at random rates.
Mel error alone gives codes that are close in sound and poor in words, so three phone classifiers (20 ms, labels from
the synthesiser) share the loss: on the features that decide the merging, on each code's vector by itself, and behind
the decoder.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoints.voice_files import load_codec, save_network
from streaming.flexicodec.codec import CodecConfig, SpeechCodec, merge_batch
from streaming.speaking.unmerge import Frames, Unmerge, UnmergeConfig, repeat_codes
from training.precision import autocast
from training.toml_config import load_config
from training.voice_codes import RATES_HZ, save_codes
from training.voice_features import MEL_PER_FRAME, PHONES, VoiceBatch, VoiceSet, batches, collate, load
from training.voice_loop import Progress


class CodecTrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    voice: str
    checkpoint: str
    weights: str
    minutes: float
    threads: int = 1
    clips_per_batch: int = 16
    learning_rate: float = 1.5e-3
    codec: CodecConfig = CodecConfig()
    decoder_layers: int = 3
    decoder_ffn_dim: int = 768
    context_frames: int = 32
    look_ahead_frames: int = 2
    smoothing_blocks: int = 2


class CodecTrainer(nn.Module):
    """The codec, the decoder and the heads that only training needs."""

    def __init__(self, config: CodecTrainingConfig) -> None:
        super().__init__()
        dim = config.codec.vector_dim
        self.codec = SpeechCodec(config.codec)
        self.unmerge = Unmerge(
            UnmergeConfig(
                dim, config.decoder_layers, config.codec.num_heads, config.decoder_ffn_dim,
                config.context_frames, config.look_ahead_frames, config.smoothing_blocks,
            )
        )  # fmt: skip
        self.mel_head = nn.Linear(dim, 128)
        self.phones_of_features = nn.Linear(config.codec.dim, MEL_PER_FRAME * len(PHONES))
        self.phones_of_codes = nn.Linear(dim, MEL_PER_FRAME * len(PHONES))
        self.phones_of_sound = nn.Linear(dim, len(PHONES))
        for module in self.modules():
            # The official start, 0.01, is for long runs.
            if type(module).__name__ == "LayerScale":
                nn.init.constant_(module.scale, 0.4)

    def forward(self, batch: VoiceBatch, rates_hz: list[float]) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """mel [batch, 4 L, 128], durations [batch, G], three phone logits [batch, 4 L, phones], codes [batch, G]."""
        features = self.codec.semantic_model(batch.log_mel, batch.real)
        durations = merge_batch(features, batch.frames, rates_hz)
        vectors, codes = self.codec.quantise(features, durations)
        owner, position, duration, real = repeat_codes(durations)
        repeated = vectors.gather(1, owner.unsqueeze(2).expand(-1, -1, vectors.shape[2]))
        frames = Frames(repeated, position, duration, real)
        hidden = self.unmerge(frames)
        alone = repeated + self.unmerge.position_embedding(position) + self.unmerge.duration_embedding(duration)
        phones = [
            self.phones_of_features(features).unflatten(2, (MEL_PER_FRAME, -1)).flatten(1, 2),
            self.phones_of_codes(alone).unflatten(2, (MEL_PER_FRAME, -1)).flatten(1, 2),
            self.phones_of_sound(hidden),
        ]
        return self.mel_head(hidden), durations, phones, codes


def mel_loss(mel: Tensor, batch: VoiceBatch) -> Tensor:
    """L1 + half the squared error per bin, over real frames."""
    weight = batch.real.repeat_interleave(MEL_PER_FRAME, dim=1).unsqueeze(2)
    error = (mel.float() - batch.mel) * weight
    return (error.abs() + 0.5 * error.square()).sum() / (weight.sum() * mel.shape[2])


def phone_loss(logits: Tensor, batch: VoiceBatch) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), batch.phones.flatten(), ignore_index=-100)


@torch.no_grad()
def evaluate(trainer: CodecTrainer, voice: VoiceSet, chosen: list[int]) -> str:
    """Held-out mel L1 and phone accuracy behind the decoder, one pair for each rate."""
    shown = []
    for rate_hz in RATES_HZ:
        error = right = frames = groups = 0.0
        for first in range(0, len(chosen), 20):
            batch = collate(voice, chosen[first : first + 20])
            mel, durations, phones, _ = trainer(batch, [rate_hz] * len(batch.frames))
            weight = batch.real.repeat_interleave(MEL_PER_FRAME, dim=1)
            error += float(((mel - batch.mel).abs().mean(2) * weight).sum())
            right += float(((phones[2].argmax(2) == batch.phones) & weight).sum())
            frames += float(weight.sum())
            groups += float((durations > 0).sum())
        realised = groups / frames * 50
        shown.append(f"{realised:.2f} Hz: mel {error / frames:.3f}, phones {100 * right / frames:.1f} %")
    return "; ".join(shown)


def train(config: CodecTrainingConfig) -> CodecTrainer:
    torch.set_num_threads(config.threads)
    torch.manual_seed(1)
    voice = load(Path(config.voice))
    trainer = CodecTrainer(config)
    print(f"codec {sum(p.numel() for p in trainer.codec.parameters()) / 1e6:.2f} M parameters", flush=True)
    progress = Progress(trainer, Path(config.checkpoint), minutes=config.minutes, learning_rate=config.learning_rate)
    rng = np.random.default_rng(progress.step + 1)
    chosen, queue = voice.part("reply", "open"), list[list[int]]()
    for step in progress.steps():
        if not queue:
            queue = batches(voice, chosen, config.clips_per_batch, rng)
        batch = collate(voice, queue.pop())
        rates = [float(hz) for hz in rng.choice(RATES_HZ, len(batch.frames), p=(0.32, 0.17, 0.17, 0.17, 0.17))]
        with autocast():
            mel, _, phones, codes = trainer(batch, rates)
        sound = mel_loss(mel, batch)
        words = [phone_loss(logits, batch) for logits in phones]
        loss = sound + 0.3 * (words[0] + words[1]) + 0.2 * words[2]
        names = ("features", "codes", "decoder")
        progress.update(
            loss,
            mel=sound.item(),
            used=float(codes.unique().numel()),
            **{name: word.item() for name, word in zip(names, words, strict=True)},
        )
        if step % 500 == 499:
            trainer.eval()
            print(evaluate(trainer, voice, voice.part("held_out_reply", "held_out_open")[:60:3]), flush=True)
            trainer.train()
    trainer.load_state_dict(progress.average)
    return trainer.eval()


@torch.no_grad()
def write_codes(codec: SpeechCodec, voice: VoiceSet, directory: Path) -> None:
    """The codes of all clips at every rate, see `voice_codes`."""
    stores: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {rate: [] for rate in RATES_HZ}
    every = sorted(range(len(voice.clips)), key=lambda index: voice.frames[index])
    order = [0] * len(every)
    for first in range(0, len(every), 32):
        chosen = every[first : first + 32]
        batch = collate(voice, chosen)
        features = codec.semantic_model(batch.log_mel, batch.real)
        for rate, clips in stores.items():
            durations = merge_batch(features, batch.frames, [rate] * len(chosen))
            codes = codec.quantise(features, durations)[1]
            for row in range(len(chosen)):
                held = int((durations[row] > 0).sum())
                clips.append((codes[row, :held].numpy(), durations[row, :held].numpy()))
        for row, index in enumerate(chosen):
            order[index] = first + row
    for rate, clips in stores.items():
        save_codes(directory, rate, [clips[at] for at in order])


def main(config_path: Path) -> None:
    config = load_config(config_path, CodecTrainingConfig)
    trainer = train(config)
    voice = load(Path(config.voice))
    print(evaluate(trainer, voice, voice.part("held_out_reply")), flush=True)
    print(evaluate(trainer, voice, voice.part("held_out_open")), flush=True)
    save_network(trainer.codec, config.codec, Path(config.weights))
    # The codes must be those of the weights as stored.
    write_codes(load_codec(Path(config.weights)), voice, Path(config.voice))
    print(f"wrote {config.weights} and the codes of {len(voice.clips)} clips", flush=True)
