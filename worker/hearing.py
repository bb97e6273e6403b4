"""The ear of the embedded model: samples in, merged embeddings and a live transcript out.

    16 kHz samples ─► log-mel (100 Hz) ─► block-causal encoder (25 Hz) ─► CTC head ─► transcript
                                                     └─► causal merger at the requested Hz ─► embeddings [groups, H]

Everything runs in blocks of 320 ms as they fill; what was given out never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streaming.causal_merger import CausalMerger, Merged, StreamState
from streaming.encoder import BlockCausalEncoder, Encoded, EncoderState
from streaming.speech_mel import SpeechMel, SpeechMelState
from worker.parts import Pcm

Spelling = Callable[[list[int]], str]
"""Text of the CTC head's best path, blanks and repeats removed."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """One utterance so far. path: classes of the CTC head that were not blank; last_class: of the last frame."""

    mel: SpeechMelState
    encoder: EncoderState
    merger: StreamState
    path: tuple[int, ...] = ()
    last_class: int = -1
    samples: int = 0
    frames: int = 0
    groups: int = 0

    @property
    def realised_hz(self) -> float:
        """Groups per second of encoded audio, 0 before the first frame."""
        return 25.0 * self.groups / self.frames if self.frames else 0.0


class Ear:
    """The networks of hearing; `Hearing` holds the state, so one Ear serves every session."""

    def __init__(self, encoder: BlockCausalEncoder, merger: CausalMerger, spelling: Spelling) -> None:
        self.mel = SpeechMel(encoder.config.mel_bins)
        self.encoder = encoder
        self.merger = merger
        self._spelling = spelling
        self._blank = encoder.config.pieces - 1

    def begin(self, previous: Hearing | None = None) -> Hearing:
        """previous: the utterance before in the same conversation, whose rate accounts are carried on."""
        if previous is not None:
            merger = self.merger.next_utterance(previous.merger)
        else:
            merger = self.merger.initial_state(self.encoder.config.hidden_size)
        return Hearing(self.mel.initial_state(1), self.encoder.initial_state(1), merger)

    def transcript(self, hearing: Hearing) -> str:
        return self._spelling(list(hearing.path))

    def hear(self, pcm: Pcm, hearing: Hearing, target_hz: float) -> tuple[Tensor, Hearing]:
        """Takes samples [n]; gives the embeddings [groups, H] that became final and the new state."""
        mel, mel_state = self.mel.step(torch.from_numpy(pcm)[None], hearing.mel)
        encoded, encoder_state = self.encoder.step_heads(mel, hearing.encoder)
        merged, merger_state = self.merger.step(encoded.frames[0], hearing.merger, target_hz)
        heard = replace(hearing, mel=mel_state, encoder=encoder_state, merger=merger_state)
        heard = replace(heard, samples=hearing.samples + len(pcm))
        return merged.embeddings, self._account(heard, encoded, merged)

    def finish(self, hearing: Hearing, target_hz: float) -> tuple[Tensor, Hearing]:
        """Closes the open block and group, as if the utterance ended here."""
        mel, mel_state = self.mel.flush(hearing.mel)
        encoded, encoder_state = self.encoder.step_heads(mel, hearing.encoder)
        heard = self._account(hearing, encoded, None)
        tail, encoder_state = self.encoder.flush_heads(encoder_state)
        heard = self._account(heard, tail, None)
        frames = torch.cat((encoded.frames[0], tail.frames[0]))
        merged, merger_state = self.merger.step(frames, hearing.merger, target_hz)
        last, merger_state = self.merger.flush(merger_state)
        groups = heard.groups + len(merged.durations_frames) + len(last.durations_frames)
        heard = replace(heard, mel=mel_state, encoder=encoder_state, merger=merger_state, groups=groups)
        return torch.cat((merged.embeddings, last.embeddings)), heard

    def _account(self, hearing: Hearing, encoded: Encoded, merged: Merged | None) -> Hearing:
        classes = encoded.pieces[0].argmax(-1).tolist()
        path, last = list(hearing.path), hearing.last_class
        for value in classes:
            if value not in (last, self._blank):
                path.append(value)
            last = value
        return replace(
            hearing,
            path=tuple(path),
            last_class=last,
            frames=hearing.frames + len(classes),
            groups=hearing.groups + (len(merged.durations_frames) if merged else 0),
        )
