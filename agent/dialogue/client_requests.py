"""Reading what a client asks for: the parameters of a response, and the sound inside an item.

`read_message` does what costs time and needs nothing of the session, so a shell may let another thread do it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from msgspec import UnsetType

from agent import audio
from agent.audio import AudioFormatError
from agent.config import Rate
from agent.dialogue.conversation import KEPT_AUDIO_SAMPLES, Conversation, Item, item_from_client
from agent.dialogue.rates import RateDecision, RatePolicy
from agent.dialogue.response import ResponsePlan
from agent.dialogue.tool_use import name_of_call, tool_use
from agent.ids import Ids
from agent.protocol.client_events import (
    ClientEvent,
    ItemCreate,
    ResponseCreate,
    ResponseExtensions,
    ResponseParams,
    SessionUpdate,
    decode_client_event,
)
from agent.protocol.errors import ProtocolError
from agent.protocol.formats import AudioFormat, format_name
from agent.protocol.items import (
    ClientItem,
    FunctionCallOutputItem,
    ItemReference,
    MessageItem,
    parse_input,
    parse_item,
)
from agent.protocol.session_object import SessionSettings, check_session_size
from agent.turn.silero import SAMPLE_RATE_HZ


@dataclass(frozen=True)
class ReadItem:
    """An item as the client sent it, with its sound at 16 kHz."""

    parsed: ClientItem
    pcm: audio.Samples | None


@dataclass(frozen=True)
class ReadMessage:
    """`items` are those that the event brings along: the one to be created, or the input of a response."""

    event: ClientEvent
    items: tuple[ReadItem | ItemReference, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a client sent, and what it says, or why it says nothing."""

    data: str | bytes
    outcome: ReadMessage | ProtocolError


def read_message(data: str | bytes, format: AudioFormat) -> ReadMessage:
    """Raises `ProtocolError` with the client's `event_id` where one can be read. `format` is that of the input."""
    event = decode_client_event(data)
    try:
        if isinstance(event, ItemCreate):
            return ReadMessage(event, (_read_item(parse_item(event.item), format, "item"),))
        if isinstance(event, SessionUpdate):
            check_session_size(len(data), "session")
        if isinstance(event, ResponseCreate) and event.response is not None:
            settings = msgspec.structs.replace(event.response, input=None)
            check_session_size(len(msgspec.json.encode(settings)), "response")
        if isinstance(event, ResponseCreate) and event.response is not None and event.response.input is not None:
            return ReadMessage(event, tuple(_read_input(event.response.input, format)))
    except ProtocolError as error:
        error.event_id = event.event_id
        raise
    return ReadMessage(event)


def _read_input(raws: list[dict[str, object]], format: AudioFormat) -> Iterator[ReadItem | ItemReference]:
    for index, raw in enumerate(raws):
        param = f"response.input[{index}]"
        parsed = parse_input(raw, param=param)
        yield parsed if isinstance(parsed, ItemReference) else _read_item(parsed, format, param)


def _read_item(parsed: ClientItem, format: AudioFormat, param: str) -> ReadItem:
    pcm = None
    if isinstance(parsed, MessageItem) and parsed.role == "user":
        pcm = pcm_of_item(parsed, format, param=param)
    return ReadItem(parsed, pcm)


def plan_response(
    params: ResponseParams,
    input: tuple[ReadItem | ItemReference, ...],
    settings: SessionSettings,
    conversation: Conversation,
    policy: RatePolicy,
    ids: Ids,
) -> ResponsePlan:
    """What the client asked for over what the session says; `input` is `params.input` as it was read.

    Raises `ProtocolError` with `param` under `response`.
    """
    in_conversation = params.conversation != "none"
    rates = params.x_agogic if params.x_agogic is not None else ResponseExtensions()
    wishes = settings.x_agogic
    items: list[Item] | None = None
    if params.input is not None:
        items = []
        for index, read in enumerate(input):
            items.append(_input_item(read, f"response.input[{index}]", conversation, ids, items))
    output = settings.audio.output
    return ResponsePlan(
        in_conversation=in_conversation,
        modality=_modality(params.output_modalities or settings.output_modalities),
        instructions=params.instructions if params.instructions is not None else settings.instructions,
        max_output_tokens=params.max_output_tokens or settings.max_output_tokens,
        metadata=params.metadata,
        input_rate=_heard_at(policy, _wish(rates.input_frame_rate), wishes.input_frame_rate),
        output_rate=policy.choose("output", _wish(rates.output_frame_rate), wishes.output_frame_rate),
        items=items,
        format=_output_format(params) or output.format,
        voice=output.voice if isinstance(output.voice, str) else "default",
        conversation_id=conversation.id if in_conversation else None,
        tools=tool_use(params, settings),
        say=rates.say or "",
        instructed=bool(params.instructions),
    )


def _output_format(params: ResponseParams) -> AudioFormat | None:
    sink = params.audio.output if params.audio is not None else None
    return sink.format if sink is not None else None


def pcm_of_item(item: MessageItem, format: AudioFormat, *, param: str) -> audio.Samples | None:
    """The sound of a message's `input_audio` parts at 16 kHz; None where it has none. Raises `ProtocolError`."""
    pieces: list[audio.Samples] = []
    count = 0
    encoding = format_name(format)
    for index, part in enumerate(item.content):
        if part.audio is None:
            continue
        try:
            samples = audio.decode(part.audio, encoding)
        except AudioFormatError as error:
            where = f"{param}.content[{index}].audio"
            raise ProtocolError("invalid_value", f"Invalid value for '{where}': {error}.", param=where) from error
        count += samples.size * SAMPLE_RATE_HZ // audio.RATE_HZ[encoding]
        if count > KEPT_AUDIO_SAMPLES:
            raise ProtocolError(
                "invalid_value",
                f"Invalid value for '{param}.content': an item may hold {KEPT_AUDIO_SAMPLES // SAMPLE_RATE_HZ} s of "
                "sound; send it in several items.",
                param=f"{param}.content",
            )
        pieces.append(audio.resampled(samples, audio.RATE_HZ[encoding], SAMPLE_RATE_HZ))
    return np.concatenate(pieces) if pieces else None


def _input_item(
    read: ReadItem | ItemReference, param: str, conversation: Conversation, ids: Ids, before: list[Item]
) -> Item:
    if isinstance(read, ItemReference):
        found = conversation.find(read.id)
        if found is None:
            raise ProtocolError("invalid_value", f"No such item: {read.id[:100]}", param=f"{param}.id")
        return found
    return new_item(read, conversation, ids, before, param)


def new_item(read: ReadItem, conversation: Conversation, ids: Ids, before: list[Item], param: str) -> Item:
    """An item of a client's; `before` are those that it sent along. Raises `ProtocolError` under `param` for the result
    of a call that nobody made."""
    name = ""
    if isinstance(read.parsed, FunctionCallOutputItem):
        name = name_of_call(conversation, read.parsed, before, param)
    return item_from_client(read.parsed, ids.new("item"), read.pcm, name)


def _modality(modalities: list[Literal["text", "audio"]]) -> Literal["text", "audio"]:
    if set(modalities) == {"text", "audio"}:
        raise ProtocolError(
            "invalid_value",
            "Invalid value for 'response.output_modalities': use ['audio'] (which brings a transcript) or ['text'].",
            param="response.output_modalities",
        )
    return modalities[0]


def _wish(rate: Rate | UnsetType) -> Rate | None:
    return None if isinstance(rate, UnsetType) else rate


def _heard_at(policy: RatePolicy, wish: Rate | None, setting: Rate) -> RateDecision:
    """What was chosen when the utterance began, unless this response asks for something else."""
    heard = policy.chosen("input") if wish is None else None
    return heard or policy.choose("input", wish, setting)
