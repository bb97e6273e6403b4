"""Streaming with vocoders that look ahead without bound: overlapping windows, cross-faded where they meet.

Official Vocos weights see 93 frames to both sides, most of it in the nearest few. Every run covers `left_frames` of old
mel, the new frames, and a preview of the next ones where the flow decoder has one; what has less than `right_frames`
behind it waits for the next run. The first `fade_frames` of what a run gives are blended with the previous run's
version of them. With all frames on both sides the sound is exactly the whole one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streaming.speaking.mel24k import HOP_SAMPLES, MEL_BINS
from streaming.speaking.vocos import Vocos

EDGE_FRAMES = 2
"""Frames at a window's end whose samples lack overlapping neighbours."""


@dataclass(frozen=True)
class WindowDials:
    left_frames: int = 32
    right_frames: int = 14
    fade_frames: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.fade_frames <= self.right_frames - EDGE_FRAMES or self.left_frames < EDGE_FRAMES:
            raise ValueError(
                f"windows need at least {EDGE_FRAMES} frames on the left, and on the right {EDGE_FRAMES} more than "
                f"are faded, not {self}"
            )


class VocoderStream:
    """One utterance from mel to samples; late by the part of `right_frames` (20 ms each) that previews do not cover."""

    def __init__(self, vocoder: Vocos, dials: WindowDials) -> None:
        self._vocoder, self._dials = vocoder, dials
        weight = vocoder.backbone.norm.weight
        self._mel = weight.new_zeros(0, MEL_BINS)  # from frame `_first` on
        self._first = 0
        self._given = 0  # frames whose samples went out
        self._overlap = weight.new_zeros(0)  # the previous run's samples from there on
        steps = dials.fade_frames * HOP_SAMPLES
        self._rise = (torch.arange(steps, device=weight.device) + 0.5) / steps

    def push(self, mel: Tensor, ahead: Tensor | None = None) -> Tensor:
        """mel [frames, 128] -> the samples [480 m] that it completes; `ahead` previews the frames after it."""
        self._mel = torch.cat((self._mel, mel))
        ahead = mel[:0] if ahead is None else ahead
        waiting = max(0, self._dials.right_frames - ahead.shape[0])
        return self._run(self._first + self._mel.shape[0] - waiting, ahead)

    def flush(self) -> Tensor:
        """The samples held back for look-ahead."""
        return self._run(self._first + self._mel.shape[0], self._mel[:0])

    @torch.inference_mode()
    def _run(self, until: int, ahead: Tensor) -> Tensor:
        """Samples of the frames from the last given one to `until`."""
        if until <= self._given:
            return self._overlap[:0]
        window = torch.cat((self._mel, ahead))
        sound = self._vocoder(window[None])[0, (self._given - self._first) * HOP_SAMPLES :]
        if len(self._overlap):
            faded = min(len(self._overlap), len(sound))
            rise = self._rise[:faded]
            sound = torch.cat((self._overlap[:faded] * (1 - rise) + sound[:faded] * rise, sound[faded:]))
        count = (until - self._given) * HOP_SAMPLES
        self._overlap = sound[count : count + len(self._rise)]
        self._given = until
        keep = max(self._first, until - self._dials.left_frames)
        self._mel, self._first = self._mel[keep - self._first :], keep
        return sound[:count]
