"""What an ear is: samples in, merged embeddings out. `block` has the embedded one, `omni` the official one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from models.networks.config import ENCODER_RATE_HZ
from worker.parts import Pcm


class Hearing(Protocol):
    """One utterance so far: samples taken in, encoder frames, groups, and its words where it `transcribes`."""

    @property
    def samples(self) -> int: ...

    @property
    def frames(self) -> int: ...

    @property
    def group_frames(self) -> tuple[int, ...]:
        """How many encoder frames each group lasts."""

    @property
    def groups(self) -> int: ...

    @property
    def transcribes(self) -> bool: ...

    @property
    def transcript(self) -> str: ...

    @property
    def certainty(self) -> float | None:
        """How finished what is `prepare`d sounds: the share of pauses inside turns that sound less so; None where that
        is not known."""

    @property
    def backchannel(self) -> float | None:
        """How little somebody who says what is `prepare`d wants the word: the share of short interruptions that sound
        more so; None where that is not known."""

    def hear(self, pcm: Pcm) -> Tensor:
        """Takes samples [n]; the embeddings [groups, H] that became final. Takes back what was prepared."""

    def prepare(self) -> Tensor:
        """The embeddings that `finish` would give if nothing more were heard; if so, it costs nothing any more."""

    def finish(self) -> Tensor:
        """The embeddings that were still open, once the utterance is over."""


class Ear(Protocol):
    """The networks of hearing; every utterance gets a `Hearing` of its own."""

    @property
    def judges_ends(self) -> bool:
        """Whether a `Hearing` has a `certainty`."""

    def begin(self, target_hz: float, previous: Hearing | None = None) -> Hearing:
        """previous: the utterance before in the same conversation, whose rate accounts are carried on."""

    def hear(self, hearings: Sequence[Hearing], pieces: Sequence[Pcm]) -> list[Tensor]:
        """What `hear` of each gives."""


def group_ms(hearing: Hearing) -> tuple[int, ...]:
    """How long each group lasts."""
    return tuple(round(1000 * frames / ENCODER_RATE_HZ) for frames in hearing.group_frames)


def realised_hz(hearing: Hearing) -> float:
    """Groups per second of encoded audio, 0 before the first frame."""
    return ENCODER_RATE_HZ * hearing.groups / hearing.frames if hearing.frames else 0.0
