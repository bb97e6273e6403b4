"""One stretch of the user's speech on its way through an ear into the caches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.networks.prompts import Prompt
from worker.ears.ear import Hearing, group_ms, realised_hz
from worker.parts import Encoded, Pcm

if TYPE_CHECKING:
    from worker.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class ListenerMark:
    """parts: how many pieces of embeddings there are; before_end, prefilled: marks of the prompt."""

    parts: int
    before_end: tuple[int, tuple[int, int]] | None
    encode_ms: float
    prefilled: tuple[int, int]


class PipelineListener:
    """One stretch of the user's speech: a `Listener`."""

    def __init__(
        self, pipeline: Pipeline, prompt: Prompt, input_hz: float, output_hz: float, previous: PipelineListener | None
    ) -> None:
        self._pipeline = pipeline
        self._embeddings: list[Tensor] = []
        self._before_end: tuple[int, tuple[int, int]] | None = None
        self.hearing: Hearing = pipeline.networks.ear.begin(input_hz, previous.hearing if previous else None)
        self.encode_ms = 0.0
        self.prompt = prompt
        self.opened = False
        self.prefill = pipeline.new_prefill(output_hz)
        self.prefill.reserve()

    @property
    def transcript(self) -> str:
        return self.hearing.transcript

    @property
    def transcribes(self) -> bool:
        return self.hearing.transcribes

    @property
    def certainty(self) -> float | None:
        return self.hearing.certainty

    @property
    def backchannel(self) -> float | None:
        return self.hearing.backchannel

    @property
    def groups(self) -> int:
        """Those at hand, with what is prepared."""
        return sum(map(len, self._embeddings))

    @property
    def embeddings(self) -> Tensor:
        return torch.cat(self._embeddings)

    def feed(self, pcm: Pcm) -> None:
        self._pipeline.feed([self], [pcm])

    @property
    def prepared(self) -> bool:
        return self._before_end is not None

    def prepare(self) -> None:
        self._pipeline.prepare([self])

    def close_on_trial(self) -> Tensor:
        """The embeddings [G, H] that were still open, if the utterance ends here."""
        started = time.perf_counter()
        tail = self.hearing.prepare()
        self._before_end = (len(self._embeddings), self.prefill.mark())
        self.take(tail, (time.perf_counter() - started) * 1e3)
        return tail

    def finish(self) -> Encoded:
        self.prepare()
        self.hearing.finish()
        self.prefill.complete()
        hearing = self.hearing
        realised = realised_hz(hearing)
        lengths = group_ms(hearing)
        return Encoded(hearing.samples, hearing.frames, hearing.groups, realised, self.encode_ms, lengths)

    def close(self) -> None:
        self.prefill.close()

    def mark(self) -> ListenerMark:
        """Where it stands, besides what its ear heard."""
        return ListenerMark(len(self._embeddings), self._before_end, self.encode_ms, self.prefill.mark())

    def back_to(self, mark: ListenerMark) -> None:
        del self._embeddings[mark.parts :]
        self._before_end, self.encode_ms = mark.before_end, mark.encode_ms
        self.prefill.back_to(mark.prefilled)

    def go_on(self) -> None:
        """The end that was prepared for is not the end."""
        if self._before_end is not None:
            parts, mark = self._before_end
            del self._embeddings[parts:]
            self.prefill.back_to(mark)
            self.prefill.busy = True  # an answer to what was prepared may have laid it down
            self._before_end = None

    def take(self, embeddings: Tensor, encode_ms: float) -> None:
        """Keeps merged embeddings [G, H], which took so long to make."""
        self.encode_ms += encode_ms
        if len(embeddings):
            self._embeddings.append(embeddings)
