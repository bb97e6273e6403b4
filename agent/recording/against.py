"""Plays the client's side of a recorded session to a live server, in real time, and keeps what comes back.

What was said to the session over WebSocket is said again as it was; a call's sound and a telephone's are appended. Ids
of items and responses that the recorded server had given are those of the live server's: the third answer's is the
third answer's, for which a message waits a little. Lost connections are not played, nor are messages that came by other
connections than the client's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import msgspec
import numpy as np

from agent import audio
from agent.json_object import JsonObject
from agent.protocol.formats import format_name
from agent.protocol.order import Order, OutOfOrder
from agent.recording import log
from agent.recording.log import Recording

_CONNECT_S = 15.0
# After the last message and the recording's end: so long nothing must come, and no longer it is waited for.
_QUIET_S, _PATIENCE_S = 1.0, 30.0
# A server may be slower than the recorded one was: so long a message waits for the id in it.
_LATE_S, _LOOK_EVERY_S = 5.0, 0.05
SOUND = ("response.output_audio.delta", "response.output_audio_transcript.delta")
# May come at any time after what they are about.
_FLOATING = ("conversation.item.input_audio_transcription.", "rate_limits.", "output_audio_buffer.", "x_agogic.")


class AgainstError(Exception):
    """The server cannot be played to; the message says why."""


@dataclass(frozen=True)
class Came:
    """An event, so many seconds after the session began."""

    at_s: float
    event: JsonObject

    @property
    def kind(self) -> str:
        return str(self.event.get("type"))


@dataclass
class Played:
    """`out_of_order`: the first event that the protocol does not allow where it came; `closed`: how the server ended
    it, if it did; `unknown_ids` were in messages, and nothing of the live server's answers to them."""

    sent: int = 0
    came: list[Came] = field(default_factory=list)
    out_of_order: str | None = None
    closed: str | None = None
    unknown_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """A message, so many seconds after `session.created`."""

    at_s: float
    message: bytes


def steps(recording: Recording) -> Iterator[Step]:
    """What the client did, in order. Raises `LogError`."""
    header = recording.header
    encoding = format_name(header.settings.audio.input.format)
    resampler = audio.Resampler(header.input_hz or audio.RATE_HZ[encoding], audio.RATE_HZ[encoding])
    began_s = 0.0
    for _, entry in recording.entries():
        call, at_s = entry.call, entry.at - began_s
        if isinstance(call, log.Start):
            began_s = entry.at
        elif isinstance(call, log.Client) and not call.of_others:
            yield Step(at_s, call.written())
        elif isinstance(call, log.Resume) and call.input_hz is not None:
            resampler = audio.Resampler(call.input_hz, audio.RATE_HZ[encoding])
        elif isinstance(call, log.Microphone):
            samples = resampler.push(np.frombuffer(call.written(), "<i2").astype(np.int16, copy=False))
            if samples.size:
                sound = base64.b64encode(audio.encode(samples, encoding)).decode()
                yield Step(at_s, msgspec.json.encode({"type": "input_audio_buffer.append", "audio": sound}))


def recorded_events(recording: Recording) -> Iterator[Came]:
    """What the client was sent then. Raises `LogError`."""
    began_s = 0.0
    for _, entry in recording.entries():
        began_s = entry.at if isinstance(entry.call, log.Start) else began_s
        of_others = isinstance(entry.call, log.Client) and entry.call.of_others
        for out in entry.out:
            event = out.get("event", {"type": "conversation.item.retrieved"} if "large" in out else None)
            if isinstance(event, dict) and not (of_others and out.get("private")):
                yield Came(entry.at - began_s, event)


def skeleton(came: Iterable[Came]) -> list[str]:
    """Types in order, sound and its words as one, without what may come at any time."""
    order: list[str] = []
    for each in came:
        if each.kind.startswith(_FLOATING):
            continue
        kind = "speech" if each.kind in SOUND else each.kind
        if kind != "speech" or not order or order[-1] != kind:
            order.append(kind)
    return order


def texts(came: Iterable[Came]) -> tuple[list[str], list[str]]:
    """What was understood, and what was answered."""
    heard, answered = [], []
    for each in came:
        if each.kind == "conversation.item.input_audio_transcription.completed":
            heard.append(str(each.event.get("transcript")))
        elif each.kind == "response.done":
            found = msgspec.convert(each.event, _Done).response
            parts = [part for item in found.output for part in item.content]
            answered.append(" ".join(part.transcript or part.text or "" for part in parts))
    return heard, answered


class _Part(msgspec.Struct):
    transcript: str | None = None
    text: str | None = None


class _Output(msgspec.Struct):
    content: list[_Part] = []


class _Answer(msgspec.Struct):
    output: list[_Output] = []


class _Done(msgspec.Struct):
    response: _Answer


async def play(recording: Recording, url: str, key: str | None) -> Played:
    """Takes as long as the session took. Raises `AgainstError`, `LogError`."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    wait = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=wait, headers=headers) as http,
            http.ws_connect(address(url), compress=0, max_msg_size=0) as socket,
        ):
            return await _Player(recording, socket).run()
    except aiohttp.WSServerHandshakeError as error:
        hint = "; set --api-key or AGOGIC_API_KEY" if error.status == 401 else ""
        raise AgainstError(f"{url} answers {error.status} {error.message}{hint}") from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise AgainstError(f"{url} cannot be reached: {error or type(error).__name__}") from error


def address(url: str) -> str:
    """Of the Realtime API at a server's address. Raises `AgainstError`."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise AgainstError(f"{url!r} is no address of a server such as http://127.0.0.1:8790")
    if parts.path in ("", "/"):
        return urlunsplit((scheme, parts.netloc, "/v1/realtime", parts.query or "model=agogic", ""))
    return urlunsplit((scheme, *parts[1:4], ""))


class _Player:
    def __init__(self, recording: Recording, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._recording = recording
        self._socket = socket
        self._ids = re.compile(rb"\b(?:item|resp)_" + re.escape(recording.header.stem).encode() + rb"[0-9a-f]+")
        self._then = _Names()
        self._now = _Names()
        self._order = Order()
        self._played = Played()
        self._began_s = 0.0
        self._last_s = 0.0
        self._answering = False
        self._created = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self) -> Played:
        listening = asyncio.create_task(self._listen())
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._created.wait()
            if not self._over.is_set():
                await self._play()
        except TimeoutError:
            raise AgainstError(f"the server sent no session.created within {_CONNECT_S:g} s") from None
        except ConnectionError:
            await self._ended_within(_QUIET_S)
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
        return self._played

    async def _play(self) -> None:
        wished = self._unlike_created()
        if wished:
            await self._send(msgspec.json.encode({"type": "session.update", "session": {"type": "realtime"} | wished}))
        ends_s = 0.0
        for each in recorded_events(self._recording):
            self._then.learn(each.event)
            ends_s = each.at_s
        for step in steps(self._recording):
            ends_s = max(ends_s, step.at_s)
            if await self._ended_within(self._began_s + step.at_s - time.monotonic()):
                return
            await self._send(await self._translated(step.message))
        await self._ended_within(self._began_s + ends_s - time.monotonic())
        patient_until_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < patient_until_s and not self._over.is_set():
            quiet_s = time.monotonic() - self._last_s
            if quiet_s >= _QUIET_S and not self._answering:
                return
            await self._ended_within(max(0.05, _QUIET_S - quiet_s))

    async def _ended_within(self, seconds: float) -> bool:
        """Waits so long; True as soon as the server has ended it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._over.wait()
        return self._over.is_set()

    async def _send(self, message: bytes) -> None:
        self._played.sent += 1
        self._last_s = time.monotonic()
        await self._socket.send_str(message.decode(errors="replace"))

    async def _listen(self) -> None:
        async for message in self._socket:
            try:
                self._take(msgspec.json.decode(message.data, type=JsonObject))
            except (msgspec.DecodeError, TypeError) as error:
                self._played.out_of_order = self._played.out_of_order or f"a message is no event: {error}"
        self._played.closed = f"{self._socket.close_code}"
        self._over.set()
        self._created.set()

    def _take(self, event: JsonObject) -> None:
        now_s = self._last_s = time.monotonic()
        if not self._created.is_set():
            self._began_s = now_s
            self._created.set()
        came = Came(now_s - self._began_s, event)
        self._played.came.append(came)
        self._now.learn(event)
        self._answering = came.kind == "response.created" or (self._answering and came.kind != "response.done")
        try:
            self._order.take(event)
        except OutOfOrder as error:
            self._played.out_of_order = self._played.out_of_order or str(error)
        except (KeyError, TypeError) as error:
            self._played.out_of_order = self._played.out_of_order or f"{came.kind}: a field is missing: {error}"

    def _unlike_created(self) -> JsonObject:
        """What the recorded session began with and the live one does not."""
        created = self._played.came[0].event.get("session")
        settings: JsonObject = msgspec.json.decode(msgspec.json.encode(self._recording.header.settings))
        has = created if isinstance(created, dict) else {}
        return {name: value for name, value in settings.items() if value is not None and has.get(name) != value}

    async def _translated(self, message: bytes) -> bytes:
        """With the live server's ids in place of the recorded one's; waits a little for those that it has not given."""
        wanted = {found.decode() for found in self._ids.findall(message)}
        patient_until_s = time.monotonic() + _LATE_S
        while unknown := sorted(each for each in wanted if self._live(each) is None):
            if time.monotonic() > patient_until_s or await self._ended_within(_LOOK_EVERY_S):
                self._played.unknown_ids += unknown
                break
        return self._ids.sub(lambda found: (self._live(found[0].decode()) or found[0].decode()).encode(), message)

    def _live(self, identity: str) -> str | None:
        return self._now.at(self._then.place(identity))


class _Names:
    """Ids that a server gave, by what they are of and in which order they came."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = defaultdict(list)

    def learn(self, event: JsonObject) -> None:
        kind, item, response = event.get("type"), event.get("item"), event.get("response")
        if kind == "conversation.item.added" and isinstance(item, dict):
            self._ids[str(item.get("role") or item.get("type"))].append(str(item.get("id")))
        elif kind == "response.created" and isinstance(response, dict):
            self._ids["response"].append(str(response.get("id")))

    def place(self, identity: str) -> tuple[str, int] | None:
        """Of what, and the how manieth."""
        places = ((of, ids.index(identity)) for of, ids in self._ids.items() if identity in ids)
        return next(places, None)

    def at(self, place: tuple[str, int] | None) -> str | None:
        if place is None or place[1] >= len(self._ids[place[0]]):
            return None
        return self._ids[place[0]][place[1]]
