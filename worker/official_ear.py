"""The ear of the official weights: the Omni encoder in blocks of 2 s while the user speaks, merged when the turn ends.

    16 kHz ─► log-mel (floor so far) ─► Omni encoder, block by block ┐
    end of the turn: floor of the whole ─► blocks it changed, anew ──┴─► top-k groups ─► merger ─► embeddings

A block does not know what comes behind it, but Whisper's log-mel does: its floor hangs on the loudest sound of the
whole utterance. So a block that a later sound has lifted is encoded again, and the open block is encoded last: what is
merged is what the original computes of the whole clip. Weights with a causal merger merge every block as it comes
instead, and what they gave out stays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.config import ENCODER_RATE_HZ
from models.flexislm import FlexiSLM
from streaming.causal_merger import CausalMerger, StreamState
from streaming.log_mel import StreamingWhisperMel, WhisperMelState, whisper_log_mel
from streaming.merger import InterleavedMergingTransformer
from streaming.omni_encoder import OmniEncoder
from streaming.rate_control import RateController
from worker.parts import Pcm

SAME_MEL = 1e-4
"""Features closer than this are equal but for the order of summation."""


class OmniEar:
    """The networks of hearing of one official checkpoint."""

    def __init__(self, encoder: OmniEncoder, slm: FlexiSLM) -> None:
        self.encoder = encoder
        self.slm = slm
        self.mel = StreamingWhisperMel(encoder.config.num_mel_bins)
        self.merger: CausalMerger | None = None
        merging = slm.input_merging_transformer
        if slm.config.input_merging_transformer_causal and isinstance(merging, InterleavedMergingTransformer):
            controller = RateController(ENCODER_RATE_HZ, slm.config.agogic.max_group_frames)
            self.merger = CausalMerger(merging, slm.audio_embed_transform, controller)

    def begin(self, target_hz: float, previous: object | None = None) -> OmniHearing | CausalOmniHearing:
        if self.merger is None:
            return OmniHearing(self, target_hz)
        return CausalOmniHearing(self, self.merger, target_hz, previous)

    def encode(self, blocks: Tensor) -> Tensor:
        """Log-mel [n, T, mel_bins] of blocks of one length, T at most 2 s -> [n, frames, width]."""
        return self.encoder.encode_blocks(blocks.to(self.slm.device, self.slm.dtype))

    def nothing(self) -> Tensor:
        """Embeddings [0, H] of no group."""
        slm = self.slm
        return torch.zeros(0, slm.config.hidden_size, dtype=slm.dtype, device=slm.device)


class OmniHearing:
    """One utterance, whose embeddings come when it has ended."""

    transcript = ""
    transcribes = False

    def __init__(self, ear: OmniEar, target_hz: float) -> None:
        self.samples = self.frames = self.groups = 0
        self._ear = ear
        self._target_hz = target_hz
        self._pcm: list[Pcm] = []
        self._stream: WhisperMelState = ear.mel.initial_state(1)
        self._open = torch.zeros(0, ear.encoder.config.num_mel_bins)
        self._heard: list[Tensor] = []
        self._encoded: list[Tensor] = []

    def hear(self, pcm: Pcm) -> Tensor:
        """Encodes every block that is full; there are no embeddings yet."""
        self.samples += len(pcm)
        self._pcm.append(pcm)
        mel, self._stream = self._ear.mel.step(torch.from_numpy(pcm)[None], self._stream)
        self._open = torch.cat((self._open, mel[0]))
        block = self._ear.encoder.block_mel_frames
        while len(self._open) >= block:
            self._heard.append(self._open[:block])
            self._encoded.append(self._ear.encode(self._open[None, :block])[0])
            self._open = self._open[block:]
        return self._ear.nothing()

    def finish(self) -> Tensor:
        """The embeddings [groups, H] of the whole utterance."""
        ear = self._ear
        if not self.samples:
            return ear.nothing()
        samples = torch.from_numpy(np.concatenate(self._pcm))
        mel = whisper_log_mel(samples, ear.encoder.config.num_mel_bins)
        for index, block in enumerate(torch.split(mel, ear.encoder.block_mel_frames)):
            if index >= len(self._heard):
                self._encoded.append(ear.encode(block[None])[0])
            elif (block - self._heard[index]).abs().max() > SAME_MEL:
                self._encoded[index] = ear.encode(block[None])[0]
        frames = torch.cat(self._encoded)
        self.frames = len(frames)
        if not self.frames:
            return ear.nothing()
        merged = ear.slm.merge(frames, self._target_hz)
        self.groups = merged.groups.count
        return merged.embeddings


class CausalOmniHearing:
    """One utterance, merged block by block with a causal merger."""

    transcript = ""
    transcribes = False

    def __init__(self, ear: OmniEar, merger: CausalMerger, target_hz: float, previous: object | None) -> None:
        self.samples = self.frames = self.groups = 0
        self._ear = ear
        self._merger = merger
        self._target_hz = target_hz
        self._mel = ear.mel.initial_state(1)
        self._encoder = ear.encoder.initial_state(1)
        self._state: StreamState = (
            merger.next_utterance(previous._state)
            if isinstance(previous, CausalOmniHearing)
            else merger.initial_state(ear.slm.encoder_dim)
        )

    def hear(self, pcm: Pcm) -> Tensor:
        """The embeddings of the groups that closed."""
        self.samples += len(pcm)
        mel, self._mel = self._ear.mel.step(torch.from_numpy(pcm)[None], self._mel)
        return self._take(self._encode(mel))

    def finish(self) -> Tensor:
        """The embeddings that were still open."""
        mel, self._mel = self._ear.mel.flush(self._mel)
        head = self._encode(mel)
        tail, self._encoder = self._ear.encoder.flush(self._encoder)
        embeddings = self._take(torch.cat((head, tail[0])))
        last, self._state = self._merger.flush(self._state)
        self.groups += len(last.durations_frames)
        return torch.cat((embeddings, last.embeddings))

    def _encode(self, mel: Tensor) -> Tensor:
        """Frames [n, width] of the blocks that mel [1, T, mel_bins] completes."""
        slm = self._ear.slm
        frames, self._encoder = self._ear.encoder.step(mel.to(slm.device, slm.dtype), self._encoder)
        return frames[0]

    def _take(self, frames: Tensor) -> Tensor:
        self.frames += len(frames)
        merged, self._state = self._merger.step(frames, self._state, self._target_hz)
        self.groups += len(merged.durations_frames)
        return merged.embeddings
