"""Ears: samples in, merged embeddings out.

    BlockEar   16 kHz ─► log-mel ─► block-causal encoder (25 Hz) ─► CTC head ─► live transcript
                                                  └─► causal merger at the requested Hz ─► embeddings [groups, H]

It runs in blocks of 320 ms as they fill, and what it gave out never changes. `worker.official_ear` has the one of the
official weights, whose grouping and merging look at the whole utterance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from models.config import ENCODER_RATE_HZ
from streaming.causal_merger import CausalMerger, StreamState
from streaming.encoder import BlockCausalEncoder
from streaming.speech_mel import SpeechMel
from worker.parts import Pcm

Spelling = Callable[[list[int]], str]
"""Text of the CTC head's best path, blanks and repeats removed."""


class Hearing(Protocol):
    """One utterance so far: samples taken in, encoder frames, groups, and its words where it `transcribes`."""

    samples: int
    frames: int
    groups: int

    @property
    def transcribes(self) -> bool: ...

    @property
    def transcript(self) -> str: ...

    def hear(self, pcm: Pcm) -> Tensor:
        """Takes samples [n]; the embeddings [groups, H] that became final."""

    def finish(self) -> Tensor:
        """The embeddings that were still open, once the utterance is over."""


class Ear(Protocol):
    """The networks of hearing; every utterance gets a `Hearing` of its own."""

    def begin(self, target_hz: float, previous: Hearing | None = None) -> Hearing:
        """previous: the utterance before in the same conversation, whose rate accounts are carried on."""


class BlockEar:
    """exact_at_end: groups by top-k over the whole utterance, as offline, instead of as they come; the encoder and the
    transcript go on in blocks."""

    def __init__(
        self, encoder: BlockCausalEncoder, merger: CausalMerger, spelling: Spelling, exact_at_end: bool = False
    ) -> None:
        self.exact_at_end = exact_at_end
        self.mel = SpeechMel(encoder.config.mel_bins)
        self.encoder = encoder
        self.merger = merger
        self.spelling = spelling

    def begin(self, target_hz: float, previous: Hearing | None = None) -> BlockHearing:
        return BlockHearing(self, target_hz, previous if isinstance(previous, BlockHearing) else None)


class BlockHearing:
    transcribes = True

    def __init__(self, ear: BlockEar, target_hz: float, previous: BlockHearing | None) -> None:
        self.samples = self.frames = self.groups = 0
        self._ear = ear
        self._target_hz = target_hz
        self._mel = ear.mel.initial_state(1)
        self._encoder = ear.encoder.initial_state(1)
        self._merger: StreamState = (
            ear.merger.initial_state(ear.encoder.config.hidden_size)
            if previous is None
            else ear.merger.next_utterance(previous._merger)
        )
        self._whole: list[Tensor] = []
        self._path: list[int] = []
        self._last_class = ear.encoder.config.pieces - 1

    @property
    def transcript(self) -> str:
        return self._ear.spelling(self._path)

    def hear(self, pcm: Pcm) -> Tensor:
        self.samples += len(pcm)
        mel, self._mel = self._ear.mel.step(torch.from_numpy(pcm)[None], self._mel)
        encoded, self._encoder = self._ear.encoder.step_heads(mel, self._encoder)
        return self._take(encoded.frames[0], encoded.pieces[0])

    def finish(self) -> Tensor:
        mel, self._mel = self._ear.mel.flush(self._mel)
        encoded, state = self._ear.encoder.step_heads(mel, self._encoder)
        tail, self._encoder = self._ear.encoder.flush_heads(state)
        embeddings = self._take(
            torch.cat((encoded.frames[0], tail.frames[0])), torch.cat((encoded.pieces[0], tail.pieces[0]))
        )
        if self._ear.exact_at_end:
            return self._merge_whole(embeddings)
        last, self._merger = self._ear.merger.flush(self._merger)
        self.groups += len(last.durations_frames)
        return torch.cat((embeddings, last.embeddings))

    def _merge_whole(self, nothing: Tensor) -> Tensor:
        if not self.frames:
            return nothing
        merged = self._ear.merger.exact(torch.cat(self._whole), self._target_hz)
        self.groups = len(merged.durations_frames)
        return merged.embeddings

    def _take(self, frames: Tensor, pieces: Tensor) -> Tensor:
        for value in pieces.argmax(-1).tolist():
            if value not in (self._last_class, self._ear.encoder.config.pieces - 1):
                self._path.append(value)
            self._last_class = value
        self.frames += len(frames)
        if self._ear.exact_at_end:
            self._whole.append(frames)
            return self._ear.merger.nothing(frames)
        merged, self._merger = self._ear.merger.step(frames, self._merger, self._target_hz)
        self.groups += len(merged.durations_frames)
        return merged.embeddings


def realised_hz(hearing: Hearing) -> float:
    """Groups per second of encoded audio, 0 before the first frame."""
    return ENCODER_RATE_HZ * hearing.groups / hearing.frames if hearing.frames else 0.0
