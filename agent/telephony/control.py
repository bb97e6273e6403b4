"""`POST /v1/realtime/calls/{id}/accept | reject | refer`, as OpenAI's SIP calls have them.

An application that got the webhook `realtime.call.incoming` decides here; the side-band WebSocket `?call_id=` and
`hangup` are the same as for any other call.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta
from sipmessage import URI

from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError, from_validation
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized
from agent.server.http import json_error, json_response, unauthorized
from agent.server.service import NoCapacity
from agent.telephony.sip_line import NoPort
from agent.telephony.sip_server import Decision, NotAnswered, SipServer

MAX_BODY_BYTES = 1024 * 1024

sip_server_key: web.AppKey[SipServer] = web.AppKey("sip_server", SipServer)


class Reject(msgspec.Struct, frozen=True):
    status_code: Annotated[int, Meta(ge=300, le=699)] = 603


class Dial(msgspec.Struct, frozen=True):
    to: str
    session: JsonObject | None = None


class Refer(msgspec.Struct, frozen=True):
    target_uri: str


async def accept(request: web.Request) -> web.Response:
    """The body is a session object."""
    try:
        settings = msgspec.json.decode(await _body(request) or b"{}", type=JsonObject)
        request.app[service_key].settings(settings)
        return _decide(request, Decision(settings))
    except _REFUSED as error:
        return _refusal(error)


async def reject(request: web.Request) -> web.Response:
    try:
        wanted = msgspec.json.decode(await _body(request) or b"{}", type=Reject)
        return _decide(request, Decision(status=wanted.status_code))
    except _REFUSED as error:
        return _refusal(error)


async def refer(request: web.Request) -> web.Response:
    """Hands the caller over: `{"target_uri": "tel:+1…"}` or a `sip:` URI."""
    try:
        wanted = msgspec.json.decode(await _body(request), type=Refer)
        target = URI.parse(wanted.target_uri)
        asked = request.app[sip_server_key].refer(request.match_info["call_id"], target)
    except _REFUSED as error:
        return _refusal(error)
    except ValueError:
        return json_error(400, "'target_uri' must be a tel: or sip: URI.", code="invalid_value", param="target_uri")
    if asked is None:
        return _unknown(request)
    if not asked:
        return json_error(409, "The call is not up yet; accept it first.", code="call_not_up")
    return web.Response(status=200)


async def dial(request: web.Request) -> web.Response:
    """`{"to": "sip:…", "session": {…}}`: the agent calls. Answers once somebody has taken the call, or nobody."""
    service = request.app[service_key]
    try:
        wanted = msgspec.json.decode(await _body(request), type=Dial)
        target = URI.parse(wanted.to)
        if wanted.session is not None:
            service.settings(wanted.session)
        call_id = await request.app[sip_server_key].dial(target, wanted.session)
    except _REFUSED as error:
        return _refusal(error)
    except (NoCapacity, NoPort) as error:
        return json_error(503, str(error), code="server_overloaded", type="server_error")
    except NotAnswered as error:
        return json_error(502, f"The call was not answered: {error}.", code="call_not_answered", type="server_error")
    except ValueError:
        return json_error(400, "'to' must be a sip: or tel: URI.", code="invalid_value", param="to")
    return json_response({"call_id": call_id}, 201)


async def _body(request: web.Request) -> bytes:
    request.app[service_key].auth.authenticate(request)
    body = await request.content.read(MAX_BODY_BYTES + 1)
    while len(body) <= MAX_BODY_BYTES and (more := await request.content.read(MAX_BODY_BYTES)):
        body += more
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError("invalid_value", f"The body may have {MAX_BODY_BYTES} bytes.")
    return body


def _decide(request: web.Request, decision: Decision) -> web.Response:
    live = request.app[sip_server_key].pending(request.match_info["call_id"])
    if live is None:
        return _unknown(request)
    live.decision.set_result(decision)
    return web.Response(status=200)


def _unknown(request: web.Request) -> web.Response:
    call_id = request.match_info["call_id"]
    return json_error(404, f"No SIP call {call_id!r} waits for this.", code="call_not_found")


_REFUSED = (Unauthorized, ProtocolError, msgspec.DecodeError, UnicodeDecodeError)


def _refusal(error: Exception) -> web.Response:
    if isinstance(error, Unauthorized):
        return unauthorized(error)
    if isinstance(error, msgspec.ValidationError):
        error = from_validation(error)
    if isinstance(error, ProtocolError):
        return json_error(400, error.message, code=error.code, param=error.param)
    return json_error(400, f"The body is not valid JSON: {error}.", code="invalid_json")


def register(app: web.Application, addresses: list[str]) -> None:
    """Opens the SIP port when the application starts, where the configuration names one."""
    service = app[service_key]
    config = service.config.telephony.sip
    if config.port is None:
        return
    server = app[sip_server_key] = SipServer(config, service)

    async def start(app: web.Application) -> None:
        host, port = await server.start()
        addresses.append(f"sip {host}:{port}")

    async def stop(app: web.Application) -> None:
        await server.stop()

    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    app.router.add_post("/telephony/sip/calls", dial)
    for verb, handler in (("accept", accept), ("reject", reject), ("refer", refer)):
        app.router.add_post(f"/v1/realtime/calls/{{call_id}}/{verb}", handler)
