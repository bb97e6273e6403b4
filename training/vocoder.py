"""Training of the vocoder: mel in, the voice's waveform out; the loss compares spectra at several resolutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoints.voice_files import save_network
from streaming.flexicodec.codec import INPUT_FRAME_SAMPLES
from streaming.speaking.mel24k import Mel24k
from streaming.speaking.vocos import Vocos, VocosConfig
from training.precision import autocast
from training.toml_config import load_config
from training.voice_data import load_audio
from training.voice_features import MEL_PER_FRAME, VoiceSet, load
from training.voice_loop import Progress

SPECTRUM_SIZES = (256, 512, 1024, 2048)
_MAGNITUDE_FLOOR = 5e-3
"""Quieter than this counts as silence; the recordings hold nothing above 8 kHz."""


class VocoderTrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`decoded_mel` names a file like mel.npy made by the flow decoder: half of the crops are then taken from it, and
    only clips that it holds are used."""

    voice: str
    checkpoint: str
    weights: str
    minutes: float
    threads: int = 1
    crops_per_batch: int = 12
    crop_frames: int = 11
    learning_rate: float = 2e-3
    decoded_mel: str | None = None
    start_from: str | None = None
    vocoder: VocosConfig = VocosConfig(dim=256, hidden=640, num_layers=8, causal=True, look_ahead_frames=2)


@dataclass
class Crops:
    mel: Tensor  # [batch, frames, 128]
    sound: Tensor  # [batch, 480 * frames]


def cut_sound(audio: np.ndarray, first: int, frames: int) -> np.ndarray:
    """float32 at 24 kHz of `frames` 12.5 Hz frames from sample `first` of int16 16 kHz audio, with real neighbours."""
    padded = np.zeros((frames + 2) * INPUT_FRAME_SAMPLES, np.float32)
    start = max(first - INPUT_FRAME_SAMPLES, 0)
    piece = audio[start : first + (frames + 1) * INPUT_FRAME_SAMPLES].astype(np.float32) / 32768
    offset = start - (first - INPUT_FRAME_SAMPLES)
    padded[offset : offset + len(piece)] = piece
    return soxr.resample(padded, 16_000, 24_000)[1920 : 1920 * (frames + 1)]  # type: ignore[no-any-return]


def crops(
    voice: VoiceSet, audio: np.ndarray, chosen: Iterable[int], frames: int, decoded: np.ndarray | None,
    rng: np.random.Generator,
) -> Crops:  # fmt: skip
    """One random crop of each chosen clip (clips shorter than a crop are padded by silence)."""
    mels, sounds = [], []
    for index in chosen:
        clip, held = voice.clips[index], int(voice.frames[index])
        at = int(rng.integers(0, max(held - frames, 0) + 1))
        samples = audio[clip.start_sample : clip.start_sample + clip.samples]
        first = (int(voice.first_frame[index]) + at) * MEL_PER_FRAME
        count = min(frames, held) * MEL_PER_FRAME
        source = decoded if decoded is not None and rng.random() < 0.5 else voice.mel
        mel = np.array(source[first : first + count], np.float32)
        if len(mel) < frames * MEL_PER_FRAME:
            mel = np.concatenate((mel, np.repeat(mel[-1:], frames * MEL_PER_FRAME - len(mel), axis=0)))
        mels.append(mel)
        sounds.append(cut_sound(samples, at * INPUT_FRAME_SAMPLES, frames))
    return Crops(torch.from_numpy(np.stack(mels)), torch.from_numpy(np.stack(sounds)))


def spectral_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean over resolutions of log-magnitude L1 and spectral convergence; both [batch, samples]."""
    total = made.new_zeros(())
    for size in SPECTRUM_SIZES:
        window = torch.hann_window(size)
        both = torch.stft(torch.cat((made, wanted)), size, size // 4, window=window, return_complex=True)
        magnitude = torch.sqrt(both.real.square() + both.imag.square() + 1e-9).clamp_min(_MAGNITUDE_FLOOR)
        mine, theirs = magnitude.chunk(2)
        distance = (mine - theirs).square().sum((1, 2)).sqrt() / theirs.square().sum((1, 2)).sqrt().clamp_min(0.1)
        total = total + (mine.log() - theirs.log()).abs().mean() + distance.mean()
    return total / len(SPECTRUM_SIZES)


def train(config: VocoderTrainingConfig) -> Vocos:
    torch.set_num_threads(config.threads)
    torch.manual_seed(3)
    voice, audio, mel24k = load(Path(config.voice)), load_audio(Path(config.voice)), Mel24k()
    decoded = np.load(config.decoded_mel, mmap_mode="r") if config.decoded_mel else None
    vocoder = Vocos(config.vocoder)
    if config.start_from is not None and not Path(config.checkpoint).exists():
        vocoder.load_state_dict(torch.load(config.start_from, weights_only=True)["average"])
    print(f"vocoder {sum(p.numel() for p in vocoder.parameters()) / 1e6:.2f} M parameters", flush=True)
    progress = Progress(vocoder, Path(config.checkpoint), minutes=config.minutes, learning_rate=config.learning_rate)
    rng = np.random.default_rng(progress.step + 5)
    chosen = np.array(voice.part("reply", "open"))
    if decoded is not None:
        chosen = chosen[[decoded[int(voice.first_frame[index]) * MEL_PER_FRAME].any() for index in chosen]]
    for _ in progress.steps():
        batch = crops(voice, audio, rng.choice(chosen, config.crops_per_batch), config.crop_frames, decoded, rng)
        with autocast():
            features = vocoder.features(batch.mel)
        made = vocoder.synthesise(features.float())
        spectra = spectral_loss(made, batch.sound)
        mel = F.l1_loss(mel24k(made), mel24k(batch.sound))
        progress.update(spectra + mel, spectra=spectra.item(), mel=mel.item())
    vocoder.load_state_dict(progress.average)
    return vocoder.eval()


def main(config_path: Path) -> None:
    config = load_config(config_path, VocoderTrainingConfig)
    save_network(train(config), config.vocoder, Path(config.weights))
    print(f"wrote {config.weights}", flush=True)
