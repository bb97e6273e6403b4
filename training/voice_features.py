"""What the voice networks train on, computed once from the recordings: two log-mels and a phone for every 20 ms.

Every clip is padded with silence to whole 12.5 Hz frames, so that L frames are 8 L frames of 100 Hz log-mel, 4 L frames
of 50 Hz mel and 4 L phones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor

from streaming.flexicodec.codec import INPUT_FRAME_SAMPLES
from streaming.speaking.mel24k import Mel24k
from training.features import log_power, scale
from training.voice_data import SAMPLE_RATE_HZ, VoiceClip, load_audio, load_clips

LOG_MEL_PER_FRAME = 8
MEL_PER_FRAME = 4
PHONES = (
    "pau", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih", "iy",
    "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh",
)  # fmt: skip


@dataclass(frozen=True)
class VoiceSet:
    """All clips end to end. log_mel float16 [sum 8 L, 80]; mel float16 [sum 4 L, 128]; phones uint8 [sum 4 L]."""

    clips: list[VoiceClip]
    first_frame: np.ndarray
    frames: np.ndarray
    log_mel: np.ndarray
    mel: np.ndarray
    phones: np.ndarray

    def part(self, *names: str) -> list[int]:
        """Numbers of the clips of these parts."""
        return [index for index, clip in enumerate(self.clips) if clip.part in names]


@dataclass
class VoiceBatch:
    """frames int64 [batch] (12.5 Hz); real bool [batch, L]; log_mel [batch, 8 L, 80]; mel [batch, 4 L, 128];
    phones int64 [batch, 4 L], -100 behind the end.
    """

    frames: list[int]
    real: Tensor
    log_mel: Tensor
    mel: Tensor
    phones: Tensor


def frames_of(samples: int) -> int:
    """12.5 Hz frames of a clip, the last one padded with silence."""
    return -(-samples // INPUT_FRAME_SAMPLES)


def audio_24k(samples: np.ndarray) -> np.ndarray:
    """float32 at 24 kHz of int16 at 16 kHz, padded to whole 12.5 Hz frames: exactly 1920 samples a frame."""
    frames = frames_of(len(samples))
    padded = np.zeros(frames * INPUT_FRAME_SAMPLES, np.float32)
    padded[: len(samples)] = samples.astype(np.float32) / 32768
    resampled = soxr.resample(padded, SAMPLE_RATE_HZ, 24_000)
    return np.resize(resampled, frames * 1920) if len(resampled) < frames * 1920 else resampled[: frames * 1920]


def phone_labels(clip: VoiceClip, frames: int) -> np.ndarray:
    """The phone sounding in the middle of each 20 ms, uint8 [4 * frames]; silence behind the end."""
    ends = np.array([end for _, end in clip.phones])
    names = np.array([PHONES.index(name) if name in PHONES else 0 for name, _ in clip.phones] + [0], dtype=np.uint8)
    middle = (np.arange(frames * MEL_PER_FRAME) + 0.5) * INPUT_FRAME_SAMPLES / MEL_PER_FRAME
    return names[np.searchsorted(ends, middle, side="right")]


def build(directory: Path) -> None:
    """Write log_mel.npy, mel.npy and phones.npy beside the recordings."""
    clips, audio, mel24k = load_clips(directory), load_audio(directory), Mel24k()
    total = sum(frames_of(clip.samples) for clip in clips)
    arrays = {
        "log_mel": np.zeros((total * LOG_MEL_PER_FRAME, 80), np.float16),
        "mel": np.zeros((total * MEL_PER_FRAME, 128), np.float16),
        "phones": np.zeros(total * MEL_PER_FRAME, np.uint8),
    }
    at = 0
    for number, clip in enumerate(clips):
        frames = frames_of(clip.samples)
        samples = audio[clip.start_sample : clip.start_sample + clip.samples]
        padded = torch.zeros(frames * INPUT_FRAME_SAMPLES)
        padded[: clip.samples] = torch.from_numpy(samples.astype(np.float32) / 32768)
        log_mel = scale(log_power(padded))
        mel = mel24k(torch.from_numpy(audio_24k(samples)).unsqueeze(0))[0]
        end = at + frames
        arrays["log_mel"][at * LOG_MEL_PER_FRAME : end * LOG_MEL_PER_FRAME] = log_mel
        arrays["mel"][at * MEL_PER_FRAME : end * MEL_PER_FRAME] = mel
        arrays["phones"][at * MEL_PER_FRAME : end * MEL_PER_FRAME] = phone_labels(clip, frames)
        at = end
        if number % 1000 == 0:
            print(f"features: {number} of {len(clips)} clips", flush=True)
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array)


def load(directory: Path) -> VoiceSet:
    """Features of `directory`, computed first where they are missing."""
    if not (directory / "phones.npy").exists():
        build(directory)
    clips = load_clips(directory)
    frames = np.array([frames_of(clip.samples) for clip in clips])
    return VoiceSet(
        clips,
        np.concatenate(([0], frames.cumsum()[:-1])),
        frames,
        *(np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("log_mel", "mel", "phones")),
    )


def collate(voice: VoiceSet, chosen: Sequence[int]) -> VoiceBatch:
    lengths = [int(voice.frames[index]) for index in chosen]
    longest = max(lengths)
    log_mel = torch.full((len(chosen), longest * LOG_MEL_PER_FRAME, 80), float(scale(torch.tensor(-10.0))))
    mel = torch.zeros(len(chosen), longest * MEL_PER_FRAME, 128)
    phones = torch.full((len(chosen), longest * MEL_PER_FRAME), -100)
    for row, (index, length) in enumerate(zip(chosen, lengths, strict=True)):
        at = int(voice.first_frame[index])
        fine = slice(at * LOG_MEL_PER_FRAME, (at + length) * LOG_MEL_PER_FRAME)
        coarse = slice(at * MEL_PER_FRAME, (at + length) * MEL_PER_FRAME)
        log_mel[row, : length * LOG_MEL_PER_FRAME] = torch.from_numpy(np.array(voice.log_mel[fine], np.float32))
        mel[row, : length * MEL_PER_FRAME] = torch.from_numpy(np.array(voice.mel[coarse], np.float32))
        phones[row, : length * MEL_PER_FRAME] = torch.from_numpy(np.array(voice.phones[coarse], np.int64))
    real = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    return VoiceBatch(lengths, real, log_mel, mel, phones)


def batches(voice: VoiceSet, chosen: Sequence[int], size: int, rng: np.random.Generator) -> list[list[int]]:
    """One epoch: clips of similar length together, batches in random order."""
    noisy = sorted(chosen, key=lambda index: voice.frames[index] + rng.uniform(0, 4))
    groups = [list(noisy[first : first + size]) for first in range(0, len(noisy), size)]
    rng.shuffle(groups)
    return groups


if __name__ == "__main__":
    build(Path(sys.argv[1]))
