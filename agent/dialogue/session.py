"""One conversation: client events, microphone, worker messages and time go in; effects come out. No socket, no task.

               speech (detector) or first append          silence or commit
    quiet ───────────────────────────────────► hearing ─────────────────────► answered
      ▲                                           │                              │ response.create, or by itself
      │            barge-in: speech_started first, then the response is closed   ▼
      └──────────────────────────────────────────────────────────────────── speaking ◄─► in doubt (somebody speaks)

`Listening` holds the left half (buffer, detector, utterances), `Speaking` the right half (responses, playout), `Turns`
how they meet; this class answers the client's events. Every call returns the effects it caused, in order.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Literal

from msgspec import UNSET

from agent import audio
from agent.clock import Clock
from agent.config import ServerConfig
from agent.dialogue.briefing import Briefing
from agent.dialogue.captions import Captions
from agent.dialogue.client_requests import Reading, ReadItem, plan_response, read_message
from agent.dialogue.conversation import Conversation
from agent.dialogue.effects import Effect, Outbox
from agent.dialogue.item_requests import ItemRequests
from agent.dialogue.listening import Listening
from agent.dialogue.notes import on_response, on_settings, with_text_to_say
from agent.dialogue.rates import WorkerForecast
from agent.dialogue.response import Response, ResponsePlan
from agent.dialogue.returning import Returning
from agent.dialogue.sent import SentEvents
from agent.dialogue.speaking import Speaking, Speech, WorkerSlot
from agent.dialogue.turns import Turns
from agent.echo.loop import EchoLoop
from agent.ids import Ids
from agent.json_object import JsonObject
from agent.protocol import client_events as client
from agent.protocol import server_events as events
from agent.protocol.errors import ProtocolError
from agent.protocol.formats import format_name
from agent.protocol.items import ItemReference
from agent.protocol.session_object import SessionSettings, render, size_bytes, updated
from agent.protocol.tools import FunctionTool
from agent.turn.silero import VoiceActivity
from agent.wire import (
    Abilities,
    AudioOut,
    EndJudged,
    FromWorker,
    ResponseDone,
    TextDelta,
    ToolCall,
    Transcript,
    UtteranceEncoded,
    WorkerError,
    WorkerLoad,
)

Transport = Literal["websocket", "webrtc", "telephone"]


class Session:
    """`input_hz` is the microphone's rate where the transport fixes it (WebRTC, telephones); None = the format does.

    `reports_every_s`: sound is played behind the transport, which tells by `played` how far, so often of that sound.
    `max_idle_s` in place of the configured one: a telephone line is dearer than an open page. `abilities`: what the
    model does with what clients ask for, as far as that is known before there is a place with it. `finest_hz`: no finer
    frame rate on either side, whatever the client asks for.
    """

    def __init__(
        self,
        config: ServerConfig,
        settings: SessionSettings,
        *,
        transport: Transport,
        clock: Clock,
        ids: Ids,
        vad: VoiceActivity,
        model: str,
        input_hz: int | None = None,
        reports_every_s: float | None = None,
        max_idle_s: float | None = None,
        abilities: Abilities | None = None,
        finest_hz: float | None = None,
    ) -> None:
        self.id = ids.new("sess")
        self.settings = settings
        self._config = config
        self._transport = transport
        self._max_idle_s = max_idle_s or config.session.max_idle_s
        self._model = model
        self._abilities = abilities or Abilities()
        self._ids = ids
        self._clock = clock
        self._input_hz = input_hz
        self._expires_at = clock.unix_s() + int(config.session.max_duration_s)
        self._expires_s = clock.now_s() + config.session.max_duration_s
        self._active_s = clock.now_s()
        # The first byte of a sample whose second comes with the next append.
        self._half_sample = b""
        self._left = False
        self._last_client_event_id: str | None = None
        self._sent = SentEvents()
        self._outbox = Outbox(ids, self._sent if transport != "telephone" else None)
        self._conversation = Conversation(ids.new("conv"))
        self._captions = Captions()
        self._echo = EchoLoop(clock)
        self._listening = Listening(
            self._outbox,
            ids,
            vad,
            self._echo,
            self._microphone_hz(),
            max_utterance_s=config.session.max_utterance_s,
            open_line=transport != "websocket",
        )
        self._briefing = Briefing(
            self._outbox,
            self._conversation,
            self._listening,
            self._captions,
            lambda: self.settings,
            config.session,
        )
        if finest_hz is not None:
            self._briefing.policy.cap(finest_hz)
        self._speaking = Speaking(
            self._outbox,
            clock,
            self._conversation,
            config.playout,
            self._echo,
            self._briefing.question,
            server_plays=transport != "websocket",
            reports_every_s=reports_every_s,
        )
        self._turns = Turns(
            self._outbox,
            clock,
            self._conversation,
            self._captions,
            self._listening,
            self._briefing,
            self._speaking,
            lambda: self.settings,
            lambda: self._plan(client.ResponseParams()),
        )
        self._returning = Returning(self._outbox, self._sent, self._conversation, self._speaking)
        self._items = ItemRequests(
            self._outbox, ids, self._conversation, self._captions, self._listening, self._briefing, self._speaking
        )
        self._echo.choose(settings.x_agogic.echo_cancellation, transport)
        self._listening.configure(settings.audio.input.turn_detection, self._microphone_hz())

    # --- what a shell calls ---

    def start(self, extras: JsonObject | None = None) -> list[Effect]:
        """`extras`: what the client is told under `x_agogic`."""
        self._outbox.send(events.SessionCreated(session=self._render(), x_agogic=extras or UNSET))
        return self._outbox.take()

    @property
    def worth_keeping(self) -> bool:
        """Whether a client whose connection was lost would miss anything if it began anew."""
        return bool(self._conversation.items) or self._listening.open is not None or self.answering

    def leave(self) -> list[Effect]:
        """The client is gone, perhaps for a while: no sound leaves, and no time passes that it is to blame for."""
        self._left = True
        self._speaking.hold()
        return self._outbox.take()

    def can_resume(self, after: str) -> bool:
        """Whether all that was sent after the event with this id can be sent again."""
        return self._sent.has(after)

    def resume(
        self, transport: Transport, after: str, extras: JsonObject, *, input_hz: int | None = None
    ) -> list[Effect]:
        """The client is back, by whatever way, and has received everything up to the event `after`, for which
        `can_resume` is true."""
        replayed = self._transport == transport == "websocket"
        self._left, self._transport, self._input_hz = False, transport, input_hz
        self._active_s = self._clock.now_s()
        self._half_sample = b""
        self._echo.choose(self.settings.x_agogic.echo_cancellation, self._transport)
        detection = self.settings.audio.input.turn_detection
        self._listening.configure(detection, self._microphone_hz(), open_line=transport != "websocket")
        resumed = events.SessionResumed(
            session=self._render(), last_client_event_id=self._last_client_event_id, x_agogic=extras
        )
        self._returning.go_on(resumed, after, server_plays=transport != "websocket", replayed=replayed)
        self._turns.listener_returned()
        self._speaking.on_tick()
        return self._outbox.take()

    def snapshot(self) -> bytes:
        """`session.created` for somebody who joins later."""
        return events.encode(events.SessionCreated(session=self._render()), self.new_event_id())

    def new_event_id(self) -> str:
        return self._ids.new("event")

    def read(self, data: str | bytes) -> Reading:
        """One client event, the part that takes long for long messages; any thread may do it. `take` comes next."""
        try:
            return Reading(data, read_message(data, self.settings.audio.input.format))
        except ProtocolError as error:
            return Reading(data, error)

    def take(self, reading: Reading, *, of_others: bool = False) -> list[Effect]:
        """Does what was read. Whatever is wrong with it becomes exactly one `error` event.

        `of_others`: it came by another connection than the client's.
        """
        message = reading.outcome
        try:
            if isinstance(message, ProtocolError):
                raise message
            if not isinstance(message.event, client.ItemRetrieve):
                self._items.forget_shown()
            if not isinstance(message.event, client.InputAudioAppend):
                self._active_s = self._clock.now_s()
                if message.event.event_id is not None and not of_others:
                    self._last_client_event_id = message.event.event_id
            self._answer(message.event, message.items)
        except ProtocolError as error:
            if error.event_id is None and not isinstance(message, ProtocolError):
                error.event_id = message.event.event_id
            self._outbox.send(events.Error(error=error.as_dict()), private=True, of_others=of_others)
        return self._outbox.take()

    def microphone(self, samples: audio.Samples) -> None:
        """Sound at the transport's rate; dropped if the client floods. Call `process_audio` next."""
        with contextlib.suppress(ProtocolError):
            self._listening.append(samples)

    @property
    def has_pending_audio(self) -> bool:
        return self._listening.has_pending

    def process_audio(self) -> list[Effect]:
        """Works off at most a quarter of a second of sound; call again while `has_pending_audio`."""
        self._turns.sound_came()
        for happening in self._listening.process():
            self._turns.take(happening)
        self._turns.weigh()
        return self._outbox.take()

    def pull_audio(self, count: int) -> tuple[audio.Samples | None, list[Effect]]:
        """The next `count` samples of the answer (fewer at its end), where the server plays."""
        piece = self._speaking.pull(count)
        return (piece.samples if piece is not None else None), self._outbox.take()

    def pull_speech(self, count: int) -> tuple[Speech | None, list[Effect]]:
        """The same for a transport that reports by `played` what the listener has heard."""
        answering = self._speaking.active
        piece = self._speaking.pull(count)
        speech = None
        if answering is not None and piece is not None:
            speech = Speech(answering.generation, piece.first_sample + piece.samples.size, piece.samples)
        return speech, self._outbox.take()

    def played(self, generation: int, samples: int) -> list[Effect]:
        """So many samples of an answer pulled by `pull_speech` have been heard."""
        self._speaking.played(generation, samples)
        return self._outbox.take()

    def dtmf(self, key: str) -> list[Effect]:
        """A key of the telephone was pressed: 0 to 9, *, #, A to D."""
        self._active_s = self._clock.now_s()
        self._outbox.send(events.DtmfReceived(event=key, received_at=self._clock.unix_s()))
        return self._outbox.take()

    def network(self, loss: float | None, round_trip_ms: float | None) -> None:
        """What the transport saw of it in the last second (see `Network`); from the next turn on it counts."""
        policy = self._briefing.policy
        policy.network = policy.network.after(loss, round_trip_ms)

    def tick(self) -> list[Effect]:
        """To be called when `next_deadline_s` has come."""
        if not self._left:
            self._speaking.on_tick()
            self._turns.on_tick()
        idle_s = self._idle_at_s()
        if self._clock.now_s() >= self._expires_s:
            self._expire(f"The session has reached its maximum age of {self._config.session.max_duration_s:g} s")
        elif idle_s is not None and self._clock.now_s() >= idle_s:
            self._expire(f"Nobody has said or sent anything for {self._max_idle_s:g} s")
        return self._outbox.take()

    def next_deadline_s(self) -> float:
        """Moment of the session's clock at which `tick` has something to do, if nothing else happens."""
        ends_s = (self._idle_at_s(), self._expires_s)
        due_s = ends_s if self._left else (self._speaking.next_deadline_s(), self._turns.next_deadline_s(), *ends_s)
        return min(due for due in due_s if due is not None)

    def worker_ready(self, slot: WorkerSlot) -> list[Effect]:
        """A worker holds a slot for us, and nothing else: whatever it must know is sent again."""
        self._abilities = slot.ready.abilities
        self._briefing.worker_ready(slot)
        self._speaking.worker_ready(slot)
        return self._outbox.take()

    def worker_lost(self) -> list[Effect]:
        """The client hears of it only if an answer died; everything else is sent again to the next worker."""
        self._briefing.worker_lost()
        for event in self._captions.worker_lost():
            self._outbox.send(event)
        if self._speaking.worker_lost():
            error = ProtocolError("worker_lost", "The worker died while it answered; ask again.", kind="server_error")
            self._outbox.send(events.Error(error=error.as_dict()))
        return self._outbox.take()

    def worker_message(self, message: FromWorker) -> list[Effect]:
        match message:
            case TextDelta() | AudioOut() | ToolCall() | ResponseDone():
                self._speaking.on_message(message)
            case EndJudged():
                for happening in self._listening.judged(message):
                    self._turns.take(happening)
                self._turns.weigh()
            case Transcript():
                self._heard(message)
            case UtteranceEncoded():
                self._encoded(message)
            case WorkerError():
                self._worker_error(message)
            case WorkerLoad():
                self._briefing.policy.forecast = WorkerForecast(message.busy, message.at_hz)
            case _:
                pass
        return self._outbox.take()

    # --- what it needs, for whoever shares out places and memory ---

    @property
    def answering(self) -> bool:
        """Whether an answer is being made or played, or waits to be."""
        return not self._speaking.idle

    @property
    def making_answer(self) -> bool:
        """Whether a worker is at one."""
        return self._speaking.making

    @property
    def hearing(self) -> bool:
        """Whether somebody speaks, or did and the turn has not ended."""
        utterance = self._listening.open
        return utterance is not None and utterance.spoken

    @property
    def at_rest(self) -> bool:
        """Whether no worker hears, answers or writes down anything of ours now."""
        return self._listening.open is None and not self.making_answer and not self._captions.unfinished()

    @property
    def needs_worker(self) -> bool:
        """Whether there is something for a worker to hear, to answer or to write down."""
        return self._listening.open is not None or self.answering or bool(self._captions.unfinished())

    def held_bytes(self) -> int:
        """What settings, conversation, sound not worked off yet, the answer in hand and the newest events take, about.
        Counts every item."""
        parts = (self._conversation, self._listening, self._speaking)
        return size_bytes(self.settings) + self._sent.held_bytes + sum(part.held_bytes() for part in parts)

    def forget_sound(self) -> None:
        """Lets the sound of earlier items go; what was understood of them stays."""
        self._conversation.forget_audio(0)

    def close(self) -> None:
        """Nobody will ask for anything any more: lets go at once of what takes memory. What is left of the session is a
        knot of references that the garbage collector unties when it comes by."""
        self._conversation.clear()
        self._listening.clear()
        self._speaking.close()
        self._sent.clear()

    def take_finished(self) -> list[Response]:
        """Responses closed since the last call, for the metrics."""
        return self._speaking.take_finished()

    @property
    def coarsest_hz(self) -> float:
        """The rate that its answers may be made coarse to."""
        return self._briefing.policy.coarsest("output", self.settings.x_agogic.output_frame_rate)

    # --- client events ---

    def _answer(self, event: client.ClientEvent, items: tuple[ReadItem | ItemReference, ...]) -> None:
        match event:
            case client.InputAudioAppend():
                self._append(event)
            case client.SessionUpdate():
                self._update(event)
            case client.InputAudioCommit():
                self._half_sample = b""
                for happening in self._listening.commit():
                    self._turns.take(happening)
            case client.InputAudioClear():
                self._clear_input()
            case client.OutputAudioClear():
                self._clear_output()
            case client.ItemCreate():
                self._items.create(event, items)
            case client.ItemRetrieve():
                self._items.retrieve(event, with_sound=self._transport == "websocket")
            case client.ItemTruncate():
                self._items.truncate(event)
            case client.ItemDelete():
                self._items.delete(event)
            case client.ResponseCreate():
                self._speaking.request(self._plan(event.response or client.ResponseParams(), items))
            case client.ResponseCancel():
                if not self._speaking.cancel("client_cancelled", event.response_id):
                    raise ProtocolError("response_cancel_not_active", "Cancellation failed: no active response found")

    def _append(self, event: client.InputAudioAppend) -> None:
        if self._transport != "websocket":
            raise ProtocolError(
                "invalid_event_for_transport", "In a call audio travels as media; add a track instead of appending."
            )
        encoding = format_name(self.settings.audio.input.format)
        data = self._half_sample + event.audio
        whole = len(data) - len(data) % audio.SAMPLE_BYTES[encoding]
        self._half_sample = data[whole:]
        self._listening.append(audio.decode(data[:whole], encoding))

    def _update(self, event: client.SessionUpdate) -> None:
        before, self.settings = self.settings, updated(self.settings, event.session, self._config.session.voice)
        if self.settings.audio.input.format != before.audio.input.format:
            self._half_sample = b""
        self._echo.choose(self.settings.x_agogic.echo_cancellation, self._transport)
        self._turns.configured(before)
        self._speaking.speculation.roll_back()
        self._listening.configure(self.settings.audio.input.turn_detection, self._microphone_hz())
        self._outbox.send(events.SessionUpdated(session=self._render()))

    def _clear_input(self) -> None:
        self._half_sample = b""
        dropped = self._listening.clear()
        if dropped is not None:
            self._turns.cleared(dropped)
        self._outbox.send(events.InputCleared())

    def _clear_output(self) -> None:
        if self._transport == "websocket":
            raise ProtocolError(
                "invalid_event_for_transport", "Over WebSocket the client plays the audio; clear your own buffer."
            )
        if not self._speaking.cancel("client_cancelled"):
            self._outbox.send(events.OutputCleared(response_id=self._speaking.last_response_id))

    # --- the worker ---

    def _heard(self, message: Transcript) -> None:
        utterance = self._listening.open
        if utterance is not None and utterance.number == message.utterance:
            if message.text != utterance.transcript:
                utterance.transcript = message.text
                self._turns.understood(utterance)
            return
        for event in self._captions.heard(message.utterance, message.text, final=message.final):
            self._outbox.send(event)

    def _encoded(self, message: UtteranceEncoded) -> None:
        self._captions.encoded(message.utterance)
        item = self._conversation.of_utterance(message.utterance)
        if item is not None and message.group_ms and "input_tokens" in self.settings.x_agogic.events:
            self._outbox.send(events.InputTokens(item_id=item.id, durations_ms=message.group_ms))

    def _worker_error(self, message: WorkerError) -> None:
        """What failed is heard again when it is needed next: an open utterance at its end, another with a question."""
        self._briefing.drop_utterance(message.utterance)
        utterance, answer = self._listening.open, self._speaking.active
        if utterance is not None and utterance.number == message.utterance:
            utterance.lost = True
            self._speaking.speculation.roll_back()
            return
        for event in self._captions.failed(message.utterance, message.message):
            self._outbox.send(event)
        if answer is not None and answer.done is None and message.utterance in (None, answer.utterance):
            self._speaking.fail(message.code, message.message)

    # --- small things ---

    def _plan(self, params: client.ResponseParams, items: tuple[ReadItem | ItemReference, ...] = ()) -> ResponsePlan:
        plan = plan_response(params, items, self.settings, self._conversation, self._briefing.policy, self._ids)
        plan = with_text_to_say(plan, self._abilities)
        names = [tool.name for tool in params.tools or () if isinstance(tool, FunctionTool)]
        return replace(plan, notes=tuple(on_response(plan, self._abilities, names)))

    def _idle_at_s(self) -> float | None:
        """When the session ends if nothing happens; None while an answer is being given."""
        if not self._speaking.idle:
            return None
        last_s = max(self._active_s, self._turns.changed_s, self._speaking.quiet_since_s or 0.0)
        return last_s + self._max_idle_s

    def _expire(self, why: str) -> None:
        error = ProtocolError("session_expired", f"{why}; open a new one.")
        self._outbox.send(events.Error(error=error.as_dict()))
        self._outbox.close(1008, "session expired")

    def _microphone_hz(self) -> int:
        return self._input_hz or audio.RATE_HZ[format_name(self.settings.audio.input.format)]

    def _render(self) -> JsonObject:
        notes = on_settings(self.settings, self._abilities)
        return render(self.settings, session_id=self.id, model=self._model, expires_at=self._expires_at, notes=notes)
