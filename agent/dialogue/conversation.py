"""The conversation as the service keeps it: items in order, and for assistant items what was heard of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np

from agent import audio
from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError
from agent.protocol.items import ClientItem, FunctionCallItem, FunctionCallOutputItem, MessageItem
from agent.turn.silero import SAMPLE_RATE_HZ
from agent.wire import ContextItem, WordSpan

Status = Literal["in_progress", "completed", "incomplete"]

MAX_ITEMS = 2000
# A client's item is sent back twice, every letter as six bytes at the worst: that must fit into what may wait for it.
MAX_ITEM_CHARACTERS = 1024 * 1024
# The history travels whole with every question, and must fit into one message to the worker.
MAX_CONTEXT_CHARACTERS = 400_000
# The user's sound is kept this long, for `conversation.item.retrieve` and for a worker that lost it.
KEPT_AUDIO_SAMPLES = 120 * SAMPLE_RATE_HZ


# Compared by identity: two items are never the same one.
@dataclass(eq=False)
class SystemMessage:
    id: str
    texts: list[str]
    status: Status = "completed"

    def as_dict(self) -> JsonObject:
        return _message(self.id, "system", self.status, [{"type": "input_text", "text": text} for text in self.texts])

    def context(self) -> ContextItem:
        return ContextItem("system", "\n".join(self.texts))


@dataclass(eq=False)
class UserMessage:
    """Typed or spoken. `pcm` is the sound at 16 kHz, `utterance` its number in the worker.

    `parts` are ids of items that became part of this one, because the user went on speaking; `continues` those of
    items that it goes on with, whose sound its utterance begins with although they are items still; `silent` is a turn
    in which nobody was heard, committed so that an answer can follow; `by_mistake` if it was the client that committed
    it; `images`: so many came with it, which nobody looks at.
    """

    id: str
    texts: list[str] = field(default_factory=list)
    spoken: bool = False
    utterance: int | None = None
    pcm: audio.Samples | None = None
    transcript: str | None = None
    status: Status = "completed"
    parts: tuple[str, ...] = ()
    continues: tuple[str, ...] = ()
    silent: bool = False
    by_mistake: bool = False
    images: int = 0

    def as_dict(self) -> JsonObject:
        return _message(self.id, "user", self.status, self._content())

    def with_audio(self, sound: msgspec.Raw) -> JsonObject:
        """For `conversation.item.retrieved`; `sound` is the JSON of what `pcm` sounds like."""
        parts = self._content()
        parts[-1]["audio"] = sound
        return _message(self.id, "user", self.status, parts)

    def context(self) -> ContextItem:
        return ContextItem("user", self.words, self.utterance)

    @property
    def words(self) -> str:
        """What it says, as far as that is known."""
        return "\n".join(filter(None, [*self.texts, self.transcript or ""]))

    def _content(self) -> list[JsonObject]:
        parts: list[JsonObject] = [{"type": "input_text", "text": text} for text in self.texts]
        parts.extend({"type": "input_image"} for _ in range(self.images))
        if self.spoken:
            parts.append({"type": "input_audio", "transcript": self.transcript})
        return parts


@dataclass(eq=False)
class AssistantMessage:
    """What the agent said. `words` carry their times; `heard_samples` is where the listener stopped it, if he did.

    `withdrawn`: it answered half a turn and was taken back before anybody could have reacted to it. `aside`: it asked
    back because nobody had spoken. The model is told of neither: of a small one's memory it would cost the order.
    `given`: its text was the client's, so it answers nothing.
    """

    id: str
    modality: Literal["audio", "text"]
    text: str = ""
    words: list[WordSpan] = field(default_factory=list)
    sample_rate_hz: int = 24_000
    audio_samples: int = 0
    heard_samples: int | None = None
    opened: bool = False
    withdrawn: bool = False
    aside: bool = False
    given: bool = False
    status: Status = "in_progress"

    @property
    def part(self) -> JsonObject:
        """As a content part of a response (`text`, `audio`)."""
        if self.modality == "text":
            return {"type": "text", "text": self.text}
        return {"type": "audio", "transcript": self.text}

    def as_dict(self) -> JsonObject:
        if not self.opened:
            return _message(self.id, "assistant", self.status, [])
        content: JsonObject = {"type": f"output_{self.modality}"}
        content["text" if self.modality == "text" else "transcript"] = self.text
        return _message(self.id, "assistant", self.status, [content])

    def context(self) -> ContextItem:
        return ContextItem("assistant", "" if self.withdrawn or self.aside else self.heard_text())

    def heard_text(self) -> str:
        """The words of which at least half was heard; everything where nobody interrupted."""
        if self.heard_samples is None or not self.words:
            return self.text if self.heard_samples != 0 else ""
        heard = self.heard_samples
        return join_words([word for word in self.words if word.start_sample + word.end_sample <= 2 * heard])

    @property
    def answers_nothing(self) -> bool:
        """Whether what was said before it is still to be answered."""
        return self.given or self.withdrawn or not self.heard_text()

    def truncate(self, audio_end_ms: int) -> int:
        """Cuts to what was heard, clamped to what exists; returns the position in ms that is now in effect."""
        end_ms = min(audio_end_ms, -(-self.audio_samples * 1000 // self.sample_rate_hz))
        self.heard_samples = min(end_ms * self.sample_rate_hz // 1000, self.audio_samples)
        if self.heard_samples < self.audio_samples:
            self.audio_samples = self.heard_samples
            self.text = self.heard_text()
            if self.status == "completed":
                self.status = "incomplete"
        return end_ms


@dataclass(eq=False)
class FunctionCall:
    """`arguments` is JSON as text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"

    def as_dict(self) -> JsonObject:
        head: JsonObject = {"id": self.id, "object": "realtime.item", "type": "function_call", "status": self.status}
        return head | {"name": self.name, "call_id": self.call_id, "arguments": self.arguments}

    def context(self) -> ContextItem:
        return ContextItem("call", self.arguments, name=self.name)


@dataclass(eq=False)
class FunctionCallOutput:
    """`name` is that of the function whose call it answers."""

    id: str
    call_id: str
    output: str
    name: str = ""

    def as_dict(self) -> JsonObject:
        head: JsonObject = {
            "id": self.id,
            "object": "realtime.item",
            "type": "function_call_output",
            "status": "completed",
        }
        return head | {"call_id": self.call_id, "output": self.output}

    def context(self) -> ContextItem:
        return ContextItem("result", self.output, name=self.name)


Item = SystemMessage | UserMessage | AssistantMessage | FunctionCall | FunctionCallOutput


def join_words(words: list[WordSpan]) -> str:
    return "".join(spaced(word.text, first=index == 0) for index, word in enumerate(words))


def spaced(word: str, *, first: bool) -> str:
    """Words are separated by one space, whether or not they carry it themselves."""
    return word.strip() if first else " " + word.strip()


def item_from_client(parsed: ClientItem, new_id: str, pcm: audio.Samples | None, called: str = "") -> Item:
    """`pcm` is the sound of the message's `input_audio` parts at 16 kHz, None if it has none; `called`: the function
    whose result it is."""
    identity = parsed.id or new_id
    if isinstance(parsed, FunctionCallItem):
        return FunctionCall(identity, parsed.call_id or f"call_{new_id}", parsed.name, parsed.arguments)
    if isinstance(parsed, FunctionCallOutputItem):
        return FunctionCallOutput(identity, parsed.call_id, parsed.output, called)
    return _message_from_client(parsed, identity, pcm)


def _message_from_client(parsed: MessageItem, identity: str, pcm: audio.Samples | None) -> Item:
    texts = [part.text for part in parsed.content if part.text is not None]
    if parsed.role == "system":
        return SystemMessage(identity, texts)
    if parsed.role == "assistant":
        texts = [said for part in parsed.content if (said := part.text or part.transcript) is not None]
        return AssistantMessage(identity, "text", text="\n".join(texts), opened=True, status="completed")
    transcripts = [part.transcript for part in parsed.content if part.transcript]
    transcript = " ".join(transcripts) or None
    images = sum(part.type == "input_image" for part in parsed.content)
    return UserMessage(identity, texts, spoken=pcm is not None, pcm=pcm, transcript=transcript, images=images)


def _message(identity: str, role: str, status: Status, content: list[JsonObject]) -> JsonObject:
    head: JsonObject = {"id": identity, "object": "realtime.item", "type": "message", "role": role}
    return head | {"status": status, "content": content}


def _ids(item: Item) -> tuple[str, ...]:
    return (item.id, *item.parts) if isinstance(item, UserMessage) else (item.id,)


class Conversation:
    """Items by order and by id. Bound: `MAX_ITEMS`; then the oldest leave silently, as with a rolling context."""

    def __init__(self, identity: str) -> None:
        self.id = identity
        self.items: list[Item] = []
        self._by_id: dict[str, Item] = {}
        self._calls: dict[str, FunctionCall] = {}

    def find(self, item_id: str) -> Item | None:
        """The item, or the one that it became part of."""
        return self._by_id.get(item_id)

    def call(self, call_id: str) -> FunctionCall | None:
        """The call with this `call_id`."""
        return self._calls.get(call_id)

    def beginning_of(self, item: UserMessage) -> list[UserMessage]:
        """The items that it goes on with and that are still there, in order."""
        found = map(self.find, item.continues)
        return [earlier for earlier in found if isinstance(earlier, UserMessage)]

    def sound_of(self, item: UserMessage) -> audio.Samples:
        """All that its utterance holds, at 16 kHz: what it goes on with, and its own."""
        parts = [*(earlier.pcm for earlier in self.beginning_of(item)), item.pcm]
        return np.concatenate([pcm for pcm in parts if pcm is not None])

    def of_utterance(self, utterance: int) -> UserMessage | None:
        """The item that was spoken so."""
        spoken = (item for item in reversed(self.items) if isinstance(item, UserMessage))
        return next((item for item in spoken if item.utterance == utterance), None)

    def previous_id(self, item: Item) -> str | None:
        """Id of the item before, None for the first."""
        # Most questions are about the newest one.
        index = len(self.items) - 1 if item is self.items[-1] else self.items.index(item)
        return self.items[index - 1].id if index else None

    def add(self, item: Item, previous_item_id: str | None = None) -> str | None:
        """Inserts after `previous_item_id` ("root" = at the front, None = at the end); returns the id before it.

        Raises `ProtocolError` for an id that exists already and for a predecessor that does not.
        """
        if self.find(item.id) is not None:
            raise ProtocolError("invalid_value", f"An item with id {item.id} exists already.", param="item.id")
        before = None
        if previous_item_id not in (None, "root"):
            before = self.find(previous_item_id)
            if before is None:
                raise ProtocolError(
                    "invalid_value", f"No such item: {str(previous_item_id)[:100]}", param="previous_item_id"
                )
        if len(self.items) >= MAX_ITEMS:
            self.remove(self.items[1 if before is self.items[0] else 0])
        if previous_item_id is None:
            self.items.append(item)
        else:
            self.items.insert(0 if before is None else self.items.index(before) + 1, item)
        self._by_id |= dict.fromkeys(_ids(item), item)
        if isinstance(item, FunctionCall):
            self._calls[item.call_id] = item
        if isinstance(item, UserMessage) and item.pcm is not None:
            self.forget_audio(KEPT_AUDIO_SAMPLES)
        return self.previous_id(item)

    def after(self, item: Item) -> list[Item]:
        return self.items[self.items.index(item) + 1 :]

    def remove(self, item: Item) -> None:
        self.items.remove(item)
        for identity in _ids(item):
            # An id that this item stood for may have been given to another since.
            if self._by_id.get(identity) is item:
                del self._by_id[identity]
        if isinstance(item, FunctionCall) and self._calls.get(item.call_id) is item:
            del self._calls[item.call_id]

    def clear(self) -> None:
        for item in tuple(self.items):
            self.remove(item)

    def held_bytes(self) -> int:
        """Texts and sound of all items, about."""
        return sum(map(_held_bytes, self.items))

    def forget_audio(self, but_samples: int) -> None:
        """Keeps the newest sound, so much of it, and in any case the last item's."""
        kept = 0
        for item in reversed(self.items):
            if isinstance(item, UserMessage) and item.pcm is not None:
                kept += item.pcm.size
                if kept > but_samples and item is not self.items[-1]:
                    item.pcm = None


def text_length(item: Item) -> int:
    """Characters of what it says, of whichever kind."""
    match item:
        case SystemMessage():
            return sum(map(len, item.texts))
        case UserMessage():
            return sum(map(len, item.texts)) + len(item.transcript or "")
        case AssistantMessage():
            return len(item.text)
        case FunctionCall():
            return len(item.name) + len(item.arguments)
        case FunctionCallOutput():
            return len(item.output)


def _held_bytes(item: Item) -> int:
    sound = item.pcm.nbytes if isinstance(item, UserMessage) and item.pcm is not None else 0
    return sound + text_length(item)


def context_of(items: list[Item]) -> list[ContextItem]:
    """What the model is told: messages that say something, calls of functions and what they gave.

    A turn that went on in another item is told as one. Of a conversation longer than `MAX_CONTEXT_CHARACTERS` the
    newest part.
    """
    context: list[ContextItem] = []
    room = MAX_CONTEXT_CHARACTERS
    known = {item.id: item for item in items if isinstance(item, UserMessage)}
    told: set[str] = set()
    for item in reversed(items):
        if item.id in told:
            continue
        entry = item.context()
        if isinstance(item, UserMessage) and item.continues:
            told |= set(item.continues)
            begun = [known[identity].words for identity in item.continues if identity in known]
            entry = ContextItem("user", " ".join(filter(None, [*begun, entry.text])), entry.utterance)
        room -= len(entry.text)
        if room < 0:
            break
        if entry.text or entry.utterance is not None or entry.role == "result":
            context.append(entry)
    return context[::-1]
