"""One turn as the spans of a trace, out of what the session and its worker tell each other anyway.

    turn     ├───────────────────────────────────────────────────────────┤
    hearing  ├─────────┤                       somebody speaks, the worker listens
    likely end         ├─────┤                 silence, until it is decided that the turn has ended
    prefill              ├─────┤               until the first text; it may begin before the end
    think                      ├───────┤       the Thinker writes
    talk                       ├───────┤       the Talker makes tokens; event: the first one
    flow                         ├─────┤       tokens become sound; event: the first sound
    out                            ├─────────┤ it leaves, as it is heard; event: the first of it

A span begins when what it works on is there, and its event says when it gave its first piece. Thinker, Talker and flow
take turns until the worker is done: how long each of them worked stands in `agogic.work_ms`, as the worker counted it.
No clock is read here: every moment is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from agent.dialogue.response import Response
from agent.wire import (
    AudioIn,
    AudioOut,
    DropUtterance,
    EndUtterance,
    FromWorker,
    LikelyEnd,
    Message,
    Respond,
    ResponseDone,
    ResponseStats,
    StartUtterance,
    TextDelta,
)

Value = str | int | float | bool
# What a session may have at hand at once: those that wait in line, and one that is only begun.
_MOST = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """From `start_s` to `end_s` on the clock of who gave the moments; `first_s`: when it gave its first piece."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    first_s: float | None = None


@dataclass(frozen=True)
class TurnTrace:
    """`whole` is the turn; `parts` lie within it, in the order in which they begin."""

    whole: Span
    parts: tuple[Span, ...]
    failed: bool


@dataclass
class _Heard:
    started_s: float
    likely_s: float | None = None
    ended_s: float | None = None


@dataclass
class _Made:
    asked_s: float
    first_text_s: float | None = None
    first_audio_s: float | None = None
    done_s: float | None = None
    stats: ResponseStats = field(default_factory=ResponseStats)


class TurnMoments:
    """Of one session. Keeps numbers and moments, never a word or a sample.

    `on_turn` gets each turn's trace; None: nobody wants it, and nothing is kept.
    """

    def __init__(self, session_id: str, on_turn: Callable[[TurnTrace], None] | None) -> None:
        self._session_id = session_id
        self._on_turn = on_turn
        self._heard: OrderedDict[int, _Heard] = OrderedDict()
        self._made: OrderedDict[int, _Made] = OrderedDict()

    def told(self, message: Message, now_s: float) -> None:
        """The worker is sent this now."""
        if self._on_turn is None:
            return
        match message:
            case AudioIn():
                if (heard := self._heard.get(message.utterance)) is not None:
                    heard.likely_s = None
            case StartUtterance():
                if message.utterance not in self._heard:  # else it is told to another worker
                    _keep(self._heard, message.utterance, _Heard(now_s))
            case LikelyEnd():
                if (heard := self._heard.get(message.utterance)) is not None:
                    heard.likely_s = now_s
            case EndUtterance():
                if (heard := self._heard.get(message.utterance)) is not None:
                    heard.ended_s = now_s
            case DropUtterance():
                self._heard.pop(message.utterance, None)
            case Respond():
                _keep(self._made, message.generation, _Made(now_s))
            case _:
                pass

    def came(self, message: FromWorker, now_s: float) -> None:
        """The worker has sent this."""
        if self._on_turn is None or not isinstance(message, TextDelta | AudioOut | ResponseDone):
            return
        made = self._made.get(message.generation)
        if made is None:
            return
        if isinstance(message, TextDelta):
            made.first_text_s = made.first_text_s if made.first_text_s is not None else now_s
        elif isinstance(message, AudioOut):
            if message.pcm and made.first_audio_s is None:
                made.first_audio_s = now_s
        else:
            made.done_s, made.stats = now_s, message.stats

    def finished(self, response: Response, now_s: float) -> None:
        """This response was closed just now."""
        if self._on_turn is not None:
            self._on_turn(self._trace(response, now_s))

    def _trace(self, response: Response, now_s: float) -> TurnTrace:
        """The session may count from another beginning than the moments given here: only its differences are used."""
        clocked = response.clocked
        shift_s = now_s - (clocked.ended_s if clocked.ended_s is not None else clocked.decided_s)
        decided_s = clocked.decided_s + shift_s
        heard = self._heard.pop(response.utterance, None) if response.utterance is not None else None
        made = self._made.pop(response.generation, None)
        parts = [*_hearing(heard, decided_s), *(_making(made, now_s) if made is not None else ())]
        if made is not None and made.first_audio_s is not None:
            left_s = None
            if clocked.first_audio_out_s is not None:
                left_s = max(made.first_audio_s, clocked.first_audio_out_s + shift_s)
            attributes = {"agogic.underruns": response.playout.underruns}
            parts.append(Span("out", made.first_audio_s, now_s, attributes, left_s))
        start_s = min((decided_s, *(part.start_s for part in parts)))
        whole = Span("turn", start_s, now_s, self._attributes(response, made), decided_s)
        return TurnTrace(whole, tuple(parts), failed=response.status == "failed")

    def _attributes(self, response: Response, made: _Made | None) -> dict[str, Value]:
        plan, stats = response.plan, made.stats if made is not None else ResponseStats()
        found: dict[str, Value] = {
            "session.id": self._session_id,
            "agogic.response_id": response.id,
            "agogic.status": response.status,
            "agogic.modality": plan.modality,
            "agogic.input_hz": plan.input_rate.hz,
            "agogic.output_hz": plan.output_rate.hz,
            "agogic.speculation_saved_ms": response.speculation.saved_ms,
        }
        if stats.prompt_positions:
            found["agogic.prompt_positions"] = stats.prompt_positions
        if stats.speech_tokens:
            found |= {
                "agogic.speech_tokens": stats.speech_tokens,
                "agogic.realised_output_hz": stats.realised_output_hz,
            }
        return found


def _hearing(heard: _Heard | None, decided_s: float) -> list[Span]:
    if heard is None:
        return []
    ended_s = heard.ended_s if heard.ended_s is not None else decided_s
    likely_s = heard.likely_s if heard.likely_s is not None else ended_s
    parts = [Span("hearing", heard.started_s, likely_s)]
    if heard.likely_s is not None:
        parts.append(Span("likely end", likely_s, ended_s))
    return parts


def _making(made: _Made, now_s: float) -> list[Span]:
    """What the worker does, as far as it got: an answer that was cut off has not told how long its parts worked."""
    stats = made.stats
    done_s = made.done_s if made.done_s is not None else now_s
    # Text is no condition for sound: an answer may be given word for word.
    begun_s = made.first_text_s if made.first_text_s is not None else made.first_audio_s
    if begun_s is None:
        return [Span("prefill", made.asked_s, done_s, _work(stats.encode_ms + stats.prefill_ms))]
    parts = [
        Span("prefill", made.asked_s, begun_s, _work(stats.encode_ms + stats.prefill_ms)),
        Span("think", begun_s, done_s, _work(stats.thinker_ms)),
    ]
    if made.first_audio_s is not None:
        token_s = made.first_audio_s
        if stats.first_token_ms:
            token_s = min(max(begun_s, made.asked_s + stats.first_token_ms / 1000), made.first_audio_s)
        parts.append(Span("talk", begun_s, done_s, _work(stats.talker_ms), token_s))
        parts.append(Span("flow", token_s, done_s, _work(stats.flow_ms + stats.vocoder_ms), made.first_audio_s))
    return parts


def _work(work_ms: float) -> dict[str, Value]:
    return {"agogic.work_ms": round(work_ms, 1)} if work_ms else {}


def _keep(kept: OrderedDict[int, T], number: int, value: T) -> None:
    kept[number] = value
    if len(kept) > _MOST:
        kept.popitem(last=False)
