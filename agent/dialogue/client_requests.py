"""Reading what a client asks for: the parameters of a response, and the sound inside an item."""

from __future__ import annotations

from typing import Literal

import numpy as np
from msgspec import UNSET

from agent import audio
from agent.audio import AudioFormatError
from agent.dialogue.conversation import KEPT_AUDIO_SAMPLES, Conversation, Item, item_from_client
from agent.dialogue.rates import RatePolicy, RateSetting
from agent.dialogue.response import ResponsePlan
from agent.ids import Ids
from agent.protocol.client_events import ResponseParams, ResponseRates
from agent.protocol.errors import ProtocolError
from agent.protocol.formats import AudioFormat, format_name
from agent.protocol.items import ItemReference, MessageItem, parse_input
from agent.protocol.session_object import SessionSettings
from agent.turn.silero import SAMPLE_RATE_HZ


def plan_response(
    params: ResponseParams, settings: SessionSettings, conversation: Conversation, policy: RatePolicy, ids: Ids
) -> ResponsePlan:
    """What the client asked for over what the session says. Raises `ProtocolError` with `param` under `response`."""
    in_conversation = params.conversation != "none"
    rates = params.x_agogic if params.x_agogic is not None else ResponseRates()
    wishes = settings.x_agogic
    items = None
    if params.input is not None:
        items = [
            _input_item(raw, f"response.input[{index}]", settings, conversation, ids)
            for index, raw in enumerate(params.input)
        ]
    output = settings.audio.output
    return ResponsePlan(
        in_conversation=in_conversation,
        modality=_modality(params.output_modalities or settings.output_modalities),
        instructions=params.instructions if params.instructions is not None else settings.instructions,
        max_output_tokens=params.max_output_tokens or settings.max_output_tokens,
        metadata=params.metadata,
        input_rate=policy.choose(_wish(rates.input_frame_rate), wishes.input_frame_rate),
        output_rate=policy.choose(_wish(rates.output_frame_rate), wishes.output_frame_rate),
        items=items,
        format=_output_format(params) or output.format,
        voice=output.voice if isinstance(output.voice, str) else "default",
        conversation_id=conversation.id if in_conversation else None,
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
        resampler = audio.Resampler(audio.RATE_HZ[encoding], SAMPLE_RATE_HZ)
        pieces += [resampler.push(samples), resampler.flush()]
    return np.concatenate(pieces) if pieces else None


def _input_item(
    raw: dict[str, object], param: str, settings: SessionSettings, conversation: Conversation, ids: Ids
) -> Item:
    parsed = parse_input(raw, param=param)
    if isinstance(parsed, ItemReference):
        found = conversation.find(parsed.id)
        if found is None:
            raise ProtocolError("invalid_value", f"No such item: {parsed.id}", param=f"{param}.id")
        return found
    pcm = pcm_of_item(parsed, settings.audio.input.format, param=param) if isinstance(parsed, MessageItem) else None
    return item_from_client(parsed, ids.new("item"), pcm)


def _modality(modalities: list[Literal["text", "audio"]]) -> Literal["text", "audio"]:
    if set(modalities) == {"text", "audio"}:
        raise ProtocolError(
            "invalid_value",
            "Invalid value for 'response.output_modalities': use ['audio'] (which brings a transcript) or ['text'].",
            param="response.output_modalities",
        )
    return modalities[0]


def _wish(rate: object) -> RateSetting | None:
    if rate is UNSET:
        return None
    return "auto" if not isinstance(rate, (int, float)) else float(rate)
