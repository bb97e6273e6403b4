"""Messages between the service process and a worker process: msgpack structs in length-prefixed frames.

The service owns the conversation and sends it whole with every request to respond; the worker keeps only caches.
`session` is the service's number for a leased slot, `utterance` numbers the user's stretches of speech within a
session, and `generation` numbers responses: whatever arrives with a generation older than the current one is dropped.
Audio towards the worker is s16le mono at 16 kHz; audio from it is s16le mono at `Ready.output_sample_rate`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
WIRE_VERSION = 6
INPUT_SAMPLE_RATE = 16_000
CODEC_FRAME_RATE_HZ = 12.5
"""Frames of speech tokens, whose durations count them."""
COARSEST_HZ = 4.0
MAX_FRAME_BYTES = 4 * 1024 * 1024


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of everything that crosses the socket."""


class ContextItem(msgspec.Struct, frozen=True, array_like=True):
    """One earlier turn. `utterance` names encoded audio the worker may still hold; `text` is used where it does not.

    Of a function's call `text` is the arguments, of its result what it gave; `name` is the function's.
    """

    role: Literal["system", "user", "assistant", "call", "result"]
    text: str
    utterance: int | None = None
    name: str = ""


class ToolUse(msgspec.Struct, frozen=True, array_like=True):
    """Functions that an answer may call. `definitions` are JSON objects with `name`, and `description` and `parameters`
    where there are some; `required`: it must call one and say nothing, and if `only` is set, that one; `several`: it
    may call more than one."""

    definitions: tuple[str, ...] = ()
    required: bool = False
    only: str = ""
    several: bool = True


NO_TOOLS = ToolUse()


class Abilities(msgspec.Struct, frozen=True, array_like=True):
    """What a model does with what callers ask for. `instructable`: it follows instructions; `calls`: the functions it
    can call, None if any."""

    instructable: bool = True
    calls: tuple[str, ...] | None = None


class WordSpan(msgspec.Struct, frozen=True, array_like=True):
    """A word of the answer and the output samples [start, end) in which it is heard."""

    text: str
    start_sample: int
    end_sample: int


class TokenSpan(msgspec.Struct, frozen=True, array_like=True):
    """A speech token and how many 12.5 Hz frames it lasts."""

    code: int
    duration_frames: int


# The model's work, in the order in which it is done; `ResponseStats` has the time of each as `{stage}_ms`.
STAGES = ("encode", "prefill", "thinker", "talker", "flow", "vocoder")


class ResponseStats(msgspec.Struct, frozen=True, array_like=True):
    """What one response cost; times in ms since the worker read `Respond`, 0 where a stage never ran."""

    first_text_ms: float = 0.0
    first_token_ms: float = 0.0
    first_audio_ms: float = 0.0
    total_ms: float = 0.0
    encode_ms: float = 0.0
    prefill_ms: float = 0.0
    thinker_ms: float = 0.0
    talker_ms: float = 0.0
    flow_ms: float = 0.0
    vocoder_ms: float = 0.0
    text_tokens: int = 0
    speech_tokens: int = 0
    speech_frames: int = 0
    prompt_positions: int = 0
    input_frames: int = 0
    input_groups: int = 0
    realised_input_hz: float = 0.0
    realised_output_hz: float = 0.0
    requested_output_hz: float = 0.0
    talker_steps: int = 0


# --- service to worker ---


class OpenSession(Message, frozen=True):
    """Lease a slot. Answered by `SessionOpened` or `Refused`. coarsest_hz: answers may be made as coarse as that."""

    session: int
    coarsest_hz: float = COARSEST_HZ


class CloseSession(Message, frozen=True):
    session: int


class StartUtterance(Message, frozen=True):
    """The user began to speak: encode and prefill what follows behind `context` at `input_hz`. followed: somebody reads
    the transcript while it is spoken, so it should not be long in coming. output_hz: the rate that the answer will
    probably have; only a wrong guess costs time."""

    session: int
    utterance: int
    input_hz: float
    context: list[ContextItem]
    instructions: str = ""
    followed: bool = False
    output_hz: float = 12.5
    tools: ToolUse = NO_TOOLS


class AudioIn(Message, frozen=True):
    session: int
    utterance: int
    pcm: bytes


class LikelyEnd(Message, frozen=True):
    """The utterance probably ends with what was sent so far: make ready what its end needs, and say how finished it
    sounds (`EndJudged`, where `Ready.judges_ends`). More audio undoes it."""

    session: int
    utterance: int


class EndUtterance(Message, frozen=True):
    """No more audio for this utterance. Answered by a final `Transcript` and `UtteranceEncoded`; by a model without a
    recogniser the other way round, the `Transcript` when it has time to write one."""

    session: int
    utterance: int


class DropUtterance(Message, frozen=True):
    session: int
    utterance: int


class Respond(Message, frozen=True):
    """Answer `context`, whose last item is what to answer: an utterance that has ended, or probably has; if it goes on
    after all, the answer must be cancelled before it gets more audio. Cancels any older generation of the session.

    `say`: the answer is this text, whatever came before.
    """

    session: int
    generation: int
    context: list[ContextItem]
    output_hz: float
    instructions: str = ""
    speech: bool = True
    max_output_tokens: int = 600
    input_hz: float = 12.5
    tools: ToolUse = NO_TOOLS
    say: str = ""


class Cancel(Message, frozen=True):
    session: int
    generation: int


class Ping(Message, frozen=True):
    """Is anybody there? Answered at once by whoever reads the socket, not by the engine."""

    number: int


# --- worker to service ---


class Ready(Message, frozen=True):
    """First frame of a worker on a new connection."""

    version: int
    model: str
    slots: int
    output_sample_rate: int
    codec_frame_rate_hz: float
    min_rate_hz: float = 4.0
    max_rate_hz: float = 12.5
    judges_ends: bool = False
    abilities: Abilities = Abilities()


class SessionOpened(Message, frozen=True):
    session: int


class Refused(Message, frozen=True):
    session: int
    code: str
    message: str


class Draining(Message, frozen=True):
    """The worker was told to go: it opens no more sessions, goes on with those it has, and ends when they are closed,
    or when it may wait no longer. A connection that is made later hears it behind `Ready`."""


class WorkerLoad(Message, frozen=True):
    """How busy the worker is; sent to every connection, about twice a second while something changes.

    busy: share of the time, more than 1 where it falls behind; at_hz: (rate, share) if all answers had that rate;
    slack_ms: the least time that a listener had in hand since the last message; capacity: how many sessions like those
    that are open would do at the coarsest rate.
    """

    busy: float
    at_hz: list[tuple[float, float]]
    slack_ms: float
    sessions: int
    capacity: int


class Transcript(Message, frozen=True):
    """What was understood so far; `text` is the whole transcript of the utterance, not a delta."""

    session: int
    utterance: int
    text: str
    final: bool


class EndJudged(Message, frozen=True):
    """How finished the utterance sounds where it has probably ended, after so many samples: `certainty` is the share of
    pauses inside turns that sound less finished; `backchannel` the share of short interruptions that sound less like
    "mm-hm", None where the model cannot tell."""

    session: int
    utterance: int
    samples: int
    certainty: float
    backchannel: float | None = None


class UtteranceEncoded(Message, frozen=True):
    """`group_ms`: how long each group is that the frames were merged to, where the worker tells."""

    session: int
    utterance: int
    samples: int
    frames: int
    groups: int
    realised_input_hz: float
    encode_ms: float
    group_ms: list[int] = []


class TextDelta(Message, frozen=True):
    """Text the Thinker wrote, ahead of its sound; the service shows it when it is heard."""

    session: int
    generation: int
    text: str


class AudioOut(Message, frozen=True):
    """A stretch of the answer's sound. `first_sample` counts from the response's first sample; `tokens` are those whose
    last frame is rendered here, `words` those that begin here."""

    session: int
    generation: int
    first_sample: int
    pcm: bytes
    tokens: list[TokenSpan]
    words: list[WordSpan]


class ToolCall(Message, frozen=True):
    """The answer calls a function; `arguments` is a JSON object. It counts once the answer is completed."""

    session: int
    generation: int
    name: str
    arguments: str


class ResponseDone(Message, frozen=True):
    """`code` says why a request failed that cannot be met; it is empty where the worker made a mistake."""

    session: int
    generation: int
    reason: Literal["completed", "max_output_tokens", "cancelled", "failed"]
    text: str
    stats: ResponseStats
    error: str = ""
    code: str = ""


class WorkerError(Message, frozen=True):
    """`session` 0 concerns the worker as a whole; `utterance` names the one that is lost, if it is about one."""

    session: int
    code: str
    message: str
    utterance: int | None = None


class Pong(Message, frozen=True):
    """The process lives. `unit_s`: for how long the engine has been at the unit of work it does now."""

    number: int
    unit_s: float = 0.0


ToEngine = (
    OpenSession | CloseSession | StartUtterance | AudioIn | LikelyEnd | EndUtterance | DropUtterance | Respond | Cancel
)
ToWorker = ToEngine | Ping
FromWorker = (
    Ready
    | SessionOpened
    | Refused
    | Draining
    | WorkerLoad
    | Transcript
    | EndJudged
    | UtteranceEncoded
    | TextDelta
    | AudioOut
    | ToolCall
    | ResponseDone
    | WorkerError
    | Pong
)

_HEADER = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()


class WireError(Exception):
    """The peer broke the framing: the connection must be closed."""


def encode(message: Message) -> bytes:
    """One frame: payload length (uint32, little endian) and msgpack payload."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(
            f"frame of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}; send audio in smaller pieces"
        )
    return _HEADER.pack(len(payload)) + payload


class Decoder(Generic[T]):
    """Payload of a frame to message. Raises `msgspec.DecodeError`, and nothing else, for what is none."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder

    def decode(self, payload: bytes) -> T:
        try:
            return self._decoder.decode(payload)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error


to_worker_decoder: Decoder[ToWorker] = Decoder(msgspec.msgpack.Decoder(ToWorker))
from_worker_decoder: Decoder[FromWorker] = Decoder(msgspec.msgpack.Decoder(FromWorker))


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """Payload of the next frame, or None at a clean end of the stream."""
    try:
        header = await reader.readexactly(_HEADER.size)
    except EOFError as error:  # asyncio's own class: the conversation knows these messages too, and no asyncio
        if getattr(error, "partial", b""):
            raise WireError("the stream ended inside a frame header") from error
        return None
    (size,) = _HEADER.unpack(header)
    if size > MAX_FRAME_BYTES:
        raise WireError(f"peer announced a frame of {size} bytes; the limit is {MAX_FRAME_BYTES}")
    try:
        return await reader.readexactly(size)
    except EOFError as error:
        raise WireError("the stream ended inside a frame") from error
