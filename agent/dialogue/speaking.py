"""The mouth of a session: one response at a time is generated and played; further ones wait in line.

idle ──start──► asked (sent to the worker) ──first output──► playing ──released──► idle ──► next in line
                  │                                            │
                  └──────────────── cancel ────────────────────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agent import audio
from agent.clock import Clock
from agent.config import PlayoutConfig
from agent.dialogue.conversation import AssistantMessage, Conversation, FunctionCall
from agent.dialogue.ducking import Ducking
from agent.dialogue.effects import Outbox
from agent.dialogue.playout import Playout, Slice
from agent.dialogue.response import Clocked, FinalStatus, Response, ResponsePlan
from agent.dialogue.sent import Mark
from agent.dialogue.speculation import Speculation
from agent.echo.loop import EchoLoop
from agent.json_object import JsonObject
from agent.protocol import server_events as events
from agent.protocol.errors import ProtocolError
from agent.wire import AudioOut, Cancel, Ready, Respond, ResponseDone, ResponseStats, TextDelta, ToolCall

MAX_WAITING = 8
# A response that found no worker waits this long for one.
WORKER_WAIT_S = 15.0
# Of what a worker cannot do, what a client can: say less.
_CLIENTS_TO_MEND = {"context_too_long", "no_tool_call"}


@dataclass(frozen=True)
class WorkerSlot:
    """A leased place in a live worker."""

    session: int
    ready: Ready


@dataclass(frozen=True)
class Speech:
    """A piece of an answer on its way to a telephone. `end_sample` is where it ends within that answer."""

    generation: int
    end_sample: int
    samples: audio.Samples


class Speaking:
    """`ask` builds the message for the worker at the moment the response starts, so that it sees the newest history.

    `quiet_since_s` is when the last answer of the conversation has been played to its end, as far as one can know.
    `reports_every_s`: what is pulled is played elsewhere and later, and `played` tells how far, so often of its sound.
    """

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        conversation: Conversation,
        config: PlayoutConfig,
        echo: EchoLoop,
        ask: Callable[[Response, WorkerSlot], Respond],
        *,
        server_plays: bool,
        reports_every_s: float | None = None,
    ) -> None:
        self.active: Response | None = None
        self.last_response_id = ""
        self.quiet_since_s: float | None = None
        self.speculation = Speculation(outbox, clock)
        self._outbox = outbox
        self._clock = clock
        self._conversation = conversation
        self._config = config
        self._echo = echo
        self._ask = ask
        self._server_plays = server_plays
        self._reports_every_s = reports_every_s
        self._slot: WorkerSlot | None = None
        self._waiting: deque[ResponsePlan] = deque()
        self._asked = False
        self._asked_again = False
        self._held = False
        self._ducking = Ducking()
        self._waiting_since_s = 0.0
        self._generation = 0
        self._finished: deque[Response] = deque(maxlen=MAX_WAITING)

    # --- starting ---

    def request(self, plan: ResponsePlan) -> None:
        """Starts now, or after the one that runs. Raises `ProtocolError` where the protocol forbids to wait."""
        if self.active is None:
            self._start(plan)
            return
        if plan.in_conversation and self.active.plan.in_conversation:
            raise ProtocolError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self.active.id}. "
                "Wait until it is finished, or cancel it, before response.create.",
            )
        if len(self._waiting) >= MAX_WAITING:
            raise ProtocolError(
                "rate_limit_exceeded",
                f"{MAX_WAITING} responses are waiting already; wait for one of them to finish.",
                kind="rate_limit_error",
            )
        self._waiting.append(plan)

    def request_turn(self, plan: ResponsePlan) -> None:
        """The user's turn ended: whatever runs outside the conversation gives way, what runs inside is waited for."""
        if self.active is not None and not self.active.plan.in_conversation:
            self._close("cancelled", "turn_detected", go_on=False)
        if self.active is None:
            self._start(plan)
        elif all(not waiting.in_conversation for waiting in self._waiting):
            self._waiting.appendleft(plan)

    def begin_speculation(self, plan: ResponsePlan, foretold: Callable[[int, WorkerSlot], Respond]) -> None:
        """Lets the worker begin an answer that will probably be asked for; nothing may be active. `foretold` makes the
        message for the worker of a generation."""
        if self._slot is None:
            return
        self._generation += 1
        self.speculation.begin(plan, foretold(self._generation, self._slot))

    def _start(self, plan: ResponsePlan) -> None:
        self._generation += 1
        sample_rate_hz = self._slot.ready.output_sample_rate if self._slot is not None else 24_000
        ids = self._outbox.ids
        response = Response(
            id=ids.new("resp"),
            generation=self._generation,
            plan=plan,
            item=AssistantMessage(ids.new("item"), plan.modality, sample_rate_hz=sample_rate_hz),
            playout=Playout(
                sample_rate_hz,
                lead_ms=self._config.lead_ms,
                slice_ms=self._config.slice_ms,
                reports_every_s=self._reports_every_s,
            ),
            clocked=Clocked(self._clock.now_s()),
            server_plays=self._server_plays,
        )
        self.active = response
        self.last_response_id = response.id
        self._asked = self._asked_again = False
        self._waiting_since_s = self._clock.now_s()
        self._outbox.send(response.created())
        self._ask_worker()

    def _ask_worker(self) -> None:
        if self.active is None or self._slot is None or self._asked:
            return
        self._asked = True
        response, question = self.active, self._ask(self.active, self._slot)
        begun = self.speculation.take_over(question)
        response.speculation = self.speculation.report(begun)
        if begun is None:
            self._outbox.worker(question)
            return
        response.generation = begun.asked.generation
        for message in begun.given:
            self._take(message)

    # --- the worker ---

    def worker_ready(self, slot: WorkerSlot) -> None:
        self._slot = slot
        self._ask_worker()

    def worker_lost(self) -> bool:
        """True if a response died with the worker: it is closed as failed.

        One of which nothing was shown yet is asked again of the next worker, once: it may be what killed this one.
        """
        self._slot = None
        self.speculation.worker_lost()
        response = self.active
        if response is None or not self._asked or response.done is not None:
            return False
        if not response.item.opened and not response.playout.queued_samples and not self._asked_again:
            self._asked, self._asked_again = False, True
            self._waiting_since_s = self._clock.now_s()
            return False
        self.fail("worker_lost", "The worker that was answering died.")
        return True

    def fail(self, code: str, message: str) -> None:
        self._close("failed", None, error={"type": "server_error", "code": code, "message": message})

    def on_message(self, message: TextDelta | AudioOut | ToolCall | ResponseDone) -> None:
        """What the worker makes of an answer, asked for or only begun."""
        if not self.speculation.take(message):
            self._take(message)

    def _take(self, message: TextDelta | AudioOut | ToolCall | ResponseDone) -> None:
        match message:
            case TextDelta():
                self._on_text(message)
            case AudioOut():
                self._on_audio(message)
            case ToolCall():
                if (response := self._current(message.generation)) is not None:
                    response.called.append(message)
            case ResponseDone():
                self._on_done(message)

    def _on_text(self, message: TextDelta) -> None:
        response = self._current(message.generation)
        if response is None:
            return
        if response.clocked.first_text_s is None:
            response.clocked.first_text_s = self._clock.now_s()
        if response.plan.modality == "text":
            self._open(response)
        for event in response.text(message.text):
            self._outbox.send(event)

    def _on_audio(self, message: AudioOut) -> None:
        response = self._current(message.generation)
        if response is None or response.done is not None:
            return
        now_s = self._clock.now_s()
        clocked = response.clocked
        if message.tokens and clocked.first_token_s is None:
            clocked.first_token_s = now_s
        if message.pcm and clocked.first_audio_s is None:
            clocked.first_audio_s = now_s
        response.playout.push(message)
        if response.playout.is_full:
            self._cancel_generation(response)
            response.done = ResponseDone(
                message.session, message.generation, "max_output_tokens", response.item.text, ResponseStats()
            )
            response.playout.end()
        self.on_tick()

    def _on_done(self, message: ResponseDone) -> None:
        response = self._current(message.generation)
        if response is None:
            return
        if message.reason == "failed":
            kind, code = "server_error", "worker_error"
            if message.code in _CLIENTS_TO_MEND:
                kind, code = "invalid_request_error", message.code
            self._close("failed", None, error={"type": kind, "code": code, "message": message.error or "failed"})
            return
        response.done = message
        response.playout.end()
        self.on_tick()

    # --- time and playing ---

    def on_tick(self) -> None:
        """Sends what is due and closes the response once all of it has left."""
        response = self.active
        if response is None or self._held:
            return
        now_s = self._clock.now_s()
        if self._ducking.flinches_until_s is not None and now_s >= self._ducking.flinches_until_s:
            self._ducking.calm(response)
        if not self._server_plays:
            for piece in response.playout.due(now_s, self._ducking.until):
                self._release(response, piece, now_s)
        if self._ducking.until is not None:
            return
        if response.done is not None and (response.playout.is_over(now_s) or response.plan.modality == "text"):
            self._finish(response)
        elif not self._asked and now_s >= self._waiting_since_s + WORKER_WAIT_S:
            self.fail("no_worker", f"No worker had a place for this within {WORKER_WAIT_S:g} s.")

    def pull(self, count: int) -> Slice | None:
        """The next sound for the listener, where the server plays."""
        response = self.active
        if response is None or self._held:
            return None
        now_s, room = self._clock.now_s(), self._ducking.room(response, count)
        piece = response.playout.pull(room, now_s) if room else None
        if piece is not None:
            self._release(response, piece, now_s)
            piece = self._ducking.shaped(response, piece)
        if response.done is not None:
            self.on_tick()
        return piece

    def played(self, generation: int, samples: int) -> None:
        """The listener has heard so many samples of that answer; what came too late for it says nothing."""
        response = self._current(generation)
        if response is not None:
            response.playout.report(samples, self._clock.now_s())
            self.on_tick()

    def next_deadline_s(self) -> float | None:
        response = self.active
        if response is None or self._held:
            return None
        if not self._asked:
            return self._waiting_since_s + WORKER_WAIT_S
        if self._ducking.until is not None and not self._ducking.room(response, 1):
            return self._ducking.flinches_until_s
        if self._reports_every_s is not None:
            return response.playout.over_at_s(self._clock.now_s())
        if self._server_plays:
            return self._ducking.flinches_until_s
        return response.playout.next_due_s(self._clock.now_s())

    # --- somebody speaks over it ---

    def duck(self, *, flinches: bool = False) -> None:
        """It is silent until `let_go_on`, or until it is cancelled; where it only flinches, until `calm` or a moment
        later."""
        response = self.active
        if response is None:
            return
        response.overlapped = response.overlapped or not flinches
        rewinds = self._server_plays and not self._reports_every_s
        self._ducking.begin(response, self._clock.now_s(), rewinds=rewinds, flinches=flinches)
        self.on_tick()

    def calm(self) -> None:
        """What made it flinch was no voice."""
        if self.active is not None and self._ducking.flinches_until_s is not None:
            self._ducking.calm(self.active)
            self.on_tick()

    def let_go_on(self) -> None:
        """Nobody wanted anything: it goes on with the word at which it fell silent."""
        if self.active is None or self._ducking.until is None:
            return
        self._ducking.end(self.active, self._clock.now_s())
        self.on_tick()

    # --- a listener who is gone for a while ---

    def hold(self) -> None:
        """Nobody is there to hear: nothing leaves until `go_on`."""
        self._held = True
        self._echo.cut()

    def go_on(self, mark: Mark, *, server_plays: bool, replayed: bool) -> None:
        """Somebody is there who has the sound up to `mark`. `replayed`: he gets what he missed as it was sent;
        otherwise it is released again. `on_tick` comes next."""
        now_s = self._clock.now_s()
        self._held, self._waiting_since_s = False, now_s
        response, played_here, self._server_plays = self.active, self._server_plays, server_plays
        if response is None:
            return
        had = mark.samples if mark.item is response.item else 0
        if replayed:
            response.playout.go_back(had, now_s)
            return
        if played_here and not server_plays and response.started:
            self._outbox.send(events.OutputCleared(response_id=response.id))
        response.taken_back(response.playout.take_back(had, now_s), server_plays=server_plays)

    # --- ending ---

    def take_finished(self) -> list[Response]:
        finished = list(self._finished)
        self._finished.clear()
        return finished

    def cancel(self, reason: str, response_id: str | None = None) -> bool:
        """False if nothing runs (or not that one)."""
        if self.active is None or response_id not in (None, self.active.id):
            return False
        self._close("cancelled", reason)
        return True

    @property
    def making(self) -> bool:
        """Whether a worker is at an answer."""
        return self.active is not None and self._asked and self.active.done is None

    @property
    def idle(self) -> bool:
        return self.active is None and not self._waiting

    def close(self) -> None:
        """Drops the answer at hand and those that wait, without a word."""
        self.active = self.speculation.begun = None
        self._waiting.clear()
        self._finished.clear()

    def held_bytes(self) -> int:
        """The sound that waits to be played or was just played, and what waiting responses bring along."""
        queued = 2 * self.active.playout.held_samples if self.active is not None else 0
        return queued + self.speculation.held_bytes() + sum(len(plan.instructions) for plan in self._waiting)

    def heard_ms(self, response: Response) -> float:
        """How much of its sound has been heard."""
        return response.playout.heard_samples(self._clock.now_s()) * 1000 / response.playout.sample_rate_hz

    def _finish(self, response: Response) -> None:
        assert response.done is not None
        if response.done.text:
            self._open(response)
        if response.done.reason == "completed":
            self._close("completed", None)
        elif response.done.reason == "max_output_tokens":
            self._close("incomplete", "max_output_tokens")
        else:
            self._close("cancelled", "client_cancelled")

    def _close(
        self, status: FinalStatus, reason: str | None, *, error: JsonObject | None = None, go_on: bool = True
    ) -> None:
        response = self.active
        assert response is not None
        now_s = self._clock.now_s()
        response.clocked.ended_s = now_s
        cut = status in ("cancelled", "failed")
        if cut:
            self._cut(response, now_s, interrupted=status == "cancelled")
        if status == "completed":
            self._call(response)
        for event in response.closing(status, reason, error):
            self._outbox.send(event)
        if response.plan.in_conversation:
            self.quiet_since_s = now_s + response.playout.unheard_s(now_s)
        self.active = None
        self._ducking.forget()
        self._finished.append(response)
        self._after_close(response, cut=cut)
        self._outbox.send(events.RateLimitsUpdated(rate_limits=[]))
        if go_on and self._waiting:
            self._start(self._waiting.popleft())

    def _call(self, response: Response) -> None:
        """What it calls becomes items behind what it said."""
        for made in response.called:
            ids = self._outbox.ids
            call = FunctionCall(ids.new("item"), ids.new("call"), made.name, made.arguments)
            previous = self._conversation.add(call) if response.plan.in_conversation else None
            response.calls.append((call, previous))

    def _cut(self, response: Response, now_s: float, *, interrupted: bool) -> None:
        """Nobody interrupts an answer that failed: a client that plays by itself plays what it was sent."""
        if response.done is None:
            self._cancel_generation(response)
        if interrupted or self._server_plays:
            response.item.heard_samples = min(response.playout.heard_samples(now_s), response.item.audio_samples)
            if self._reports_every_s is not None:
                self._outbox.clear_playback()
        response.playout.clear()
        self._echo.cut()

    def _after_close(self, response: Response, *, cut: bool) -> None:
        """Where the server plays, it also tells what became of the sound."""
        if not self._server_plays or response.plan.modality == "text" or not response.started:
            return
        if not cut:
            self._outbox.send(events.OutputStopped(response_id=response.id))
            return
        self._outbox.send(events.OutputCleared(response_id=response.id))
        heard = response.item.heard_samples or 0
        end_ms = response.item.truncate(-(-heard * 1000 // response.item.sample_rate_hz))
        if response.plan.in_conversation:
            self._outbox.send(events.ItemTruncated(item_id=response.item.id, content_index=0, audio_end_ms=end_ms))

    def _cancel_generation(self, response: Response) -> None:
        if self._slot is not None and self._asked:
            self._outbox.worker(Cancel(self._slot.session, response.generation))

    def _open(self, response: Response) -> None:
        """The answer appears with the first of it that is heard or read: what is withdrawn before never was."""
        if response.item.opened:
            return
        if response.plan.in_conversation:
            response.previous_item_id = self._conversation.add(response.item)
        for event in response.opening():
            self._outbox.send(event)

    def _release(self, response: Response, piece: Slice, now_s: float) -> None:
        if response.clocked.first_audio_out_s is None:
            response.clocked.first_audio_out_s = now_s
        self._echo.said(piece.samples, response.playout.sample_rate_hz)
        self._open(response)
        # Who has a word but not the sound that comes with it is to hear that sound.
        self._outbox.mark = Mark(response.item, piece.first_sample)
        for event in response.release(piece):
            if isinstance(event, events.AudioDelta):
                self._outbox.mark = Mark(response.item, response.item.audio_samples)
            self._outbox.send(event)
        self._outbox.mark = Mark(response.item, response.item.audio_samples)

    def _current(self, generation: int) -> Response | None:
        """The active response, unless the message belongs to an older one."""
        if self.active is None or self.active.generation != generation:
            return None
        return self.active
