"""One response: what the worker generates, turned into the protocol's events in the protocol's order.

created ──(first output)──► opened ──(everything released, or cancelled)──► closed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from msgspec import UNSET

from agent import audio
from agent.dialogue.conversation import AssistantMessage, FunctionCall, Item, spaced
from agent.dialogue.playout import Playout, Slice
from agent.dialogue.rates import RateDecision
from agent.dialogue.tool_use import call_events
from agent.json_object import JsonObject
from agent.protocol import server_events as events
from agent.protocol.formats import AudioFormat, format_name
from agent.protocol.server_events import ServerEvent
from agent.wire import NO_TOOLS, ResponseDone, ResponseStats, TokenSpan, ToolCall, ToolUse, WordSpan

FinalStatus = Literal["completed", "cancelled", "incomplete", "failed"]


@dataclass(frozen=True)
class ResponsePlan:
    """Everything decided about a response before it starts. `items` are what to answer, None = the conversation.

    `answers` is the id of the spoken turn whose end made the server ask for it, None where somebody else did. `tools`
    may be called; `say`: the answer is this text; `instructed`: it has instructions of its own; `notes` say what of
    what was asked has no effect.
    """

    in_conversation: bool
    modality: Literal["audio", "text"]
    instructions: str
    max_output_tokens: int | Literal["inf"]
    metadata: dict[str, str] | None
    input_rate: RateDecision
    output_rate: RateDecision
    items: list[Item] | None
    format: AudioFormat
    voice: str
    conversation_id: str | None
    turn_detection_ms: float | None = None
    answers: str | None = None
    tools: ToolUse = NO_TOOLS
    say: str = ""
    instructed: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpeculationReport:
    """`saved_ms`: of the time to its first sound, what had passed when the answer was asked for, because it had been
    begun before; `wasted_ms`: work since the last answer on answers that were begun and not given."""

    saved_ms: float
    wasted_ms: float

    def as_dict(self) -> JsonObject:
        return {"saved_ms": round(self.saved_ms, 1), "wasted_ms": round(self.wasted_ms, 1)}


@dataclass
class Clocked:
    """Moments of one response on the session's clock; `as_dict` gives them in ms since the decision to answer."""

    decided_s: float
    first_text_s: float | None = None
    first_token_s: float | None = None
    first_audio_s: float | None = None
    first_audio_out_s: float | None = None
    ended_s: float | None = None

    def as_dict(self) -> JsonObject:
        moments = {
            "first_text_ms": self.first_text_s,
            "first_token_ms": self.first_token_s,
            "first_audio_ms": self.first_audio_s,
            "first_audio_out_ms": self.first_audio_out_s,
            "total_ms": self.ended_s,
        }
        return {name: round((at - self.decided_s) * 1000, 1) for name, at in moments.items() if at is not None}


@dataclass
class Response:
    """`server_plays` is WebRTC: sound is pulled and not sent as events. `utterance` is what it answers, if sound.

    `called` are calls that the worker made of it; they become `calls`, each with the id of the item before it, and are
    told of behind all else: what is cut off calls nothing. `overlapped`: somebody spoke over it.
    """

    id: str
    generation: int
    plan: ResponsePlan
    item: AssistantMessage
    playout: Playout
    clocked: Clocked
    server_plays: bool
    done: ResponseDone | None = None
    status: Literal["in_progress"] | FinalStatus = "in_progress"
    previous_item_id: str | None = None
    utterance: int | None = None
    speculation: SpeculationReport = SpeculationReport(0.0, 0.0)
    started: bool = False
    overlapped: bool = False
    called: list[ToolCall] = field(default_factory=list)
    calls: list[tuple[FunctionCall, str | None]] = field(default_factory=list)
    tokens: list[TokenSpan] = field(default_factory=list)
    _unsent_tokens: list[TokenSpan] = field(default_factory=list)
    _text_deltas: int = 0
    _resampler: audio.Resampler | None = None

    # --- events, in order ---

    def created(self) -> ServerEvent:
        return events.ResponseCreated(response=self.as_dict() | {"x_agogic": self._rates() | self._notes()})

    def opening(self) -> list[ServerEvent]:
        """The item and its part appear. The caller has put the item into the conversation where it belongs there."""
        assert not self.item.opened
        happened: list[ServerEvent] = [events.OutputItemAdded(response_id=self.id, item=self.item.as_dict())]
        if self.plan.in_conversation:
            happened.append(events.ItemAdded(item=self.item.as_dict(), previous_item_id=self.previous_item_id))
        self.item.opened = True
        happened.append(events.PartAdded(response_id=self.id, item_id=self.item.id, part=self.item.part))
        return happened

    def text(self, delta: str) -> list[ServerEvent]:
        """Text from the worker: shown at once in a text response; in a spoken one it waits for its sound."""
        self._text_deltas += 1
        if self.plan.modality == "audio" or not delta:
            return []
        self.item.text += delta
        return [events.TextDelta(response_id=self.id, item_id=self.item.id, delta=delta)]

    def release(self, piece: Slice) -> list[ServerEvent]:
        """Sound that leaves now, with its words first."""
        happened: list[ServerEvent] = []
        if self.server_plays and not self.started:
            self.started = True
            happened.append(events.OutputStarted(response_id=self.id))
        self.tokens.extend(piece.tokens)
        self._unsent_tokens.extend(piece.tokens)
        happened.extend(self._word(word) for word in piece.words)
        self.item.audio_samples = piece.first_sample + piece.samples.size
        if not self.server_plays:
            happened.extend(self._audio_delta(piece.samples, piece.first_sample))
        return happened

    def taken_back(self, released_samples: int, *, server_plays: bool) -> None:
        """Of its sound so much has been released; the rest leaves again, or for the first time, in this way."""
        self.item.audio_samples = released_samples
        self.started = self.started and server_plays
        self.server_plays = server_plays
        self._resampler = None

    def closing(
        self, status: FinalStatus, reason: str | None = None, error: JsonObject | None = None
    ) -> list[ServerEvent]:
        """Everything from the last part to `response.done`."""
        self.status = status
        happened: list[ServerEvent] = []
        if status in ("completed", "incomplete"):
            happened.extend(self._rest())
        if self.item.opened:
            self.item.status = "completed" if status == "completed" else "incomplete"
            happened.extend(self._close_part())
            item = self.item.as_dict()
            if self.plan.in_conversation:
                happened.append(events.ItemDone(item=item, previous_item_id=self.previous_item_id))
            happened.append(events.OutputItemDone(response_id=self.id, item=item))
        for index, (call, previous) in enumerate(self.calls, start=int(self.item.opened)):
            known = self.plan.in_conversation
            happened.extend(call_events(self.id, index, call, previous, in_conversation=known))
        happened.append(events.ResponseDone(response=self._done_dict(reason, error)))
        return happened

    def as_dict(self) -> JsonObject:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self.status,
            "status_details": None,
            "output": [
                *([self.item.as_dict()] if self.item.opened else []),
                *(call.as_dict() for call, _ in self.calls),
            ],
            "conversation_id": self.plan.conversation_id,
            "output_modalities": [self.plan.modality],
            "max_output_tokens": self.plan.max_output_tokens,
            "audio": {"output": {"format": self.plan.format, "voice": self.plan.voice}},
            "metadata": self.plan.metadata,
            "usage": None,
        }

    # --- parts of the above ---

    def _rest(self) -> list[ServerEvent]:
        """What no slice carried: late words, the whole text where the worker timed no words, the resampler's tail."""
        happened: list[ServerEvent] = []
        words, tokens = self.playout.leftovers()
        self.tokens.extend(tokens)
        self._unsent_tokens.extend(tokens)
        whole = self.done.text.strip() if self.done is not None else ""
        if self.plan.modality == "audio" and self.item.opened:
            happened.extend(self._word(word) for word in words)
            if not self.item.words and whole:
                happened.append(events.AudioTranscriptDelta(response_id=self.id, item_id=self.item.id, delta=whole))
                self.item.text = whole
            if self._resampler is not None and not self.server_plays:
                happened.extend(self._delta_of(self._resampler.flush(), self.item.audio_samples))
        return happened

    def _word(self, word: WordSpan) -> ServerEvent:
        """One word of the transcript, which grows by it."""
        hz = self.playout.sample_rate_hz
        delta = spaced(word.text, first=not self.item.text)
        self.item.text += delta
        self.item.words.append(word)
        extra = self._token_field() if self.server_plays else None
        return events.AudioTranscriptDelta(
            response_id=self.id,
            item_id=self.item.id,
            delta=delta,
            start_time=round(word.start_sample / hz, 3),
            end_time=round(word.end_sample / hz, 3),
            x_agogic=extra if extra is not None else UNSET,
        )

    def _close_part(self) -> list[ServerEvent]:
        response_id, item_id, text = self.id, self.item.id, self.item.text
        part_done = events.PartDone(response_id=response_id, item_id=item_id, part=self.item.part)
        if self.plan.modality == "text":
            return [events.TextDone(response_id=response_id, item_id=item_id, text=text), part_done]
        return [
            events.AudioDone(response_id=response_id, item_id=item_id),
            events.AudioTranscriptDone(response_id=response_id, item_id=item_id, transcript=text),
            part_done,
        ]

    def _audio_delta(self, samples: audio.Samples, first_sample: int) -> list[ServerEvent]:
        if self._resampler is None:
            encoding = format_name(self.plan.format)
            self._resampler = audio.Resampler(self.playout.sample_rate_hz, audio.RATE_HZ[encoding])
        return self._delta_of(self._resampler.push(samples), first_sample)

    def _delta_of(self, samples: audio.Samples, first_sample: int) -> list[ServerEvent]:
        if not samples.size:
            return []
        extra: JsonObject = {"start_time": round(first_sample / self.playout.sample_rate_hz, 3)}
        extra |= self._token_field() or {}
        delta = audio.encode(samples, format_name(self.plan.format))
        return [events.AudioDelta(response_id=self.id, item_id=self.item.id, delta=delta, x_agogic=extra)]

    def _token_field(self) -> JsonObject | None:
        if not self._unsent_tokens:
            return None
        tokens, self._unsent_tokens = self._unsent_tokens, []
        return {"tokens": _token_pairs(tokens)}

    def _rates(self) -> JsonObject:
        return {
            "input_frame_rate": self.plan.input_rate.as_dict(),
            "output_frame_rate": self.plan.output_rate.as_dict(),
        }

    def _notes(self) -> JsonObject:
        return {"notes": list(self.plan.notes)} if self.plan.notes else {}

    def _done_dict(self, reason: str | None, error: JsonObject | None) -> JsonObject:
        whole = self.as_dict()
        if self.status != "completed":
            details: JsonObject = {"type": self.status}
            if reason is not None:
                details["reason"] = reason
            if error is not None:
                details["error"] = error
            whole["status_details"] = details
        whole["usage"] = self._usage()
        whole["x_agogic"] = self._report()
        return whole

    def _usage(self) -> JsonObject:
        """Tokens really spent: positions of the prompt, text tokens written, speech tokens spoken."""
        stats = self.done.stats if self.done is not None else ResponseStats()
        audio_in = min(stats.input_groups, stats.prompt_positions)
        text_in = stats.prompt_positions - audio_in
        text_out = stats.text_tokens or self._text_deltas
        audio_out = stats.speech_tokens or len(self.tokens)
        return {
            "total_tokens": stats.prompt_positions + text_out + audio_out,
            "input_tokens": stats.prompt_positions,
            "output_tokens": text_out + audio_out,
            "input_token_details": {
                "text_tokens": text_in,
                "audio_tokens": audio_in,
                "image_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
        }

    def _report(self) -> JsonObject:
        stats = self.done.stats if self.done is not None else ResponseStats()
        hz = self.playout.sample_rate_hz
        rates = self._rates()
        for name, realised in (
            ("input_frame_rate", stats.realised_input_hz),
            ("output_frame_rate", stats.realised_output_hz),
        ):
            if realised:
                rates[name] = {**_object(rates[name]), "realised_hz": round(realised, 3)}
        timing = self.clocked.as_dict()
        if self.plan.turn_detection_ms is not None:
            timing["turn_detection_ms"] = round(self.plan.turn_detection_ms, 1)
        if self.done is not None:
            stages = ("encode_ms", "prefill_ms", "thinker_ms", "talker_ms", "flow_ms", "vocoder_ms")
            timing["stages"] = {name: round(float(getattr(stats, name)), 1) for name in stages}
        return {
            **rates,
            **self._notes(),
            "tokens": _token_pairs(self.tokens),
            "words": [
                [word.text, round(word.start_sample / hz, 3), round(word.end_sample / hz, 3)]
                for word in self.item.words
            ],
            "timing": timing,
            "speculation": self.speculation.as_dict(),
        }


def _token_pairs(tokens: list[TokenSpan]) -> list[list[int]]:
    return [[token.code, token.duration_frames] for token in tokens]


def _object(value: object) -> JsonObject:
    assert isinstance(value, dict)
    return value
