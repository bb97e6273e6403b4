"""`POST /whip`: WHIP (RFC 9725), used in both directions. The resource of a call is `/whip/{id}`.

An offer that only sends is heard and answered in writing; one that also receives hears the answers on the same media
line. A data channel carries the protocol's events, and so does a WebSocket at `/v1/realtime?call_id={id}`. Candidates
may follow the offer (trickle ICE, RFC 8838), and ICE may be restarted; the ETag names the generation of ICE.
"""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from agent.config import WebRtcConfig
from agent.ids import secret
from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError
from agent.rtc.description import MAX_SDP_BYTES, BadOffer, prepare_offer
from agent.rtc.fragment import MAX_FRAGMENT_BYTES, BadFragment, parse
from agent.rtc.gathering import Network
from agent.rtc.path import NoRestart
from agent.server import ice
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized
from agent.server.http import json_error
from agent.server.service import NoCapacity
from agent.transports import call
from agent.transports.webrtc import BadRequest, limited, refused, text_of

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
ACCEPT_PATCH = "Accept-Patch"
_TAG = re.compile(r'(?:W/)?"([^"]*)"')


class WhipCall(call.Call):
    """`etag` names the generation of ICE, without quotes."""

    def __init__(self, config: WebRtcConfig, network: Network, resume: call.TakeUp | None = None) -> None:
        super().__init__(config, network, resume)
        self.etag = secret("ice")


class Precondition(Exception):
    """`If-Match` is missing (428) or names another generation (412)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def publish(request: web.Request) -> web.Response:
    """An SDP offer in; 201 with the answer, the resource, its ETag and the servers that help through NAT."""
    service = request.app[service_key]
    try:
        grant = service.auth.authenticate(request)
        if request.content_type != SDP:
            raise BadRequest(415, f"Content-Type {request.content_type!r} is not served; send {SDP}.")
        offer = text_of(await limited(request.content.read, MAX_SDP_BYTES, "sdp"), "sdp")
        settings: JsonObject | None = None if prepare_offer(offer).listens else {"output_modalities": ["text"]}
        started = await call.start(request, offer, grant, settings, kind=WhipCall)
    except (Unauthorized, BadRequest, ProtocolError, NoCapacity, BadOffer) as error:
        return refused(error)
    assert isinstance(started.call, WhipCall)
    response = web.Response(status=201, body=started.answer.encode(), content_type=SDP)
    response.headers[hdrs.LOCATION] = f"/whip/{started.id}"
    response.headers[hdrs.ETAG] = f'"{started.call.etag}"'
    response.headers[ACCEPT_PATCH] = FRAGMENT
    for link in ice.as_links(ice.for_caller(service.config.webrtc, service.clock.unix_s())):
        response.headers.add(hdrs.LINK, link)
    return response


async def options(request: web.Request) -> web.Response:
    """RFC 9725, section 4.2: what may be posted, without a key. The servers' credentials are for who has one."""
    # By the methods that a page may use, clients learn whether candidates may follow.
    response = web.Response(status=204, headers={"Accept-Post": SDP, "Allow": "POST, OPTIONS"})
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "POST, PATCH, DELETE, OPTIONS"
    return response


async def patch(request: web.Request) -> web.Response:
    """Candidates that came later (204), or with `If-Match: *` and new credentials a restart of ICE (200)."""
    try:
        found = _found(request)
        if request.content_type != FRAGMENT:
            raise BadRequest(415, f"Content-Type {request.content_type!r} is not served; send {FRAGMENT}.")
        fragment = parse(text_of(await limited(request.content.read, MAX_FRAGMENT_BYTES, "fragment"), "fragment"))
        is_restart = _is_any(request) and bool(fragment.ufrag) and fragment.ufrag != found.peer.remote_ufrag
        if is_restart:
            if not fragment.password:
                raise BadFragment("a restart needs ice-ufrag and ice-pwd")
            answer = await found.peer.restart(fragment)
            found.etag = secret("ice")
            response = web.Response(status=200, body=answer.encode(), content_type=FRAGMENT)
            response.headers[hdrs.ETAG] = f'"{found.etag}"'
            return response
        _check_tag(request, found.etag)
        if fragment.ufrag and fragment.ufrag != found.peer.remote_ufrag:
            raise BadFragment("its ice-ufrag is of another generation; a restart needs If-Match: *")
        await found.peer.trickle(fragment)
    except (Unauthorized, BadRequest) as error:
        return refused(error)
    except Precondition as error:
        return json_error(error.status, str(error), code="precondition_failed")
    except BadFragment as error:
        return json_error(422, f"Invalid fragment: {error}.", code="invalid_fragment")
    except NoRestart as error:
        return json_error(409, f"No restart now: {error}.", code="no_restart")
    return web.Response(status=204)


async def end(request: web.Request) -> web.Response:
    """The client hangs up."""
    try:
        found = _found(request)
    except (Unauthorized, BadRequest) as error:
        return refused(error)
    found.hang_up("the client ended its WHIP session")
    return web.Response(status=200)


def _found(request: web.Request) -> WhipCall:
    """The call that a request is about. Raises `Unauthorized`, or `BadRequest` where there is none (any more)."""
    request.app[service_key].auth.recognise(request)
    found = request.app[call.calls_key].live.get(request.match_info["call_id"])
    if not isinstance(found, WhipCall) or found.is_over:
        raise BadRequest(404, f"No WHIP session {request.match_info['call_id'][:40]!r} is going on.")
    return found


def _is_any(request: web.Request) -> bool:
    return request.headers.get(hdrs.IF_MATCH, "").strip() == "*"


def _check_tag(request: web.Request, etag: str) -> None:
    """Raises `Precondition`."""
    # Clients written to early drafts send the tag as ETag.
    offered = request.headers.get(hdrs.IF_MATCH) or request.headers.get(hdrs.ETAG)
    if offered is None:
        raise Precondition(428, "Send If-Match with the ETag of this session.")
    if offered.strip() != "*" and etag not in _TAG.findall(offered):
        raise Precondition(412, "ICE has been restarted since; send If-Match with the newest ETag.")


def register(app: web.Application) -> None:
    app.router.add_post("/whip", publish)
    app.router.add_route(hdrs.METH_OPTIONS, "/whip", options)
    app.router.add_patch("/whip/{call_id}", patch)
    app.router.add_delete("/whip/{call_id}", end)
