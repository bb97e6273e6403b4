"""What came of a call into a session, as JSON that can be written down and compared.

    {"event": {…}, "private": true, "sound": "4800 bytes 8c6f…"}     an event for the client
    {"large": true}                                                  an event that takes long to make: a retrieved item
    {"worker": ["AudioIn", …], "sound": "6400 bytes 01ab…"}          a message for the worker
    {"clear_playback": true}, {"close": 1008, "reason": "…"}
    {"pulled": "960 bytes 55d0…", "generation": 3, "end_sample": 480}
    {"id": "event_…"}, {"raised": "ValueError: …"}

Sound is left out of all of them: its length stands beside, and a digest where sound is compared at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from agent.dialogue.effects import ClearPlayback, Close, Effect, SendEvent, SendLarge, ToWorker
from agent.dialogue.speaking import Speech
from agent.json_object import JsonObject
from agent.wire import AudioIn

_DELTA = b'"response.output_audio.delta"'


@dataclass(frozen=True)
class Pulled:
    """Sound that the transport took, s16le; `speech` where it says whose it is."""

    pcm: bytes
    speech: Speech | None = None


@dataclass(frozen=True)
class Outcome:
    effects: tuple[Effect, ...] = ()
    pulled: Pulled | None = None
    event_id: str | None = None
    raised: str | None = None

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        return 200 + sum(len(effect.data) for effect in self.effects if isinstance(effect, SendEvent))


def as_json(outcome: Outcome, *, sound: bool) -> list[JsonObject]:
    """Without `sound` what depends on how loud somebody speaks, and nothing else, is not there: pieces of the sound on
    its way to the worker."""
    return [*_of_effects(outcome.effects, sound), *_of_rest(outcome, sound)]


def without_digests(out: Iterable[JsonObject]) -> list[JsonObject]:
    """Sound by its length alone."""
    short = [{name: _length(value) if name in ("sound", "pulled") else value for name, value in o.items()} for o in out]
    return short


def _of_effects(effects: tuple[Effect, ...], sound: bool) -> Iterator[JsonObject]:
    for effect in effects:
        if isinstance(effect, SendEvent):
            event: JsonObject = msgspec.json.decode(effect.data)
            found: JsonObject = {"event": event}
            if _DELTA in effect.data and isinstance(delta := event.pop("delta", None), str):
                found["sound"] = _named(delta.encode(), len(delta) * 3 // 4 - delta[-2:].count("="), sound)
            yield found | ({"private": True} if effect.private else {})
        elif isinstance(effect, SendLarge):
            yield {"large": True}
        elif isinstance(effect, ToWorker):
            message = effect.message
            if not isinstance(message, AudioIn):
                yield {"worker": msgspec.to_builtins(message)}
            elif sound:
                quiet = msgspec.structs.replace(message, pcm=b"")
                yield {"worker": msgspec.to_builtins(quiet), "sound": _named(message.pcm, len(message.pcm), sound)}
        elif isinstance(effect, ClearPlayback):
            yield {"clear_playback": True}
        elif isinstance(effect, Close):
            yield {"close": effect.code, "reason": effect.reason}


def _of_rest(outcome: Outcome, sound: bool) -> Iterator[JsonObject]:
    pulled = outcome.pulled
    if pulled is not None:
        named: JsonObject = {"pulled": _named(pulled.pcm, len(pulled.pcm), sound)}
        whose = pulled.speech
        yield named | ({"generation": whose.generation, "end_sample": whose.end_sample} if whose is not None else {})
    if outcome.event_id is not None:
        yield {"id": outcome.event_id}
    if outcome.raised is not None:
        yield {"raised": outcome.raised}


def _named(data: bytes, length: int, sound: bool) -> str:
    digest = f" {hashlib.blake2b(data, digest_size=6).hexdigest()}" if sound else ""
    return f"{length} bytes{digest}"


def _length(value: object) -> object:
    return " ".join(value.split(" ")[:2]) if isinstance(value, str) else value
