"""A session as bytes: what must be known of it so that another process can go on with it, in parts, so that only what
changed has to be sent.

Kept are the conversation with the user's sound, the open utterance, the settings, the newest events, and of the answer
at hand what was told of it. Not kept is what can be made again or is of no use to anybody else: sound of the answer
that has not left, work that was begun on a guess, and answers outside the conversation.

This module and `agent.dialogue.restoring` know the insides of all that a session is made of; nothing else reaches into
them.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Literal

import msgspec

from agent.dialogue.conversation import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    Item,
    SystemMessage,
    UserMessage,
)
from agent.dialogue.listening import Listening
from agent.dialogue.response import Response, ResponsePlan
from agent.dialogue.sent import Sent
from agent.dialogue.session import Session
from agent.json_object import JsonObject
from agent.protocol.session_object import SessionSettings

VERSION = 1
MAX_EVENTS_PART_BYTES = 3 * 1024 * 1024
_NEWEST, _WHOLE_EVERY = 8, 50
"""So many items are looked at every time, all of them every so many times."""
KINDS: dict[str, type[Item]] = {
    "system": SystemMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
    "call": FunctionCall,
    "result": FunctionCallOutput,
}
SIZE = struct.Struct("<I")


class Changes(msgspec.Struct, frozen=True):
    """Of one session since the last time: parts that are new or another, bytes behind parts, parts that are gone."""

    put: dict[str, bytes] = {}
    extend: dict[str, bytes] = {}
    drop: list[str] = []


class OpenCopy(msgspec.Struct, frozen=True):
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


class EarCopy(msgspec.Struct, frozen=True):
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
    open: OpenCopy | None


class AnswerCopy(msgspec.Struct, frozen=True):
    id: str
    plan: JsonObject
    item: tuple[str, JsonObject]
    sample_rate_hz: int
    previous_item_id: str | None
    server_plays: bool
    started: bool
    asked: bool
    text_deltas: int


class CaptionCopy(msgspec.Struct, frozen=True):
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
    ear: EarCopy
    generation: int
    last_response_id: str
    answer: AnswerCopy | None
    waiting: list[JsonObject]
    captions: list[CaptionCopy]
    mark: tuple[str | None, int]
    was_quiet: bool
    prompts: int


class SentCopy(msgspec.Struct, frozen=True, array_like=True):
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
            CaptionCopy(caption.item.id, caption.seconds, caption.wanted, caption.sent)
            for caption in session._captions._open.values()
        ],
        mark=(mark.item.id if mark.item is not None else None, mark.samples),
        was_quiet=speaking.quiet_since_s is not None,
        prompts=session._turns._prompts,
    )


def _ear(listening: Listening) -> EarCopy:
    detector, utterance = listening._detector, listening.open
    fields = {name: getattr(utterance, name) for name in OpenCopy.__struct_fields__} if utterance is not None else None
    return EarCopy(
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
        open=OpenCopy(**fields) if fields is not None else None,
    )


def _answer(response: Response, *, asked: bool) -> AnswerCopy:
    return AnswerCopy(
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
    kind = next(name for name, made in KINDS.items() if isinstance(item, made))
    if isinstance(item, UserMessage):
        item = dataclasses.replace(item, pcm=None)
    return kind, msgspec.to_builtins(item)


def _framed(sent: Sent) -> bytes:
    """An event that is made when it is asked for is too large to be copied: whoever goes on knows that it was sent."""
    is_made = isinstance(sent.data, bytes)
    data = sent.data if isinstance(sent.data, bytes) else b""
    item_id = sent.mark.item.id if sent.mark.item is not None else None
    copied = SentCopy(sent.event_id, data, item_id, sent.mark.samples, sent.is_sound, sent.repeats and is_made)
    payload = msgspec.msgpack.encode(copied)
    return SIZE.pack(len(payload)) + payload
