"""The ear of the embedded weights: samples in, merged embeddings out as the user speaks.

    BlockEar   16 kHz ─► log-mel ─► block-causal encoder (25 Hz) ─► CTC head ─► live transcript
                                                  ├─► heads: how finished it sounds, whether it wants the word
                                                  └─► causal merger at the requested Hz ─► embeddings [groups, H]

It runs in blocks of 320 ms as they fill, those of several callers together, and what it gave out never changes but for
what was prepared for an end that did not come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from models.checkpoints.packing import load_packed
from models.checkpoints.voice_files import VoiceFileError, load_turn_end
from models.errors import CheckpointError
from models.networks.config import ENCODER_RATE_HZ
from models.networks.flexislm import FlexiSLM
from models.networks.tokenizer import TextTokenizer
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig, EncoderState
from streaming.hearing.speech_mel import SpeechMel, SpeechMelState
from streaming.hearing.turn_end import TurnEnd, TurnEndState
from streaming.layers.module import join_rows, split_rows
from streaming.merging.causal_merger import CausalMerger, StreamState
from streaming.merging.merger import InterleavedMergingTransformer
from streaming.merging.rate_control import RateController
from worker.ears.ear import Hearing
from worker.ears.narrow_band import narrow_band
from worker.parts import Pcm

Spelling = Callable[[list[int]], str]
"""Text of the CTC head's best path, blanks and repeats removed."""


class BlockEar:
    """exact_at_end: groups by top-k over the whole utterance, as offline, instead of as they come; the encoder and the
    transcript go on in blocks. backchannel: reads the means that `turn_end` keeps. telephone: the encoder that goes on,
    in the state of the other, where `narrow_band` hears a telephone; None: always the same one.
    """

    def __init__(
        self,
        encoder: BlockCausalEncoder,
        merger: CausalMerger,
        spelling: Spelling,
        exact_at_end: bool = False,
        turn_end: TurnEnd | None = None,
        telephone: BlockCausalEncoder | None = None,
        backchannel: TurnEnd | None = None,
    ) -> None:
        self.exact_at_end = exact_at_end
        self.turn_end = turn_end
        self.backchannel = backchannel
        self.mel = SpeechMel(encoder.config.mel_bins)
        self.encoder = encoder
        self.telephone = telephone
        self.merger = merger
        self.spelling = spelling

    @property
    def judges_ends(self) -> bool:
        return self.turn_end is not None

    def encoder_for(self, narrow: bool) -> BlockCausalEncoder:
        return self.telephone if narrow and self.telephone is not None else self.encoder

    def begin(self, target_hz: float, previous: Hearing | None = None) -> BlockHearing:
        return BlockHearing(self, target_hz, previous if isinstance(previous, BlockHearing) else None)

    def hear(self, hearings: Sequence[Hearing], pieces: Sequence[Pcm]) -> list[Tensor]:
        rows = [hearing for hearing in hearings if isinstance(hearing, BlockHearing)]
        heard = [hearing.features(pcm) for hearing, pcm in zip(rows, pieces, strict=True)]
        frames: list[Tensor] = [self.merger.nothing(hearing.heard.pending) for hearing in rows]
        for turn in range(max(map(len, heard), default=0)):
            stretches = {row: stretch[turn] for row, stretch in enumerate(heard) if turn < len(stretch)}
            for length, narrow in {(len(block), narrow) for narrow, block in stretches.values()}:
                chosen = [row for row, (own, block) in stretches.items() if (len(block), own) == (length, narrow)]
                states = join_rows([rows[row].heard.encoder for row in chosen])
                blocks = torch.stack([stretches[row][1] for row in chosen])
                encoded, states = self.encoder_for(narrow).step_heads(blocks, states)
                for index, (row, state) in enumerate(zip(chosen, split_rows(states, len(chosen)), strict=True)):
                    new = encoded.frames[index]
                    frames[row] = torch.cat((frames[row], new)) if turn else new
                    rows[row].read(encoded.pieces[index], state)
                    rows[row].attend(new)
        if self.exact_at_end:
            return [hearing.collect(new) for hearing, new in zip(rows, frames, strict=True)]
        mergers, rates = [hearing.heard.merger for hearing in rows], [hearing.target_hz for hearing in rows]
        merged = self.merger.step_together(frames, mergers, rates)
        for hearing, new, (groups, merger) in zip(rows, frames, merged, strict=True):
            hearing.count(len(new), groups.durations_frames, merger)
        return [groups.embeddings for groups, _ in merged]


@dataclass(frozen=True)
class Heard:
    """What one utterance has come to. A value: keeping an old one undoes what came after it.

    pending [p, mel_bins]: features short of a block; path: the recogniser's classes so far; whole: all frames, where
    groups are only made at the end; turn_end: the head's state, judged: its last logit, where there is one; narrow: it
    comes over a telephone.
    """

    samples: int
    frames: int
    group_frames: tuple[int, ...]
    path: tuple[int, ...]
    last_class: int
    mel: SpeechMelState
    pending: Tensor
    encoder: EncoderState
    merger: StreamState
    whole: tuple[Tensor, ...] = ()
    turn_end: TurnEndState | None = None
    judged: Tensor | None = None
    narrow: bool = False


class BlockHearing:
    transcribes = True

    def __init__(self, ear: BlockEar, target_hz: float, previous: BlockHearing | None) -> None:
        self._ear = ear
        self.target_hz = target_hz
        self._open: Heard | None = None
        self._tail: Tensor | None = None
        config = ear.encoder.config
        self.heard: Heard = Heard(
            samples=0,
            frames=0,
            group_frames=(),
            path=(),
            last_class=config.pieces - 1,
            mel=ear.mel.initial_state(1),
            pending=torch.zeros(0, config.mel_bins),
            encoder=ear.encoder.initial_state(1),
            merger=(
                ear.merger.initial_state(config.hidden_size)
                if previous is None
                else ear.merger.next_utterance(previous.heard.merger)
            ),
            turn_end=ear.turn_end.initial_state(1) if ear.turn_end is not None else None,
            narrow=previous is not None and previous.heard.narrow,
        )

    @property
    def samples(self) -> int:
        return self.heard.samples

    @property
    def frames(self) -> int:
        return self.heard.frames

    @property
    def group_frames(self) -> tuple[int, ...]:
        return self.heard.group_frames

    @property
    def groups(self) -> int:
        return len(self.heard.group_frames)

    @property
    def transcript(self) -> str:
        return self._ear.spelling(list(self.heard.path))

    @property
    def certainty(self) -> float | None:
        head, judged = self._ear.turn_end, self.heard.judged
        if head is None or judged is None or self._tail is None:
            return None
        return float(head.certainty(judged))

    @property
    def backchannel(self) -> float | None:
        head, state = self._ear.backchannel, self.heard.turn_end
        if head is None or state is None or self.certainty is None:
            return None
        return float(head.certainty(head.judge(state.means))[0])

    def hear(self, pcm: Pcm) -> Tensor:
        return self._ear.hear([self], [pcm])[0]

    def prepare(self) -> Tensor:
        if self._tail is None:
            self._open, self._tail = self.heard, self._close()
        return self._tail

    def finish(self) -> Tensor:
        tail = self.prepare()
        self._open = None  # nothing takes this end back, and the caches before it are large
        return tail

    def features(self, pcm: Pcm) -> list[tuple[bool, Tensor]]:
        """Takes samples [n]; features [blocks of the encoder, mel_bins] that are complete now, as `_stretches`."""
        if self._open is not None:
            self.heard, self._open, self._tail = self._open, None, None
        heard = self.heard
        mel, state = self._ear.mel.step(torch.from_numpy(pcm)[None], heard.mel)
        waiting = torch.cat((heard.pending, mel[0]))
        whole = len(waiting) - len(waiting) % self._ear.encoder.block_mel_frames
        self.heard = replace(heard, samples=heard.samples + len(pcm), mel=state, pending=waiting[whole:])
        return self._stretches(waiting[:whole])

    def _stretches(self, features: Tensor) -> list[tuple[bool, Tensor]]:
        """Blocks that one encoder hears in a row, and whether that is the telephone's. Each block is judged by itself,
        so that it does not matter how many come at once."""
        stretches: list[tuple[bool, Tensor]] = []
        size = self._ear.encoder.block_mel_frames
        for start in range(0, len(features), size):
            block = features[start : start + size]
            narrow = self._narrow(block)
            self.heard = replace(self.heard, narrow=narrow)
            if stretches and stretches[-1][0] == narrow:
                block = torch.cat((stretches.pop()[1], block))
            stretches.append((narrow, block))
        return stretches

    def _narrow(self, features: Tensor) -> bool:
        return self._ear.telephone is not None and narrow_band(features, self.heard.narrow)

    def read(self, pieces: Tensor, encoder: EncoderState) -> None:
        """Takes the recogniser's view [n, classes] of new frames, and the encoder's state after them."""
        path, last, blank = list(self.heard.path), self.heard.last_class, self._ear.encoder.config.pieces - 1
        for value in pieces.argmax(-1).tolist():
            if value not in (last, blank):
                path.append(value)
            last = value
        self.heard = replace(self.heard, path=tuple(path), last_class=last, encoder=encoder)

    def attend(self, frames: Tensor) -> None:
        """Lets the end-of-turn head hear new frames [n, width]."""
        head, state = self._ear.turn_end, self.heard.turn_end
        if head is None or state is None or not len(frames):
            return
        logits, state = head.step(frames[None], state)
        self.heard = replace(self.heard, turn_end=state, judged=logits[0, -1])

    def count(self, frames: int, groups: tuple[int, ...], merger: StreamState) -> None:
        """Takes the merger's state after so many new frames, of which it made groups of these lengths."""
        heard = self.heard
        lengths = (*heard.group_frames, *groups)
        self.heard = replace(heard, frames=heard.frames + frames, group_frames=lengths, merger=merger)

    def collect(self, frames: Tensor) -> Tensor:
        """Keeps new frames [n, width] for the end; no embeddings."""
        heard = self.heard
        self.heard = replace(heard, frames=heard.frames + len(frames), whole=(*heard.whole, frames))
        return self._ear.merger.nothing(frames)

    def _close(self) -> Tensor:
        """Everything that is held back."""
        ear, heard = self._ear, self.heard
        mel, mel_state = ear.mel.flush(heard.mel)
        features = torch.cat((heard.pending, mel[0]))
        heard = replace(heard, narrow=self._narrow(features))
        encoder = ear.encoder_for(heard.narrow)
        encoded, state = encoder.step_heads(features[None], heard.encoder)
        tail, state = encoder.flush_heads(state)
        frames = torch.cat((encoded.frames[0], tail.frames[0]))
        self.heard = replace(heard, mel=mel_state, pending=heard.pending[:0])
        self.read(torch.cat((encoded.pieces[0], tail.pieces[0])), state)
        self.attend(frames)
        if ear.exact_at_end:
            return self._merge_whole(self.collect(frames))
        merged, merger = ear.merger.step(frames, heard.merger, self.target_hz)
        self.count(len(frames), merged.durations_frames, merger)
        last, merger = ear.merger.flush(merger)
        self.count(0, last.durations_frames, merger)
        return torch.cat((merged.embeddings, last.embeddings))

    def _merge_whole(self, nothing: Tensor) -> Tensor:
        if not self.frames:
            return nothing
        merged = self._ear.merger.exact(torch.cat(self.heard.whole), self.target_hz)
        self.heard = replace(self.heard, group_frames=merged.durations_frames)
        return merged.embeddings


def load_block_ear(directory: Path, slm: FlexiSLM, tokenizer: TextTokenizer, exact_at_end: bool = False) -> BlockEar:
    """The encoder of a directory laid out like `models/embedded`, and its end-of-turn head where it has one, with the
    merger of its `slm`. Raises `CheckpointError`."""
    config, merging = slm.config, slm.input_merging_transformer
    if not isinstance(merging, InterleavedMergingTransformer) or not config.input_merging_transformer_causal:
        raise CheckpointError(f"{directory}/config.json lacks a causal merger, which an embedded model must have")
    controller = RateController(ENCODER_RATE_HZ, config.agogic.max_group_frames)
    merger = CausalMerger(merging, slm.audio_embed_transform, controller)

    def spelling(path: list[int]) -> str:
        return tokenizer.decode(path).strip()

    encoder = _encoder(directory, config.agogic.encoder)
    name = "encoder_telephone.safetensors"
    telephone = _encoder(directory, config.agogic.encoder, name) if (directory / name).exists() else None
    turn_end, backchannel = _head(directory, "turn_end"), _head(directory, "backchannel")
    if backchannel is not None and (turn_end is None or turn_end.keep != backchannel.keep):
        raise CheckpointError(f"{directory}/backchannel.safetensors does not fit turn_end.safetensors; restore both")
    return BlockEar(encoder, merger, spelling, exact_at_end, turn_end, telephone, backchannel)


def _head(directory: Path, name: str) -> TurnEnd | None:
    """The end-of-turn head or that for backchannels, which a model may lack: silence and lengths decide then."""
    path = directory / f"{name}.safetensors"
    if not path.exists():
        return None
    try:
        return load_turn_end(path)
    except VoiceFileError as error:
        raise CheckpointError(str(error)) from error


def _encoder(directory: Path, raw: msgspec.Raw, name: str = "encoder.safetensors") -> BlockCausalEncoder:
    try:
        config = msgspec.json.decode(raw, type=EncoderConfig)
    except msgspec.MsgspecError as error:
        path = directory / "config.json"
        raise CheckpointError(f"{path} does not describe the encoder ({error}); restore it") from error
    encoder = BlockCausalEncoder(config)
    path = directory / name
    try:
        encoder.load_state_dict(load_packed(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit its config ({reason}); restore both") from error
    return encoder.requires_grad_(False).eval()
