"""pipecat's SmallWebRTC signalling, by which its clients connect: `POST` and `PATCH /api/offer`, `POST /start`.

The data channel carries RTVI instead of the protocol's events (`agent/protocol/rtvi.py`); all else is a call like any
other. A client whose connection was lost offers anew with the `pc_id` that it has and `restart_pc`, and takes its
session along.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from agent.config import WebRtcConfig
from agent.ids import secret
from agent.protocol.errors import ProtocolError
from agent.protocol.limits import decode_object
from agent.protocol.rtvi import Rtvi, peer_left
from agent.rtc.description import MAX_SDP_BYTES, BadOffer, prepare_offer
from agent.rtc.fragment import MAX_CANDIDATES, BadFragment, Fragment, checked, is_mdns
from agent.rtc.gathering import Network
from agent.server import ice
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized
from agent.server.http import json_error, json_response, unauthorized
from agent.server.keeper import ResumeRefused
from agent.server.service import NoCapacity
from agent.transports import call
from agent.transports.webrtc import MAX_SESSION_BYTES, BadRequest, limited, refused

_MOVED = 4000
_VERSION = importlib.metadata.version("agogic")

JsonObject = dict[str, object]
T = TypeVar("T")


class Wishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`session`: as `POST /v1/realtime/calls` takes it."""

    session: JsonObject | None = None


class Request(msgspec.Struct, frozen=True):
    sdp: str
    type: str = "offer"
    pc_id: str | None = None
    restart_pc: bool | None = None
    request_data: Wishes | None = None
    requestData: Wishes | None = None


class Candidate(msgspec.Struct, frozen=True):
    candidate: str = ""


class Candidates(msgspec.Struct, frozen=True):
    pc_id: str
    candidates: Annotated[list[Candidate], Meta(max_length=MAX_CANDIDATES)]


@dataclass
class Trail:
    """What outlives a connection: how its session is resumed, and what the translation remembers of it."""

    rtvi: Rtvi
    token: str = ""
    after: str = ""


trails_key: web.AppKey[dict[str, Trail]] = web.AppKey("trails", dict)
"""By `pc_id`, of calls whose session is going on or kept."""


class RtviCall(call.Call):
    """A call whose client speaks RTVI."""

    def __init__(self, config: WebRtcConfig, network: Network, resume: call.TakeUp | None, trail: Trail) -> None:
        super().__init__(config, network, resume)
        self.answer = ""
        self._trail = trail

    def send_event(self, event: bytes) -> None:
        said = msgspec.json.decode(event, type=JsonObject)
        self._trail.after = str(said["event_id"])
        extra = said.get("x_agogic")
        if isinstance(extra, dict) and isinstance(resume := extra.get("resume"), dict):
            self._trail.token = str(resume["token"])
        for message in self._trail.rtvi.to_client(said):
            super().send_event(message)

    def peer_message(self, data: str | bytes) -> None:
        events, replies = self._trail.rtvi.to_session(data)
        for reply in replies:
            super().send_event(reply)
        for event in events:
            super().peer_message(event)
        if self._trail.rtvi.is_over:
            super().send_event(peer_left())
            self.hang_up("the client asked the bot to leave")

    def close(self, code: int, reason: str) -> None:
        if code != _MOVED:
            super().send_event(peer_left())
        super().close(code, reason)


async def offer(request: web.Request) -> web.Response:
    """`{sdp, type, pc_id?, restart_pc?, request_data?}` in; the answer `{sdp, type, pc_id}` out."""
    service = request.app[service_key]
    try:
        asked = await _read(request, Request, MAX_SESSION_BYTES + 2 * MAX_SDP_BYTES)
        pc_id = asked.pc_id or ""
        known = _known(request, pc_id)
        if known is not None and not asked.restart_pc:
            service.auth.recognise(request)
            await _renegotiate(known, asked.sdp)
            return _answered(known, pc_id)
        trail = _trails(request).get(pc_id)
        if trail is not None and trail.token:
            trail = dataclasses.replace(trail)
            grant = service.auth.return_of(request)
            started = await call.resume(request, asked.sdp, grant, trail.token, trail.after, kind=_kind(trail))
        else:
            grant = service.auth.authenticate(request)
            wishes = asked.request_data or asked.requestData or Wishes()
            trail = Trail(Rtvi(_VERSION, service.clock.unix_s))
            started = await call.start(request, asked.sdp, grant, wishes.session, kind=_kind(trail))
    except (Unauthorized, BadRequest, ProtocolError, NoCapacity, BadOffer, ResumeRefused) as error:
        return refused(error)
    except BadFragment as error:
        return refused(BadOffer(str(error)))
    assert isinstance(started.call, RtviCall)
    started.call.answer = started.answer
    request.app[trails_key][started.id] = trail
    return _answered(started.call, started.id)


async def patch(request: web.Request) -> web.Response:
    """Candidates that came later."""
    try:
        request.app[service_key].auth.recognise(request)
        found = await _read(request, Candidates, MAX_SDP_BYTES)
        known = _known(request, found.pc_id)
        if known is None:
            raise BadRequest(404, f"No call {found.pc_id[:40]!r} is going on.", "pc_id")
        values = [checked(each.candidate) for each in found.candidates]
        usable = tuple(value for value in values if value and not is_mdns(value))
        # One of the empty ones comes for each media line, and only one line is used: none of them is the last word.
        await known.peer.trickle(Fragment(candidates=usable))
    except (Unauthorized, BadRequest, ProtocolError) as error:
        return refused(error)
    except BadFragment as error:
        return json_error(422, f"Invalid candidates: {error}.", code="invalid_candidates", param="candidates")
    return json_response({"status": "success"})


async def start(request: web.Request) -> web.Response:
    """What `startBot` asks for: a name for the session to come, and the servers that help a call through NAT."""
    service = request.app[service_key]
    try:
        service.auth.recognise(request)
    except Unauthorized as error:
        return unauthorized(error)
    config = service.config.webrtc
    servers = [ice.as_json(server) for server in ice.for_caller(config, service.clock.unix_s())]
    return json_response({"sessionId": secret("rtvi"), "iceConfig": {"iceServers": servers}})


def _kind(trail: Trail) -> call.Kind:
    return lambda config, network, take_up: RtviCall(config, network, take_up, trail)


def _trails(request: web.Request) -> dict[str, Trail]:
    """Without those whose session is over."""
    trails, known = request.app[trails_key], request.app[service_key].calls
    for pc_id in [pc_id for pc_id in trails if pc_id not in known]:
        del trails[pc_id]
    return trails


async def _read(request: web.Request, kind: type[T], limit: int) -> T:
    """The body. Raises `BadRequest`, or `ProtocolError`."""
    data = await limited(request.content.read, limit, "body")
    try:
        return msgspec.convert(decode_object(data, "The body"), kind)
    except msgspec.ValidationError as error:
        raise BadRequest(400, f"The body is not what this endpoint takes: {error}.") from error


def _known(request: web.Request, pc_id: str) -> RtviCall | None:
    found = request.app[call.calls_key].live.get(pc_id)
    return found if isinstance(found, RtviCall) and not found.is_over else None


async def _renegotiate(known: RtviCall, sdp: str) -> None:
    """The same connection is offered again, with candidates that were found since. Raises `BadOffer`."""
    if f"a=ice-ufrag:{known.peer.remote_ufrag}" not in prepare_offer(sdp).text:
        raise BadOffer("it restarts ICE, which needs restart_pc")
    lines = (line.removeprefix("a=candidate:") for line in sdp.splitlines() if line.startswith("a=candidate:"))
    values = [checked(value) for value in lines]
    await known.peer.trickle(Fragment(candidates=tuple(value for value in values if value and not is_mdns(value))))


def _answered(made: RtviCall, pc_id: str) -> web.Response:
    return json_response({"sdp": made.answer, "type": "answer", "pc_id": pc_id})


def register(app: web.Application) -> None:
    """Adds the routes, and room for what outlives a connection, to the service's application."""
    app[trails_key] = {}
    app.router.add_post("/start", start)
    app.router.add_post("/api/offer", offer)
    app.router.add_patch("/api/offer", patch)
    app.router.add_post("/sessions/{session}/api/offer", offer)
    app.router.add_patch("/sessions/{session}/api/offer", patch)
