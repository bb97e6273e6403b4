"""A session as bytes: what must be known of it so that another process can go on with it, in parts, so that only what
changed has to be sent.

Kept are the conversation with the user's sound, the open utterance, the settings, the newest events, and of the answer
at hand what was told of it. Not kept is what can be made again or is of no use to anybody else: sound of the answer
that has not left, work that was begun on a guess, and answers outside the conversation.

This is the one module that knows the insides of all that a session is made of; nothing else reaches into them.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec
import numpy as np

from agent import audio
from agent.clock import Clock
from agent.config import PlayoutConfig
from agent.dialogue.captions import _Caption
from agent.dialogue.conversation import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    Item,
    SystemMessage,
    UserMessage,
)
from agent.dialogue.listening import Listening, Utterance
from agent.dialogue.playout import Playout
from agent.dialogue.rates import RateDecision
from agent.dialogue.response import Clocked, Response, ResponsePlan
from agent.dialogue.sent import Mark, Sent
from agent.dialogue.session import Session
from agent.ids import Ids
from agent.json_object import JsonObject
from agent.protocol.formats import AudioFormat
from agent.protocol.session_object import SessionSettings
from agent.turn.detector import Phase, TurnDetector
from agent.wire import ToolUse, WordSpan

T = TypeVar("T")
VERSION = 1
MAX_EVENTS_PART_BYTES = 3 * 1024 * 1024
IDS_AHEAD = 4096
"""Ids that the process before may have used after its last copy: none of them is made again."""
_NEWEST, _WHOLE_EVERY = 8, 50
"""So many items are looked at every time, all of them every so many times."""
_KINDS: dict[str, type[Item]] = {
    "system": SystemMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
    "call": FunctionCall,
    "result": FunctionCallOutput,
}
_SIZE = struct.Struct("<I")


class CopyError(Exception):
    """These parts are not those of a session that this version can go on with."""


class Changes(msgspec.Struct, frozen=True):
    """Of one session since the last time: parts that are new or another, bytes behind parts, parts that are gone."""

    put: dict[str, bytes] = {}
    extend: dict[str, bytes] = {}
    drop: list[str] = []


class _Open(msgspec.Struct, frozen=True):
    number: int
    item_id: str
    detected: bool
    start: int
    spoken_end: int
    likely_end: int | None
    lost: bool
    transcript: str
    continues: str | None
    spoken: bool


class _Ear(msgspec.Struct, frozen=True):
    end: int
    uncommitted_from: int
    last_end: int
    voiced_until: int
    count: int
    phase: str
    position: int
    earliest_start: int
    loud_windows: int
    speech_end: int
    announced_likely: bool
    open: _Open | None


class _Answer(msgspec.Struct, frozen=True):
    id: str
    plan: JsonObject
    item: tuple[str, JsonObject]
    sample_rate_hz: int
    previous_item_id: str | None
    server_plays: bool
    started: bool
    asked: bool
    text_deltas: int


class _CaptionCopy(msgspec.Struct, frozen=True):
    item_id: str
    seconds: float
    wanted: bool
    sent: str


class Head(msgspec.Struct, frozen=True):
    """What is small and may change with every event."""

    version: int
    session_id: str
    stem: str
    count: int
    transport: Literal["websocket", "webrtc", "telephone"]
    expires_unix_s: int
    finest_hz: float
    last_client_event_id: str | None
    conversation_id: str
    order: list[str]
    ear: _Ear
    generation: int
    last_response_id: str
    answer: _Answer | None
    waiting: list[JsonObject]
    captions: list[_CaptionCopy]
    mark: tuple[str | None, int]
    was_quiet: bool
    prompts: int


class _SentCopy(msgspec.Struct, frozen=True, array_like=True):
    event_id: str
    data: bytes
    item_id: str | None
    samples: int
    is_sound: bool
    repeats: bool


class Copier:
    """Of one session: remembers what was copied."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._put: dict[str, bytes] = {}
        self._sounds: set[str] = set()
        self._settings: SessionSettings | None = None
        self._open: tuple[int, int] | None = None
        self._copied_until = 0
        self._ids: list[str] = []
        self._calls = 0
        self._newest_event: Sent | None = None
        self._events_edits = -1
        self._events_size = 0

    def changes(self) -> Changes:
        """Since the last call; all of it at the first."""
        put: dict[str, bytes] = {}
        extend: dict[str, bytes] = {}
        parts = {"head": _encode(_head(session := self._session))}
        if self._settings is not session.settings:
            self._settings = session.settings
            parts["settings"] = msgspec.msgpack.encode(self._settings)
        items = session._conversation.items
        ids = [item.id for item in items]
        # It is the newest that change; an earlier one may too, and is then copied a little later.
        self._calls += 1
        is_whole = ids != self._ids or self._calls % _WHOLE_EVERY == 0
        parts |= {f"item/{item.id}": _encode(_item(item)) for item in (items if is_whole else items[-_NEWEST:])}
        self._ids = ids
        for name, data in parts.items():
            if self._put.get(name) != data:
                put[name] = self._put[name] = data
        sounds = {
            f"sound/{item.id}": item.pcm for item in items if isinstance(item, UserMessage) and item.pcm is not None
        }
        put |= {name: pcm.tobytes() for name, pcm in sounds.items() if name not in self._sounds}
        names = {f"item/{identity}" for identity in ids}
        drop = [name for name in self._put if name.startswith("item/") and name not in names]
        for name in drop:
            del self._put[name]
        drop += self._sounds - sounds.keys()
        self._sounds = set(sounds)
        self._copy_open(put, extend, drop)
        self._copy_events(put, extend)
        return Changes(put, extend, drop)

    def _copy_open(self, put: dict[str, bytes], extend: dict[str, bytes], drop: list[str]) -> None:
        listening = self._session._listening
        utterance, buffer = listening.open, listening._buffer
        if utterance is None:
            if self._open is not None:
                drop.append("open")
            self._open = None
            return
        if self._open != (utterance.number, utterance.start):
            self._open = (utterance.number, utterance.start)
            put["open"] = buffer.read(utterance.start, buffer.end)
        elif buffer.end > self._copied_until:
            extend["open"] = buffer.read(self._copied_until, buffer.end)
        self._copied_until = buffer.end

    def _copy_events(self, put: dict[str, bytes], extend: dict[str, bytes]) -> None:
        sent = self._session._sent
        newer = sent.since(self._newest_event) if sent.edits == self._events_edits else None
        if newer is not None:
            added = b"".join(map(_framed, newer))
            if self._events_size + len(added) <= MAX_EVENTS_PART_BYTES:
                if added:
                    extend["events"] = added
                    self._events_size += len(added)
                    self._newest_event = newer[-1]
                return
        every = sent.since(None) or []
        put["events"] = b"".join(map(_framed, every))
        self._newest_event, self._events_edits = (every[-1] if every else None), sent.edits
        self._events_size = len(put["events"])


# --- out ---


def _encode(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def _head(session: Session) -> Head:
    speaking, listening = session._speaking, session._listening
    answer, mark = speaking.active, session._outbox.mark
    return Head(
        version=VERSION,
        session_id=session.id,
        stem=session._ids.stem,
        count=session._ids.count,
        transport=session._transport,
        expires_unix_s=session._expires_at,
        finest_hz=session._briefing.policy.ceiling_hz,
        last_client_event_id=session._last_client_event_id,
        conversation_id=session._conversation.id,
        order=[item.id for item in session._conversation.items],
        ear=_ear(listening),
        generation=speaking._generation,
        last_response_id=speaking.last_response_id,
        answer=_answer(answer, asked=speaking._asked) if answer is not None else None,
        waiting=[_plan(plan) for plan in speaking._waiting if plan.in_conversation and plan.items is None],
        captions=[
            _CaptionCopy(caption.item.id, caption.seconds, caption.wanted, caption.sent)
            for caption in session._captions._open.values()
        ],
        mark=(mark.item.id if mark.item is not None else None, mark.samples),
        was_quiet=speaking.quiet_since_s is not None,
        prompts=session._turns._prompts,
    )


def _ear(listening: Listening) -> _Ear:
    detector, utterance = listening._detector, listening.open
    fields = {name: getattr(utterance, name) for name in _Open.__struct_fields__} if utterance is not None else None
    return _Ear(
        end=listening._buffer.end,
        uncommitted_from=listening._uncommitted_from,
        last_end=listening._last_end,
        voiced_until=listening._voiced_until,
        count=listening._count,
        phase=detector.phase.value,
        position=detector.position,
        earliest_start=detector._earliest_start,
        loud_windows=detector._loud_windows,
        speech_end=detector._speech_end,
        announced_likely=detector._announced_likely,
        open=_Open(**fields) if fields is not None else None,
    )


def _answer(response: Response, *, asked: bool) -> _Answer:
    return _Answer(
        id=response.id,
        plan=_plan(response.plan),
        item=_item(response.item),
        sample_rate_hz=response.playout.sample_rate_hz,
        previous_item_id=response.previous_item_id,
        server_plays=response.server_plays,
        started=response.started,
        asked=asked,
        text_deltas=response._text_deltas,
    )


def _plan(plan: ResponsePlan) -> JsonObject:
    fields: JsonObject = msgspec.to_builtins(dataclasses.replace(plan, items=None))
    return fields | {"own_items": plan.items is not None}


def _item(item: Item) -> tuple[str, JsonObject]:
    kind = next(name for name, made in _KINDS.items() if isinstance(item, made))
    if isinstance(item, UserMessage):
        item = dataclasses.replace(item, pcm=None)
    return kind, msgspec.to_builtins(item)


def _framed(sent: Sent) -> bytes:
    """An event that is made when it is asked for is too large to be copied: whoever goes on knows that it was sent."""
    is_made = isinstance(sent.data, bytes)
    data = sent.data if isinstance(sent.data, bytes) else b""
    item_id = sent.mark.item.id if sent.mark.item is not None else None
    copied = _SentCopy(sent.event_id, data, item_id, sent.mark.samples, sent.is_sound, sent.repeats and is_made)
    payload = msgspec.msgpack.encode(copied)
    return _SIZE.pack(len(payload)) + payload


# --- in ---


def read_head(parts: Mapping[str, bytes]) -> tuple[Head, SessionSettings]:
    """What a session must be made with before `restore`. Raises `CopyError`."""
    try:
        head = msgspec.msgpack.decode(parts["head"], type=Head)
        settings = msgspec.msgpack.decode(parts["settings"], type=SessionSettings)
    except (KeyError, msgspec.DecodeError) as error:
        raise CopyError(f"this is no copy of a session that can be read here: {error}") from error
    if head.version != VERSION:
        raise CopyError(f"the copy was made by another version ({head.version}, not {VERSION})")
    return head, settings


def restore(session: Session, head: Head, parts: Mapping[str, bytes], after: str, clock: Clock) -> None:
    """Makes of a new session, with ids of `head.stem`, the one that was copied; nobody is connected to it and it has no
    worker. `after`: the event that its client has received last; where it is newer than the copy, the copy's last one
    stands for it, and the answer at hand is taken for one that was heard. Raises `CopyError`."""
    try:
        _Restoring(session, head, parts, clock).run(after)
    except (KeyError, TypeError, ValueError, StopIteration, struct.error, msgspec.DecodeError) as error:
        raise CopyError(f"the copy of {head.session_id} cannot be read: {error!r}") from error


class _Restoring:
    def __init__(self, session: Session, head: Head, parts: Mapping[str, bytes], clock: Clock) -> None:
        self._session = session
        self._head = head
        self._parts = parts
        self._clock = clock
        self._known: dict[str, Item] = {}

    def run(self, after: str) -> None:
        session, head = self._session, self._head
        session.id = head.session_id
        session._last_client_event_id = head.last_client_event_id
        session._expires_at = head.expires_unix_s
        session._expires_s = self._clock.now_s() + head.expires_unix_s - self._clock.unix_s()
        session._turns._prompts = head.prompts
        is_newer = self._is_newer(after)
        session._ids.skip_to(head.count + IDS_AHEAD)
        self._conversation()
        self._answer(is_newer)
        self._ear()
        self._captions()
        self._events(after if is_newer else None)
        session.leave()

    def _is_newer(self, event_id: str) -> bool:
        """Whether the process before has sent it after its last copy."""
        number = Ids(self._head.stem).number(event_id)
        return number is not None and self._head.count < number <= self._head.count + IDS_AHEAD

    def _conversation(self) -> None:
        conversation = self._session._conversation
        conversation.id = self._head.conversation_id
        for identity in self._head.order:
            kind, fields = msgspec.msgpack.decode(self._parts[f"item/{identity}"], type=tuple[str, JsonObject])
            item = _restored_item(kind, fields)
            sound = self._parts.get(f"sound/{identity}")
            if isinstance(item, UserMessage) and sound is not None:
                item.pcm = _samples(sound)
            self._known[item.id] = item
            conversation.add(item)

    def _answer(self, is_newer: bool) -> None:
        speaking, copied = self._session._speaking, self._head.answer
        speaking._generation = self._head.generation
        speaking.last_response_id = self._head.last_response_id
        speaking.quiet_since_s = self._clock.now_s() if self._head.was_quiet else None
        speaking._waiting.extend(_restored_plan(plan) for plan in self._head.waiting)
        if copied is None:
            return
        item = self._known.get(str(copied.item[1]["id"])) or _restored_item(*copied.item)
        assert isinstance(item, AssistantMessage)
        self._known[item.id] = item
        playout = _emptied(copied, item, speaking._config)
        response = Response(
            id=copied.id,
            generation=self._head.generation,
            plan=_restored_plan(copied.plan),
            item=item,
            playout=playout,
            clocked=Clocked(self._clock.now_s()),
            server_plays=copied.server_plays,
            previous_item_id=copied.previous_item_id,
            started=copied.started,
        )
        response._text_deltas = copied.text_deltas
        speaking.active = response
        # As if a worker had been lost: what nobody can have heard of is asked again, everything else has failed.
        speaking._asked = copied.asked or is_newer
        speaking._asked_again = is_newer or bool(copied.plan["own_items"])
        speaking._waiting_since_s = self._clock.now_s()

    def _ear(self) -> None:
        listening, ear = self._session._listening, self._head.ear
        listening._count, listening._last_end = ear.count, ear.last_end
        listening._uncommitted_from, listening._voiced_until = ear.uncommitted_from, ear.voiced_until
        detector = TurnDetector(listening._detector.timing, ear.position)
        detector.phase, detector._earliest_start = Phase(ear.phase), ear.earliest_start
        detector._loud_windows, detector._speech_end = ear.loud_windows, ear.speech_end
        detector._announced_likely = ear.announced_likely
        listening._detector = detector
        listening._buffer.start = ear.end
        if ear.open is None:
            detector.position = ear.end
            return
        copied = ear.open
        sound = _samples(self._parts.get("open", b""))
        listening._buffer.start = copied.start
        listening._buffer.append(sound)
        # What had not been copied yet is lost, as if the network had lost it.
        listening._buffer.append(np.zeros(max(0, ear.position - listening._buffer.end), np.int16))
        fields = {name: getattr(copied, name) for name in _Open.__struct_fields__}
        listening.open = Utterance(**fields, sent=copied.start)
        listening.open.level.hear(sound, voiced=True)

    def _captions(self) -> None:
        captions = self._session._captions
        for copied in self._head.captions:
            item = self._known.get(copied.item_id)
            if isinstance(item, UserMessage):
                begun = tuple(self._session._conversation.beginning_of(item))
                caption = _Caption(item, copied.seconds, copied.wanted, sent=copied.sent, begun=begun)
                captions._open[item.id] = caption

    def _events(self, newer: str | None) -> None:
        sent, data, offset = self._session._sent, self._parts.get("events", b""), 0
        while offset < len(data):
            (size,) = _SIZE.unpack_from(data, offset)
            offset += _SIZE.size + size
            copied = msgspec.msgpack.decode(data[offset - size : offset], type=_SentCopy)
            mark = self._mark(copied.item_id, copied.samples)
            sent.append(
                Sent(copied.event_id, copied.data, len(copied.data), mark, copied.is_sound, repeats=copied.repeats)
            )
        mark = self._mark(*self._head.mark)
        self._session._outbox.mark = mark
        if newer is not None:
            sent.append(Sent(newer, b"", 0, mark, repeats=False))

    def _mark(self, item_id: str | None, samples: int) -> Mark:
        item = self._known.get(item_id) if item_id is not None else None
        return Mark(item, samples) if isinstance(item, AssistantMessage) else Mark()


def _emptied(copied: _Answer, item: AssistantMessage, config: PlayoutConfig) -> Playout:
    """All that was released is released, and nothing waits."""
    playout = Playout(copied.sample_rate_hz, lead_ms=config.lead_ms, slice_ms=config.slice_ms)
    playout.released_samples = playout._pushed_samples = item.audio_samples
    playout._playhead = float(item.audio_samples)
    return playout


def _samples(data: bytes) -> audio.Samples:
    return np.frombuffer(data, dtype="<i2").astype(np.int16)


def _restored_item(kind: str, fields: JsonObject) -> Item:
    converted = dict(fields)
    for name, shape in (("parts", tuple[str, ...]), ("continues", tuple[str, ...]), ("words", list[WordSpan])):
        if name in converted:
            converted[name] = msgspec.convert(converted[name], shape)
    return _KINDS[kind](**converted)  # type: ignore[arg-type]


def _restored_plan(fields: JsonObject) -> ResponsePlan:
    converted = {name: value for name, value in fields.items() if name != "own_items"}
    for side in ("input_rate", "output_rate"):
        converted[side] = msgspec.convert(converted[side], RateDecision)
    converted["format"] = msgspec.convert(converted["format"], AudioFormat)
    converted["tools"] = msgspec.convert(converted["tools"], ToolUse)
    converted["notes"] = msgspec.convert(converted["notes"], tuple[str, ...])
    return ResponsePlan(**converted)  # type: ignore[arg-type]
