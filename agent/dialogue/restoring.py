"""A session made of the parts of another process's: `agent.dialogue.copying`, the other way round."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgspec
import numpy as np

from agent import audio
from agent.clock import Clock
from agent.config import PlayoutConfig
from agent.dialogue.captions import _Caption
from agent.dialogue.conversation import AssistantMessage, Item, UserMessage
from agent.dialogue.copying import KINDS, SIZE, VERSION, AnswerCopy, Head, OpenCopy, SentCopy
from agent.dialogue.listening import Utterance
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

IDS_AHEAD = 4096
"""Ids that the process before may have used after its last copy: none of them is made again."""


class CopyError(Exception):
    """These parts are not those of a session that this version can go on with."""


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
        fields = {name: getattr(copied, name) for name in OpenCopy.__struct_fields__}
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
            (size,) = SIZE.unpack_from(data, offset)
            offset += SIZE.size + size
            copied = msgspec.msgpack.decode(data[offset - size : offset], type=SentCopy)
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


def _emptied(copied: AnswerCopy, item: AssistantMessage, config: PlayoutConfig) -> Playout:
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
    return KINDS[kind](**converted)  # type: ignore[arg-type]


def _restored_plan(fields: JsonObject) -> ResponsePlan:
    converted = {name: value for name, value in fields.items() if name != "own_items"}
    for side in ("input_rate", "output_rate"):
        converted[side] = msgspec.convert(converted[side], RateDecision)
    converted["format"] = msgspec.convert(converted["format"], AudioFormat)
    converted["tools"] = msgspec.convert(converted["tools"], ToolUse)
    converted["notes"] = msgspec.convert(converted["notes"], tuple[str, ...])
    return ResponsePlan(**converted)  # type: ignore[arg-type]
