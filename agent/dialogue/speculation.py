"""An answer that is begun before it is certain that anybody asked for it.

nothing ──begin──► asked (what comes is kept here) ──taken over──► the answer, as if it had been asked for just now
                      │
                      └──────roll back, or something else is asked──────► it never was; what it cost is remembered

Nothing of it is visible to the client or in the conversation before it is taken over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.clock import Clock
from agent.dialogue.effects import Outbox
from agent.dialogue.response import ResponsePlan, SpeculationReport
from agent.wire import AudioOut, Cancel, Respond, ResponseDone, ResponseStats, TextDelta, ToolCall

Given = TextDelta | AudioOut | ToolCall | ResponseDone


@dataclass
class Begun:
    """`asked` is what the worker was told, `given` what has come of it, the first sound of that at `first_audio_s`."""

    plan: ResponsePlan
    asked: Respond
    asked_s: float
    given: list[Given] = field(default_factory=list)
    first_audio_s: float | None = None

    def answers(self, question: Respond) -> bool:
        """Whether it is what was foretold; the transcript of what is heard as sound tells the worker nothing."""
        mine, theirs = self.asked, question
        if mine.context[-1].utterance is None or mine.context[-1].utterance != theirs.context[-1].utterance:
            return False
        return mine.context[:-1] == theirs.context[:-1] and _but_for_context(mine) == _but_for_context(theirs)


class Speculation:
    """At most one at a time."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self.begun: Begun | None = None
        self._outbox = outbox
        self._clock = clock
        self._wasted_ms = 0.0
        self._dropped: set[int] = set()

    @property
    def plan(self) -> ResponsePlan | None:
        """What is begun was planned so."""
        return self.begun.plan if self.begun is not None else None

    def held_bytes(self) -> int:
        given = self.begun.given if self.begun is not None else []
        return sum(len(message.pcm) for message in given if isinstance(message, AudioOut))

    def begin(self, plan: ResponsePlan, asked: Respond) -> None:
        self.roll_back()
        self.begun = Begun(plan, asked, self._clock.now_s())
        self._outbox.worker(asked)

    def take(self, message: Given) -> bool:
        """False if the message belongs to another answer."""
        if message.generation in self._dropped:
            if isinstance(message, ResponseDone):
                self._dropped.discard(message.generation)
                self._wasted_ms += work_ms(message.stats)
            return True
        begun = self.begun
        if begun is None or message.generation != begun.asked.generation:
            return False
        if isinstance(message, ResponseDone) and message.reason in ("failed", "cancelled"):
            self.begun = None
            return True
        if isinstance(message, AudioOut) and begun.first_audio_s is None:
            begun.first_audio_s = self._clock.now_s()
        begun.given.append(message)
        return True

    def take_over(self, question: Respond) -> Begun | None:
        """What was begun, if that is what is asked now; otherwise it is given up, as the worker does by itself."""
        begun, self.begun = self.begun, None
        if begun is not None and not begun.answers(question):
            self._drop(begun)
            return None
        return begun

    def report(self, begun: Begun | None) -> SpeculationReport:
        """What it saved of the time that somebody would have waited for now, and what was given up since the last
        answer."""
        wasted_ms, self._wasted_ms = self._wasted_ms, 0.0
        if begun is None:
            return SpeculationReport(0.0, wasted_ms)
        now_s = self._clock.now_s()
        until_s = now_s if begun.first_audio_s is None else min(now_s, begun.first_audio_s)
        return SpeculationReport((until_s - begun.asked_s) * 1000, wasted_ms)

    def roll_back(self) -> None:
        """The user goes on, or something changed: it never was."""
        begun, self.begun = self.begun, None
        if begun is not None:
            self._outbox.worker(Cancel(begun.asked.session, begun.asked.generation))
            self._drop(begun)

    def worker_lost(self) -> None:
        self.begun = None
        self._dropped.clear()

    def _drop(self, begun: Begun) -> None:
        done = next((message for message in begun.given if isinstance(message, ResponseDone)), None)
        if done is not None:
            self._wasted_ms += work_ms(done.stats)
        else:
            self._dropped.add(begun.asked.generation)


def work_ms(stats: ResponseStats) -> float:
    """The work of an answer, without listening."""
    return stats.thinker_ms + stats.talker_ms + stats.flow_ms + stats.vocoder_ms


def _but_for_context(message: Respond) -> tuple[object, ...]:
    return (
        message.session,
        message.output_hz,
        message.instructions,
        message.speech,
        message.max_output_tokens,
        message.input_hz,
        message.tools,
        message.say,
    )
