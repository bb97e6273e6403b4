"""A voice over the agent's: held in doubt until `agent.turn.barge_in` knows whether it wants the word.

    one loud window ─► the answer flinches ─► silence: it goes on
    voice ─► the answer is ducked, nobody is told ─┬─ STOP ──► `speech_started`, the answer is cancelled: a turn
                                                   └─ GO_ON ─► the answer goes on; voice again: in doubt again
    silence: what never wanted the word is no turn. Close to the answer's end any word is one: an early reply.

Stock clients stop playing as soon as `speech_started` comes, so it comes when it is true.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.clock import Clock
from agent.dialogue.listening import Listening, TurnEnded, Utterance, milliseconds
from agent.dialogue.response import Response
from agent.dialogue.speaking import Speaking
from agent.protocol.session_object import SessionSettings
from agent.turn.barge_in import UNJUDGED_MS, Evidence, Verdict, weigh

# Who begins when so little of the answer is left replies to it.
REPLY_MS = 700
_SAID_CHARACTERS = 200


class Overlap:
    """At most one at a time: that of the open utterance, as long as it is not `told`."""

    def __init__(
        self, clock: Clock, listening: Listening, speaking: Speaking, settings: Callable[[], SessionSettings]
    ) -> None:
        self._clock = clock
        self._listening = listening
        self._speaking = speaking
        self._settings = settings
        self._answer = ""
        self._replies = False

    def stir(self, loud: bool) -> None:
        """No utterance is open; whether the last window of the sound may be the first of one."""
        if loud and self._interruptible is not None:
            self._speaking.duck(flinches=True)
        else:
            self._speaking.calm()

    def begin(self, utterance: Utterance) -> bool:
        """False if it is a turn from the start: the agent is not heard, or voices do not stop it."""
        answer = self._interruptible
        if answer is None:
            return False
        utterance.told = False
        self._answer = answer.id
        left_ms = answer.playout.left_ms(self._clock.now_s())
        self._replies = left_ms is not None and left_ms <= REPLY_MS
        self._speaking.duck()
        return True

    def weigh(self, utterance: Utterance) -> Verdict:
        """What is known now of the open utterance; the agent is silent or goes on accordingly."""
        if not self._is_on:
            return Verdict.STOP if self._listening.paused_samples is None else Verdict.GO_ON
        verdict = weigh(self._evidence(utterance, self._listening.paused_samples))
        if verdict is Verdict.GO_ON:
            self._speaking.let_go_on()
        elif verdict is Verdict.UNDECIDED:
            self._speaking.duck()
        return verdict

    def was_turn(self, turn: TurnEnded) -> bool:
        """Whether what has ended undecided was a turn after all; if not, the agent goes on."""
        utterance = turn.utterance
        evidence = self._evidence(utterance, max(turn.end - utterance.voiced_end, UNJUDGED_MS * 16))
        if turn.by_client or weigh(evidence) is Verdict.STOP:
            return True
        self.over()
        return False

    def over(self) -> None:
        """It was nothing."""
        if self._is_on:
            self._speaking.let_go_on()

    @property
    def _interruptible(self) -> Response | None:
        """The answer that is heard, if a voice is to stop it."""
        detection = self._settings().audio.input.turn_detection
        answer = self._speaking.active
        if detection is None or not detection.interrupt_response or answer is None:
            return None
        return answer if answer.plan.modality != "text" and answer.item.opened else None

    @property
    def _is_on(self) -> bool:
        """Whether the answer that it began over is still the one at hand."""
        return self._speaking.active is not None and self._speaking.active.id == self._answer

    def _evidence(self, utterance: Utterance, paused_samples: int | None) -> Evidence:
        answer = self._speaking.active
        return Evidence(
            voiced_ms=milliseconds(utterance.voiced_end - utterance.onset),
            in_all_ms=milliseconds(utterance.voiced_samples),
            paused_ms=milliseconds(paused_samples) if paused_samples is not None else None,
            words=utterance.transcript,
            rank=utterance.rank,
            said=answer.item.text[-_SAID_CHARACTERS:] if answer is not None else "",
            replies=self._replies,
        )
