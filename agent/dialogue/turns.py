"""How the user's speech becomes turns of the conversation, and turns become questions.

A pause longer than the detector's silence ends a turn although the user was not done. Where he goes on before anybody
could have reacted to the answer, the turn goes on too: the answer in preparation is withdrawn, and what he says is
heard together with what he had said, as one utterance, one item and one question.

From where the turn has probably ended, an answer is begun that nobody hears of before that is certain: it becomes the
answer then, or never was.

    U1 ended ─► answer asked ─(speech, at most REACTION_MS of it heard)─► U1 + U2 open ─(silence)─► U2 added

The model hears and is told one turn, U1 and U2. A client that understands it (`x_agogic.joined_turns`) has one item
too: U1 and what was shown of the answer are deleted, and U2 holds all of it. For all others U1 stays what it is and U2
holds the rest.

A turn that nobody hears the end of, because sound has stopped coming (a microphone switched off, a line on hold), ends
with the last of it.

A voice over the agent's may be no turn at all: `agent.dialogue.overlap`.

Where nobody speaks after an answer, and the client wants it, the agent speaks again by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from agent.clock import Clock
from agent.dialogue.briefing import Briefing
from agent.dialogue.captions import Captions, rest_of
from agent.dialogue.conversation import AssistantMessage, Conversation, Item, UserMessage
from agent.dialogue.effects import Outbox
from agent.dialogue.listening import (
    EndDoubted,
    EndLikely,
    Happening,
    Listening,
    TurnEnded,
    TurnOpened,
    Utterance,
    milliseconds,
)
from agent.dialogue.overlap import Overlap
from agent.dialogue.response import ResponsePlan
from agent.dialogue.speaking import Speaking
from agent.protocol import server_events as events
from agent.protocol.session_object import SessionSettings, idle_timeout_ms
from agent.turn.barge_in import Verdict
from agent.turn.silero import SAMPLE_RATE_HZ

# Speech that starts within this much of the answer is no reaction to it: people need 200 ms to hear that they are
# spoken to and as long to begin, and the detector has taken 64 ms when it says so.
REACTION_MS = 400
# The agent does not talk to an empty room for ever.
MAX_PROMPTS = 3
# Longer than a network that lost its way stays silent, as a rule. Looked at twice, because a service that stood still
# itself finds the sound of that time later than its timer.
MISSING_S = 1.5
MISSING_STILL_S = 0.5


class Turns:
    """`plan` makes a response of the session's settings as they are now."""

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        conversation: Conversation,
        captions: Captions,
        listening: Listening,
        briefing: Briefing,
        speaking: Speaking,
        settings: Callable[[], SessionSettings],
        plan: Callable[[], ResponsePlan],
    ) -> None:
        self.changed_s = clock.now_s()
        self._outbox = outbox
        self._clock = clock
        self._conversation = conversation
        self._captions = captions
        self._listening = listening
        self._briefing = briefing
        self._speaking = speaking
        self._settings = settings
        self._plan = plan
        self._overlap = Overlap(clock, listening, speaking, settings)
        self._prompts = 0
        self._armed_s = clock.now_s()
        self._sound_s = clock.now_s()
        self._missed_s: float | None = None

    def sound_came(self) -> None:
        self._sound_s, self._missed_s = self._clock.now_s(), None

    def take(self, happening: Happening) -> None:
        self.changed_s = self._clock.now_s()
        if isinstance(happening, TurnOpened):
            self._opened(happening.utterance)
        elif isinstance(happening, EndLikely):
            self._speculate(happening.utterance)
        elif isinstance(happening, EndDoubted):
            self._speaking.speculation.roll_back()
        elif isinstance(happening, TurnEnded):
            self._ended(happening)
        else:
            self._briefing.drop_utterance(happening.utterance.number)

    # --- the user's turns ---

    def _opened(self, utterance: Utterance) -> None:
        self._prompts = 0
        if utterance.detected and (self._going_on() is not None or not self._overlap.begin(utterance)):
            self._speech_started(utterance)
        self._briefing.start_utterance(utterance)

    def weigh(self) -> None:
        """To be called when more is known of the open utterance, or whether one begins."""
        utterance = self._listening.open
        if utterance is None:
            self._overlap.stir(self._listening.stirs)
        elif not utterance.told and self._overlap.weigh(utterance) is Verdict.STOP:
            self._interrupted(utterance)

    def _interrupted(self, utterance: Utterance) -> None:
        """What was in doubt is a turn."""
        utterance.told = True
        self._speech_started(utterance)
        self._speaking.cancel("turn_detected")
        self._show_transcript(utterance)

    def understood(self, utterance: Utterance) -> None:
        """Of the open utterance its transcript so far."""
        self._show_transcript(utterance)
        self.weigh()

    def _show_transcript(self, utterance: Utterance) -> None:
        if utterance.told and utterance.transcript and "input_transcript" in self._settings().x_agogic.events:
            own = self.own_words(utterance, utterance.transcript)
            self._outbox.send(events.InputTranscript(item_id=utterance.item_id, transcript=own))

    def cleared(self, utterance: Utterance) -> None:
        """The client cleared what it had said of the open utterance, or could not know of."""
        self._speaking.speculation.roll_back()
        self._briefing.drop_utterance(utterance.number)
        if not utterance.told:
            self._overlap.over()

    def _speculate(self, utterance: Utterance) -> None:
        detection = self._settings().audio.input.turn_detection
        if detection is None or not detection.create_response or utterance.lost or not utterance.told:
            return
        if not self._speaking.idle or self._speaking.speculation.begun is not None:
            return
        plan = self._plan()
        self._speaking.begin_speculation(plan, partial(self._briefing.foretold, plan, utterance))

    def _speech_started(self, utterance: Utterance) -> None:
        started = events.SpeechStarted(item_id=utterance.item_id, audio_start_ms=milliseconds(utterance.start))
        going_on = self._going_on()
        if going_on is not None and self._listening.resume(going_on.id, self._conversation.sound_of(going_on)):
            assert self._speaking.active is not None
            self._speaking.active.item.withdrawn = True
            started = events.SpeechStarted(
                item_id=started.item_id, audio_start_ms=started.audio_start_ms, x_agogic={"continues": going_on.id}
            )
        self._outbox.send(started)
        detection = self._settings().audio.input.turn_detection
        if detection is not None and detection.interrupt_response:
            self._speaking.cancel("turn_detected")

    def _going_on(self) -> UserMessage | None:
        """The turn being answered, if nobody can have reacted to the answer yet and nothing came in between."""
        detection = self._settings().audio.input.turn_detection
        answer = self._speaking.active
        if detection is None or not detection.interrupt_response or answer is None or answer.plan.answers is None:
            return None
        if answer.overlapped or (
            answer.item.opened and (answer.plan.modality == "text" or self._speaking.heard_ms(answer) > REACTION_MS)
        ):
            return None
        item = self._conversation.find(answer.plan.answers)
        if not isinstance(item, UserMessage) or any(
            later is not answer.item for later in self._conversation.after(item)
        ):
            return None
        whole = all(part.pcm is not None for part in (*self._conversation.beginning_of(item), item))
        return item if whole else None

    def _ended(self, turn: TurnEnded) -> None:
        utterance = turn.utterance
        if not utterance.told:
            if not self._overlap.was_turn(turn):
                self._briefing.drop_utterance(utterance.number)
                return
            self._interrupted(utterance)
        if utterance.detected:
            self._outbox.send(events.SpeechStopped(item_id=utterance.item_id, audio_end_ms=milliseconds(turn.end)))
        item = UserMessage(utterance.item_id, spoken=True, utterance=utterance.number, pcm=turn.pcm)
        begun = self._conversation.find(utterance.continues) if utterance.continues is not None else None
        if isinstance(begun, UserMessage):
            if self._settings().x_agogic.joined_turns:
                item.parts = self._absorbed(begun)
            else:
                item.pcm = turn.pcm[utterance.continued :]
                item.continues = (*begun.continues, begun.id)
        if not utterance.spoken:
            self._committed_silence(item)
            return
        self._commit(item)
        source = self._settings().audio.input
        begun_items = self._conversation.beginning_of(item)
        wanted = source.transcription is not None
        self._captions.committed(item, wanted=wanted, begun=begun_items)
        for event in self._captions.heard(utterance.number, utterance.transcript, final=False):
            self._outbox.send(event)
        if utterance.lost:
            self._briefing.hand_over(item)
        if turn.by_client:
            self._speaking.speculation.roll_back()
        elif source.turn_detection is not None and source.turn_detection.create_response:
            plan = self._speaking.speculation.plan or self._plan()
            self._speaking.request_turn(replace(plan, turn_detection_ms=turn.waited_ms, answers=item.id))

    def _committed_silence(self, item: UserMessage) -> None:
        """The client says that its user spoke, and nobody did: whoever asks for an answer is asked back."""
        self._briefing.drop_utterance(item.utterance)
        self._commit(replace(item, utterance=None, silent=True, by_mistake=True, transcript=""))
        self._tell_silence(item)

    def _tell_silence(self, item: UserMessage) -> None:
        if self._settings().audio.input.transcription is not None and item.pcm is not None:
            usage: dict[str, object] = {"type": "duration", "seconds": milliseconds(item.pcm.size) / 1000}
            self._outbox.send(events.TranscriptionCompleted(item_id=item.id, transcript="", usage=usage))

    def _absorbed(self, earlier: UserMessage) -> tuple[str, ...]:
        """Takes out the item that the turn being committed began with, and what was shown of the answer to that; the
        ids that the new one stands for."""
        self._captions.drop(earlier)
        self._briefing.drop_utterance(earlier.utterance)
        orphans = [later for later in self._conversation.after(earlier) if _is_withdrawn(later)]
        for item in (earlier, *orphans):
            self._conversation.remove(item)
            self._outbox.send(events.ItemDeleted(item_id=item.id))
        return (*earlier.parts, earlier.id)

    def own_words(self, utterance: Utterance, text: str) -> str:
        """Of the transcript of an open utterance what will be its item's."""
        begun = self._conversation.find(utterance.continues) if utterance.continues is not None else None
        if not isinstance(begun, UserMessage) or self._settings().x_agogic.joined_turns:
            return text
        return rest_of(text, [item.words for item in (*self._conversation.beginning_of(begun), begun)])

    def _commit(self, item: UserMessage) -> None:
        previous = self._conversation.add(item)
        self._outbox.send(events.InputCommitted(item_id=item.id, previous_item_id=previous))
        self._outbox.send(events.ItemAdded(item=item.as_dict(), previous_item_id=previous))
        self._outbox.send(events.ItemDone(item=item.as_dict(), previous_item_id=previous))

    # --- silence ---

    def next_deadline_s(self) -> float | None:
        """When `on_tick` has something to do, if nothing happens."""
        due_s = (self._cut_off_at_s(), self._prompt_at_s())
        return min((due for due in due_s if due is not None), default=None)

    def _cut_off_at_s(self) -> float | None:
        """When a turn of which no more sound comes is over, or is looked at again."""
        if not self._listening.awaits_silence or self._listening.has_pending:
            return None
        return self._sound_s + MISSING_S if self._missed_s is None else self._missed_s + MISSING_STILL_S

    def _cut_off(self) -> None:
        now_s = self._clock.now_s()
        if self._missed_s is None:
            self._missed_s = now_s
            return
        self.take(replace(self._listening.cut_off(), waited_ms=(now_s - self._sound_s) * 1000))

    def _prompt_at_s(self) -> float | None:
        """When the silence will have lasted long enough for the agent to speak again.

        It begins at the latest of three: the end of an answer, the user's last speech, and the moment it was asked for.
        """
        timeout_ms = idle_timeout_ms(self._settings().audio.input.turn_detection)
        quiet_since_s = self._speaking.quiet_since_s
        if timeout_ms is None or quiet_since_s is None or self._prompts >= MAX_PROMPTS:
            return None
        if not self._speaking.idle or self._listening.open is not None:
            return None
        return max(quiet_since_s, self.changed_s, self._armed_s) + timeout_ms / 1000

    def listener_returned(self) -> None:
        """He may be given time before the agent speaks by itself."""
        self._armed_s = self._clock.now_s()

    def configured(self, before: SessionSettings) -> None:
        """The settings are others than `before`: a patience that was set just now begins now, and a voice in doubt is
        what it was without them."""
        utterance = self._listening.open
        now = self._settings().audio.input.turn_detection
        if utterance is not None and not utterance.told and now != before.audio.input.turn_detection:
            self._interrupted(utterance)
        if idle_timeout_ms(before.audio.input.turn_detection) != idle_timeout_ms(
            self._settings().audio.input.turn_detection
        ):
            self._armed_s = self._clock.now_s()

    def on_tick(self) -> None:
        cut_off_s = self._cut_off_at_s()
        if cut_off_s is not None and self._clock.now_s() >= cut_off_s:
            self._cut_off()
        due_s = self._prompt_at_s()
        timeout_ms = idle_timeout_ms(self._settings().audio.input.turn_detection)
        if due_s is None or timeout_ms is None or self._clock.now_s() < due_s:
            return
        silence = self._listening.take_silence(timeout_ms * SAMPLE_RATE_HZ // 1000)
        start_ms, end_ms = milliseconds(silence.start), milliseconds(silence.end)
        self._outbox.send(
            events.TimeoutTriggered(item_id=silence.item_id, audio_start_ms=start_ms, audio_end_ms=end_ms)
        )
        item = UserMessage(silence.item_id, spoken=True, silent=True, pcm=silence.pcm, transcript="")
        self._commit(item)
        self._tell_silence(item)
        self._prompts += 1
        self._speaking.request_turn(self._plan())


def _is_withdrawn(item: Item) -> bool:
    return isinstance(item, AssistantMessage) and item.withdrawn
