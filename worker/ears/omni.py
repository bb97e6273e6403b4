"""The ear of the official weights: the Omni encoder in blocks of 2 s while the user speaks, merged when the turn ends.

    16 kHz ─► log-mel (floor so far) ─► Omni encoder, block by block ┐
    end of the turn: floor of the whole ─► blocks it changed, anew ──┴─► top-k groups ─► merger ─► embeddings

A block does not know what comes behind it, but Whisper's log-mel does: its floor hangs on the loudest sound of the
whole utterance. So a block that a later sound has lifted is encoded again, and the open block is encoded last: what is
merged is what the original computes of the whole clip. Weights with a causal merger merge every block as it comes
instead, and what they gave out stays.

Both can be asked what the utterance is if it ends here. Where it does, that has cost nobody any waiting; where it goes
on, only the blocks that were full (as loud as they then were) are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernels.packed_linear import pack_linears
from models.checkpoints.omni_checkpoint import load_omni_encoder
from models.networks.config import ENCODER_RATE_HZ
from models.networks.flexislm import FlexiSLM
from streaming.hearing.log_mel import StreamingWhisperMel, WhisperClip, floored
from streaming.hearing.omni_encoder import OmniEncoder, OmniEncoderState
from streaming.merging.causal_merger import CausalMerger, StreamState
from streaming.merging.merger import InterleavedMergingTransformer
from streaming.merging.rate_control import RateController
from worker.ears.ear import Hearing
from worker.parts import Pcm

SAME_MEL = 1e-4
"""Features closer than this are equal but for the order of summation."""


class OmniEar:
    """The networks of hearing of one official checkpoint."""

    judges_ends = False

    def __init__(self, encoder: OmniEncoder, slm: FlexiSLM) -> None:
        self.encoder = encoder
        self.slm = slm
        self.mel = StreamingWhisperMel(encoder.config.num_mel_bins).to(slm.device)
        self.merger: CausalMerger | None = None
        merging = slm.input_merging_transformer
        if slm.config.input_merging_transformer_causal and isinstance(merging, InterleavedMergingTransformer):
            controller = RateController(ENCODER_RATE_HZ, slm.config.agogic.max_group_frames)
            self.merger = CausalMerger(merging, slm.audio_embed_transform, controller)

    def begin(self, target_hz: float, previous: object | None = None) -> OmniHearing | CausalOmniHearing:
        if self.merger is None:
            return OmniHearing(self, target_hz)
        return CausalOmniHearing(self, self.merger, target_hz, previous)

    def hear(self, hearings: Sequence[Hearing], pieces: Sequence[Pcm]) -> list[Tensor]:
        return [hearing.hear(pcm) for hearing, pcm in zip(hearings, pieces, strict=True)]

    def samples(self, pcm: Pcm) -> Tensor:
        """The samples where the networks are."""
        return torch.from_numpy(pcm).to(self.slm.device)

    def encode(self, blocks: Tensor) -> Tensor:
        """Log-mel [n, T, mel_bins] of blocks of one length, T at most 2 s -> [n, frames, width]."""
        return self.encoder.encode_blocks(blocks.to(self.slm.device, self.slm.dtype))

    def nothing(self) -> Tensor:
        """Embeddings [0, H] of no group."""
        slm = self.slm
        return torch.zeros(0, slm.config.hidden_size, dtype=slm.dtype, device=slm.device)


@dataclass(frozen=True)
class _End:
    """What an utterance is if it ends here: embeddings [groups, H] still to be given out, and its counts with them."""

    embeddings: Tensor
    frames: int
    group_frames: tuple[int, ...]


class OmniHearing:
    """One utterance, whose embeddings come when it has ended."""

    transcript = ""
    transcribes = False
    certainty = None
    backchannel = None

    def __init__(self, ear: OmniEar, target_hz: float) -> None:
        self.samples = self.frames = 0
        self.group_frames: tuple[int, ...] = ()
        self._ear = ear
        self._target_hz = target_hz
        self._clip = WhisperClip(ear.mel)
        self._power: list[Tensor] = []  # log power of the full blocks, and of the open one
        self._open = self._clip.add(ear.samples(np.zeros(0, np.float32)))
        self._heard: list[Tensor] = []  # what the full blocks were encoded as
        self._encoded: list[Tensor] = []
        self._end: _End | None = None

    @property
    def groups(self) -> int:
        return len(self.group_frames)

    def hear(self, pcm: Pcm) -> Tensor:
        """Encodes every block that is full; there are no embeddings yet."""
        self._end = None
        self.samples += len(pcm)
        self._open = torch.cat((self._open, self._clip.add(self._ear.samples(pcm))))
        block = self._ear.encoder.block_mel_frames
        while len(self._open) >= block:
            self._power.append(self._open[:block])
            self._heard.append(self._clip.features(self._open[:block]))
            self._encoded.append(self._ear.encode(self._heard[-1][None])[0])
            self._open = self._open[block:]
        return self._ear.nothing()

    def prepare(self) -> Tensor:
        """What `finish` would give now, and then gives at no further cost; `hear` takes it back."""
        return self._end_here().embeddings

    def finish(self) -> Tensor:
        """The embeddings [groups, H] of the whole utterance."""
        end = self._end_here()
        self.frames, self.group_frames = end.frames, end.group_frames
        return end.embeddings

    def _end_here(self) -> _End:
        if self._end is None:
            self._end = self._whole()
        return self._end

    def _whole(self) -> _End:
        ear = self._ear
        if not self.samples:
            return _End(ear.nothing(), 0, ())
        last, loudest = self._clip.end_here()
        if self._heard:
            full = floored(torch.stack(self._power), loudest)
            lifted = (full - torch.stack(self._heard)).abs().amax((1, 2)) > SAME_MEL
            for index in lifted.nonzero()[:, 0].tolist():
                self._heard[index], self._encoded[index] = full[index], ear.encode(full[index : index + 1])[0]
        rest = floored(torch.cat((self._open, last)), loudest)  # never empty: the last frame's window is always open
        open_blocks = [ear.encode(block[None])[0] for block in torch.split(rest, ear.encoder.block_mel_frames)]
        frames = torch.cat((*self._encoded, *open_blocks))
        if not len(frames):
            return _End(ear.nothing(), 0, ())
        merged = ear.slm.merge(frames, self._target_hz)
        return _End(merged.embeddings, len(frames), tuple(merged.groups.lengths.tolist()))


@dataclass(frozen=True)
class _CausalEnd(_End):
    """`state` is the merger's at the end, with which the next utterance goes on."""

    state: StreamState


class CausalOmniHearing:
    """One utterance, merged block by block with a causal merger."""

    transcript = ""
    transcribes = False
    certainty = None
    backchannel = None

    def __init__(self, ear: OmniEar, merger: CausalMerger, target_hz: float, previous: object | None) -> None:
        self.samples = self.frames = 0
        self.group_frames: tuple[int, ...] = ()
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
        self._end: _CausalEnd | None = None

    @property
    def groups(self) -> int:
        return len(self.group_frames)

    def hear(self, pcm: Pcm) -> Tensor:
        """The embeddings of the groups that closed."""
        self._end = None
        self.samples += len(pcm)
        mel, self._mel = self._ear.mel.step(self._ear.samples(pcm)[None], self._mel)
        frames, self._encoder = self._encode(mel)
        self.frames += len(frames)
        merged, self._state = self._merger.step(frames, self._state, self._target_hz)
        self.group_frames = (*self.group_frames, *merged.durations_frames)
        return merged.embeddings

    def prepare(self) -> Tensor:
        """What `finish` would give now, and then gives at no further cost; `hear` takes it back."""
        return self._end_here().embeddings

    def finish(self) -> Tensor:
        """The embeddings that were still open."""
        end = self._end_here()
        self.frames, self.group_frames, self._state = end.frames, end.group_frames, end.state
        return end.embeddings

    def _end_here(self) -> _CausalEnd:
        if self._end is None:
            self._end = self._close()
        return self._end

    def _close(self) -> _CausalEnd:
        """The states are values: those of the utterance that may go on are left as they are."""
        mel, _ = self._ear.mel.flush(self._mel)
        head, encoder = self._encode(mel)
        tail, _ = self._ear.encoder.flush(encoder)
        frames = torch.cat((head, tail[0]))
        closed, state = self._merger.step(frames, self._state, self._target_hz)
        last, state = self._merger.flush(state)
        groups = (*self.group_frames, *closed.durations_frames, *last.durations_frames)
        return _CausalEnd(torch.cat((closed.embeddings, last.embeddings)), self.frames + len(frames), groups, state)

    def _encode(self, mel: Tensor) -> tuple[Tensor, OmniEncoderState]:
        """Frames [n, width] of the blocks that mel [1, T, mel_bins] completes."""
        slm = self._ear.slm
        frames, state = self._ear.encoder.step(mel.to(slm.device, slm.dtype), self._encoder)
        return frames[0], state


def load_omni_ear(directory: Path, slm: FlexiSLM, *, packed: bool) -> OmniEar:
    """The audio encoder of `directory`, where and as `slm` is. Raises `CheckpointError`."""
    encoder = load_omni_encoder(directory, dtype=slm.dtype, device=slm.device)
    if packed:
        pack_linears(encoder)
    return OmniEar(encoder, slm)
