"""What the engine needs of a model: something that listens to one utterance and something that speaks one answer.

Both do their work in units that take a few milliseconds, so that the engine can interleave sessions and drop cancelled
work between two units. `worker/pipeline.py` builds them from the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.wire import NO_TOOLS, Abilities, ContextItem, ResponseStats, TokenSpan, ToolUse, WordSpan

Pcm = NDArray[np.float32]


class RequestError(Exception):
    """A request this model cannot serve. `code` is for programs, the message says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SpoiltError(Exception):
    """What the model keeps for a session is no use any more: numbers that are none, or no memory for it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What stands before the turn at hand, and the functions that may be called."""

    instructions: str
    items: tuple[ContextItem, ...]
    tools: ToolUse = NO_TOOLS


@dataclass(frozen=True, slots=True)
class Encoded:
    """What one utterance became. frames counts encoder frames, groups what the merger made of them, group_ms how long
    each group lasts."""

    samples: int
    frames: int
    groups: int
    realised_hz: float
    encode_ms: float
    group_ms: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TextPiece:
    text: str


@dataclass(frozen=True, slots=True)
class Sound:
    """The next stretch of the answer. tokens end in it, words begin in it (in samples of the whole answer)."""

    pcm: Pcm
    tokens: tuple[TokenSpan, ...]
    words: tuple[WordSpan, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Literal["completed", "max_output_tokens"]


@dataclass(frozen=True, slots=True)
class Called:
    """A function that the answer calls; arguments: a JSON object as text."""

    name: str
    arguments: str


Spoken = TextPiece | Sound | Called | Finished
Unit = Literal["beginning", "token", "sound", "end"]
"""An answer's beginning, a step of talking, a stretch of sound, or an answer's end."""


class Listener(Protocol):
    """One utterance of the user, encoded and prefilled as it arrives."""

    @property
    def transcript(self) -> str: ...

    @property
    def transcribes(self) -> bool:
        """Whether `transcript` follows what is heard; where not, the model can be asked (`transcription_of`)."""

    @property
    def opened(self) -> bool:
        """Whether what stands before its sound is with the model; what needs that opens it by itself."""

    def feed(self, pcm: Pcm) -> None:
        """Takes the next [samples] of 16 kHz audio in [-1, 1]."""

    @property
    def certainty(self) -> float | None:
        """How finished what is `prepare`d sounds: the share of pauses inside turns that sound less so; None where that
        is not known."""

    @property
    def backchannel(self) -> float | None:
        """How little somebody who says what is `prepare`d wants the word: the share of short interruptions that sound
        more so; None where that is not known."""

    def prepare(self) -> None:
        """The utterance may end here: makes ready what its end needs, and it can be answered. More audio takes that
        back, once the answer is closed."""

    def finish(self) -> Encoded:
        """No more audio: closes the open block and group. To be called once."""

    def close(self) -> None:
        """Nobody will ask about this utterance any more."""


class Speaker(Protocol):
    """One answer being made."""

    def step(self) -> list[Spoken]:
        """One unit of work. `Finished` comes last; nothing may be asked afterwards."""

    @property
    def unit(self) -> Unit:
        """What `step` does next."""

    @property
    def talks(self) -> bool:
        """Whether there are steps of talking left, which may be taken before the sound that could be made."""

    @property
    def unit_samples(self) -> int:
        """How much sound the next unit makes, about; 0 where it makes none."""

    @property
    def cuts(self) -> tuple[int, ...]:
        """Fewer samples that the next unit could make instead, the fewest first; () where it is not to be cut."""

    def cut(self, samples: int) -> None:
        """The next unit is to make so many, one of the `cuts`."""

    @property
    def made_samples(self) -> int:
        """How long its tokens so far will sound, rendered or not."""

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        """hurried: its listener is about to run dry, so sound should come of what there is; alone: nobody else has to
        wait for a long unit; next_in_s: after its first sound the next may take so long, and should not be missed."""

    @property
    def text(self) -> str: ...

    def stats(self) -> ResponseStats:
        """Times and counts so far, `first_token_ms` since the speaker was made; the engine adds the rest."""

    def close(self) -> None:
        """The answer is not wanted any more; harmless after `Finished`."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to answer and how. `heard` holds the session's finished utterances by number; transcribe: write down what
    was said instead of answering it; session and generation name the answer, and what is drawn by lot in it hangs on
    nothing else; say: the answer is this text."""

    conversation: Conversation
    heard: dict[int, Listener]
    input_hz: float
    output_hz: float
    speech: bool
    max_output_tokens: int
    transcribe: bool = False
    session: int = 0
    generation: int = 0
    say: str = ""


def transcription_of(
    listener: Listener, max_output_tokens: int, input_hz: float = 12.5, output_hz: float = 12.5
) -> Question:
    """Asks for what the finished utterance says, whatever came before it."""
    said = Conversation("", (ContextItem("user", "", 0),))
    return Question(said, {0: listener}, input_hz, output_hz, False, max_output_tokens, transcribe=True)


class SpeechModel(Protocol):
    """A loaded model. `listen` and `respond` raise RequestError for what they cannot do, and do no work of networks.

    `open`, `feed`, `prepare` and `step` do it, for several callers at once: what each would have given alone, for
    less. Where one of them raises, none of the callers has taken a step, and each may be tried alone.
    """

    @property
    def name(self) -> str: ...

    @property
    def output_sample_rate(self) -> int: ...

    @property
    def codec_frame_rate_hz(self) -> float: ...

    @property
    def judges_ends(self) -> bool:
        """Whether listeners know how finished an utterance sounds."""

    @property
    def abilities(self) -> Abilities:
        """What it does with instructions and functions."""

    def listen(
        self, conversation: Conversation, input_hz: float, output_hz: float, previous: Listener | None = None
    ) -> Listener:
        """output_hz: the rate that the answer will probably have; previous: the caller's utterance before."""

    def respond(self, question: Question) -> Speaker: ...

    def open(self, listeners: Sequence[Listener]) -> None:
        """What stands before their sound."""

    def feed(self, listeners: Sequence[Listener], pieces: Sequence[Pcm]) -> None:
        """Their next sound."""

    def prepare(self, listeners: Sequence[Listener]) -> None:
        """`Listener.prepare` of each."""

    def step(self, speakers: Sequence[Speaker], unit: Unit) -> list[list[Spoken]]:
        """One unit of each, which all of them are ready for, but not "end"."""

    def repetition(self, sentence: str) -> str:
        """The written request that makes the model say just this sentence."""


UNIT_SAMPLES, FOLLOWED_SAMPLES = 40_960, 10_240
"""Audio that nobody waits for is listened to in units of 2.56 s at 16 kHz, because short ones cost up to three times as
much; of 640 ms where somebody follows the transcript."""
MOST_SAMPLES = UNIT_SAMPLES
"""The most audio that one unit takes in of all callers together: others wait for a unit to end."""
