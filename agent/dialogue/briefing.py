"""What the worker is told: utterances with what came before them, and questions. It keeps caches only, so everything it
must know is sent again when another takes its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.config import RateRange, SessionConfig
from agent.dialogue.captions import Captions
from agent.dialogue.conversation import (
    AssistantMessage,
    Conversation,
    FunctionCallOutput,
    Item,
    SystemMessage,
    UserMessage,
    context_of,
)
from agent.dialogue.effects import Outbox
from agent.dialogue.level import amplified, gain_for, peak_of
from agent.dialogue.listening import Listening, Utterance
from agent.dialogue.rates import RatePolicy, Side
from agent.dialogue.response import Response, ResponsePlan
from agent.dialogue.speaking import WorkerSlot
from agent.dialogue.tool_use import tool_use
from agent.protocol.client_events import ResponseParams
from agent.protocol.session_object import SessionSettings
from agent.wire import ContextItem, DropUtterance, Respond, StartUtterance


class Briefing:
    """`settings` gives the session's settings as they are now.

    `config.opening` is what the model is told when it is to speak and nobody has said anything since it last spoke: in
    an empty conversation, after a silence that the client wants filled, where it committed one by mistake, and where
    it asks for two answers to one question. A model that follows instructions follows those instead, if there are any.
    """

    def __init__(
        self,
        outbox: Outbox,
        conversation: Conversation,
        listening: Listening,
        captions: Captions,
        settings: Callable[[], SessionSettings],
        config: SessionConfig,
    ) -> None:
        self.policy = RatePolicy(configured=_configured(config))
        self._outbox = outbox
        self._conversation = conversation
        self._listening = listening
        self._captions = captions
        self._settings = settings
        self._max_output_tokens = config.max_output_tokens
        self._opening = config.opening
        self._slot: WorkerSlot | None = None
        self._held: set[int] = set()

    def worker_ready(self, slot: WorkerSlot) -> None:
        """It holds nothing: the open utterance, and those whose transcript is still to come, go to it again."""
        self._slot = slot
        self.policy.limits(slot.ready.min_rate_hz, slot.ready.max_rate_hz)
        self._listening.worker_session = slot.session
        self._listening.worker_judges = slot.ready.judges_ends
        if self._listening.open is not None:
            self.start_utterance(self._listening.open)
            self._listening.replay()
        for item in self._captions.unfinished():
            self.hand_over(item)

    def worker_lost(self) -> None:
        self._slot = None
        self._held.clear()
        self._listening.worker_session = None

    def start_utterance(self, utterance: Utterance) -> None:
        """The user began to speak, after everything the conversation holds, or goes on with the turn before."""
        self._start(utterance.number, context_of(self._items_before(utterance)))

    def foretold(self, plan: ResponsePlan, utterance: Utterance, generation: int, slot: WorkerSlot) -> Respond:
        """What `question` will be if the open utterance ends here and nothing else happens."""
        item = UserMessage(
            utterance.item_id, spoken=True, utterance=utterance.number, transcript=utterance.transcript or None
        )
        return self._respond(plan, context_of([*self._items_before(utterance), item]), generation, slot)

    def drop_utterance(self, number: int | None) -> None:
        if self._slot is not None and number in self._held:
            self._held.discard(number)
            self._outbox.worker(DropUtterance(self._slot.session, number))

    def question(self, response: Response, slot: WorkerSlot) -> Respond:
        """The request for an answer; sees to it that the sound to be answered is with the worker."""
        plan = response.plan
        items = _with_what_to_answer_last(plan.items if plan.items is not None else self._conversation.items)
        last = items[-1] if items else None
        if isinstance(last, UserMessage) and not plan.say:
            self._hand_over(last, context_of(self._but_for(last, items[:-1])))
        context = context_of(items)
        if not _is_to_answer(last) and not plan.say:
            instructed = slot.ready.abilities.instructable and any((plan.instructions, *_told(context)))
            context.append(ContextItem("user", "" if instructed else self._opening))
        response.item.given = bool(plan.say)
        by_mistake = isinstance(last, UserMessage) and last.by_mistake
        is_small = not slot.ready.abilities.instructable
        response.item.aside = by_mistake or (is_small and self._is_aside(last, plan, context))
        response.utterance = context[-1].utterance if context else None
        return self._respond(plan, context, response.generation, slot)

    @staticmethod
    def _is_aside(last: Item | None, plan: ResponsePlan, context: list[ContextItem]) -> bool:
        """Of a small model's memory it would cost what was ordered."""
        asks_back = not _is_to_answer(last) and any(item.role == "assistant" for item in context)
        return asks_back or bool(plan.say) or isinstance(last, FunctionCallOutput)

    def _but_for(self, item: UserMessage, items: list[Item]) -> list[Item]:
        """The items without those that it goes on with."""
        return [earlier for earlier in items if earlier.id not in item.continues]

    def _respond(self, plan: ResponsePlan, context: list[ContextItem], generation: int, slot: WorkerSlot) -> Respond:
        limit = plan.max_output_tokens
        return Respond(
            session=slot.session,
            generation=generation,
            context=context,
            output_hz=plan.output_rate.hz,
            instructions=plan.instructions,
            speech=plan.modality == "audio",
            max_output_tokens=self._max_output_tokens if limit == "inf" else limit,
            input_hz=plan.input_rate.hz,
            tools=plan.tools,
            say=plan.say,
        )

    def hand_over(self, item: UserMessage) -> None:
        """Sees to it that the worker has, or gets, the sound of an item of the conversation."""
        self._hand_over(item, context_of(self._but_for(item, self._before(item))))

    def _hand_over(self, item: UserMessage, context: list[ContextItem]) -> None:
        """The sound of a committed item, if it is still kept and the worker does not have it."""
        if self._slot is None or item.silent or item.pcm is None or item.utterance in self._held:
            return
        if item.utterance is None:
            item.utterance = self._listening.next_number()
            # Of an item that came with a response alone the client was told nothing, and is told no words.
            told = self._conversation.find(item.id) is item and item.transcript is None
            wanted = told and self._settings().audio.input.transcription is not None
            self._captions.committed(item, wanted=wanted, begun=self._conversation.beginning_of(item))
        self._start(item.utterance, context)
        sound = self._conversation.sound_of(item)
        heard = amplified(sound, gain_for(peak_of(sound)))
        self._listening.send_utterance(item.utterance, heard.tobytes(), ended=True)

    def _start(self, number: int, context: list[ContextItem]) -> None:
        if self._slot is None:
            return
        self._held.add(number)
        settings = self._settings()
        self._outbox.worker(
            StartUtterance(
                session=self._slot.session,
                utterance=number,
                input_hz=self.policy.choose("input", settings.x_agogic.input_frame_rate).hz,
                context=context,
                instructions=settings.instructions,
                followed="input_transcript" in settings.x_agogic.events,
                output_hz=self.policy.expect("output", settings.x_agogic.output_frame_rate).hz,
                tools=tool_use(ResponseParams(), settings),
            )
        )

    def _items_before(self, utterance: Utterance) -> list[Item]:
        continued = self._conversation.find(utterance.continues) if utterance.continues is not None else None
        if not isinstance(continued, UserMessage):
            return self._conversation.items
        return self._before(next(iter(self._conversation.beginning_of(continued)), continued))

    def _before(self, item: Item) -> list[Item]:
        items = self._conversation.items
        return items[: items.index(item)] if item in items else []


def _is_to_answer(item: Item | None) -> bool:
    """Whether it is something that the agent can answer, and not silence or an answer of its own."""
    if isinstance(item, UserMessage):
        return not item.silent and (item.utterance is not None or bool(item.words))
    return isinstance(item, FunctionCallOutput)


def _with_what_to_answer_last(items: list[Item]) -> list[Item]:
    """The items with the newest turn of the user's, or result of a function, behind what the client wrote after it."""
    for index in range(len(items) - 1, -1, -1):
        item = items[index]
        if isinstance(item, UserMessage | FunctionCallOutput):
            return [*items[:index], *items[index + 1 :], item]
        passed_over = isinstance(item, SystemMessage) or (isinstance(item, AssistantMessage) and item.answers_nothing)
        if not passed_over:
            break
    return items


def _told(context: list[ContextItem]) -> list[str]:
    return [item.text for item in context if item.role == "system"]


def _configured(config: SessionConfig) -> Mapping[Side, RateRange]:
    sides: dict[Side, object] = {"input": config.input_frame_rate, "output": config.output_frame_rate}
    return {side: rate for side, rate in sides.items() if isinstance(rate, RateRange)}
