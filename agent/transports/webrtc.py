"""`POST /v1/realtime/calls`: WebRTC signalling as OpenAI's API has it, and the servers that help a call through NAT.

A client whose connection was lost offers a new one with `?resume=TOKEN&after=EVENT_ID`: its session moves there when
the data channel opens, and not before, because the path may turn out to be none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import BodyPartReader, hdrs, web

from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError
from agent.protocol.limits import decode_object
from agent.rtc.description import MAX_SDP_BYTES, BadOffer
from agent.server import ice
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized
from agent.server.http import json_error, json_response, overloaded, unauthorized
from agent.server.keeper import ResumeRefused
from agent.server.service import NoCapacity
from agent.transports import call

MAX_SESSION_BYTES = 1024 * 1024


class BadRequest(Exception):
    """The body of a call request cannot be used; `status` is 400, 413 or 415."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


async def create_call(request: web.Request) -> web.Response:
    """An SDP offer (alone, or with a session object in multipart/form-data) in; 201 with the answer out."""
    service = request.app[service_key]
    try:
        returns = "resume" in request.query
        grant = service.auth.return_of(request) if returns else service.auth.authenticate(request)
        offer, settings = await _read_body(request)
        if returns:
            started = await call.resume(request, offer, grant, request.query["resume"], request.query.get("after", ""))
        else:
            started = await call.start(request, offer, grant, settings)
    except (Unauthorized, BadRequest, ProtocolError, NoCapacity, BadOffer, ResumeRefused) as error:
        return refused(error)
    response = web.Response(status=201, body=started.answer.encode(), content_type="application/sdp")
    response.headers[hdrs.LOCATION] = f"/v1/realtime/calls/{started.id}"
    for link in ice.as_links(ice.for_caller(service.config.webrtc, service.clock.unix_s())):
        response.headers.add(hdrs.LINK, link)
    return response


def refused(error: Exception) -> web.Response:
    """What a client is told whose call does not come about. Raises what it does not know."""
    if isinstance(error, Unauthorized):
        return unauthorized(error)
    if isinstance(error, BadRequest):
        return json_error(error.status, str(error), code="invalid_request", param=error.param)
    if isinstance(error, ResumeRefused):
        return json_error(404, str(error), code=error.code, param="resume")
    if isinstance(error, ProtocolError):
        return json_error(400, error.message, code=error.code, param=error.param)
    if isinstance(error, NoCapacity):
        return overloaded(error)
    if isinstance(error, BadOffer):
        return json_error(400, f"Invalid SDP: {error}.", code="invalid_sdp")
    raise error


async def ice_servers(request: web.Request) -> web.Response:
    """What a client's `RTCPeerConnection` needs before it offers; credentials are its own and soon expire."""
    service = request.app[service_key]
    try:
        service.auth.recognise(request)
    except Unauthorized as error:
        return unauthorized(error)
    config, now_unix_s = service.config.webrtc, service.clock.unix_s()
    servers = [ice.as_json(server) for server in ice.for_caller(config, now_unix_s)]
    return json_response({"ice_servers": servers, "expires_at": now_unix_s + config.ice_lifetime_s})


async def hang_up(request: web.Request) -> web.Response:
    service = request.app[service_key]
    try:
        service.auth.recognise(request)
    except Unauthorized as error:
        return unauthorized(error)
    call_id = request.match_info["call_id"]
    runner = service.calls.get(call_id)
    if runner is None:
        return json_error(404, f"No call {call_id!r} is going on.", code="call_not_found")
    runner.disconnect("hung up by request")
    return web.Response(status=200)


async def _read_body(request: web.Request) -> tuple[str, JsonObject | None]:
    """The offer and the session object, if one came along. Raises `BadRequest`."""
    if request.content_type == "application/sdp":
        return text_of(await limited(request.content.read, MAX_SDP_BYTES, "sdp"), "sdp"), None
    if request.content_type != "multipart/form-data":
        raise BadRequest(
            415, f"Content-Type {request.content_type!r} is not served; send application/sdp or multipart/form-data."
        )
    offer: str | None = None
    settings: JsonObject | None = None
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise BadRequest(400, "Nested multipart bodies are not served here.")
            if part.name == "sdp":
                offer = text_of(await limited(part.read_chunk, MAX_SDP_BYTES, "sdp"), "sdp")
            elif part.name == "session":
                settings = _session(await limited(part.read_chunk, MAX_SESSION_BYTES, "session"))
            else:
                await part.release()
    except (ValueError, AssertionError) as error:
        raise BadRequest(400, f"The multipart body cannot be read: {error}.") from error
    if offer is None:
        raise BadRequest(400, "The part 'sdp' is missing.", "sdp")
    return offer, settings


async def limited(read: Callable[[int], Awaitable[bytes]], limit: int, what: str) -> bytes:
    """Reads to the end, in pieces, and gives up beyond `limit` bytes."""
    data = bytearray()
    while piece := await read(65_536):
        data += piece
        if len(data) > limit:
            raise BadRequest(413, f"'{what}' is longer than {limit} bytes.", what)
    return bytes(data)


def text_of(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(400, f"'{what}' is not UTF-8 text.", what) from error


def _session(data: bytes) -> JsonObject:
    try:
        return decode_object(data, "'session'")
    except ProtocolError as error:
        raise BadRequest(400, error.message, "session") from error


def register(app: web.Application) -> None:
    """Adds the call routes to the service's application."""
    app.router.add_post("/v1/realtime/calls", create_call)
    app.router.add_post("/v1/realtime/calls/{call_id}/hangup", hang_up)
    app.router.add_get("/v1/realtime/ice_servers", ice_servers)
