"""What every request passes on its way in: whose it is, how long it may take, and how it is refused."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from agent.server.app_keys import service_key
from agent.server.auth import offered_key
from agent.server.boundary import Boundary
from agent.server.http import json_error, overloaded
from agent.server.service import NoCapacity

_EXPOSED = "Location, Retry-After, ETag, Link"
_METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
_SHOWN_CHARACTERS = 100


class BodyTooSlow(TimeoutError):
    """Raised where a body is read."""


boundary_key: web.AppKey[Boundary] = web.AppKey("boundary", Boundary)


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Requests that were not meant for this server, and pages that may not call it, are refused.

    Refused here and not only by a browser, which asks nobody before it opens a WebSocket. Keys protect the API, cookies
    are not used, so what may be called may be read.
    """
    rules, host, origin = request.app[boundary_key], request.headers.get(hdrs.HOST), request.headers.get(hdrs.ORIGIN)
    if not rules.answers_to(host):
        return json_error(
            421, f"This server does not answer to {_shown(host)}; add the name to http.allowed_hosts.",
            code="host_refused",
        )  # fmt: skip
    if origin is None:
        return await handler(request)
    if not rules.page_may_call(origin, host):
        return json_error(
            403, f"Pages of {_shown(origin)} may not call this server; add the origin to http.allowed_origins.",
            code="origin_refused",
        )  # fmt: skip
    is_preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    response = web.Response(status=204) if is_preflight else await handler(request)
    if response.prepared:
        return response
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
    response.headers[hdrs.VARY] = hdrs.ORIGIN
    if is_preflight:
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "authorization, content-type")
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"
    return response


@web.middleware
async def body_in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whoever reads the body gets 408 where it has not come whole within `http.request_timeout_s`."""
    if request.content.is_eof():
        return await handler(request)
    patience_s = request.app[service_key].config.http.request_timeout_s

    def give_up() -> None:
        if not request.content.is_eof():
            request.content.set_exception(BodyTooSlow())

    timer = asyncio.get_running_loop().call_later(patience_s, give_up)
    try:
        return await handler(request)
    finally:
        timer.cancel()


@web.middleware
async def shared_keys(request: web.Request, handler: Handler) -> web.StreamResponse:
    """In a cluster, an ephemeral key that is unknown here may be another service's."""
    key = offered_key(request)
    if key is not None and key.startswith("ek_"):
        try:
            await request.app[service_key].learn(key)
        except NoCapacity as error:
            return overloaded(error)
    return await handler(request)


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """aiohttp's own refusals (404, 405, 413) as JSON. A client that leaves in the middle is nobody's mistake."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(error.status, "http_error")
        return json_error(error.status, f"{request.method} {_shown(request.path)}: {error.reason}.", code=code)
    except BodyTooSlow:
        return json_error(408, "The body did not come in time.", code="request_timeout")
    except (ConnectionError, web.RequestPayloadError):
        return json_error(400, "The body did not come whole.", code="incomplete_body")


def _shown(text: str | None) -> str:
    """Of whatever a client sends, not more than one line."""
    shown = ascii(text or "")[1:-1]
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"
