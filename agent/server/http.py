"""The plain HTTP side: ephemeral keys, health, metrics, the page, JSON errors and CORS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta

from agent.protocol.errors import ProtocolError, from_validation
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized

JsonObject = dict[str, object]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WEB_ROOT = Path(__file__).parents[1] / "web"
MAX_JSON_BYTES = 1024 * 1024
_CSP = (
    "default-src 'self'; connect-src 'self' ws: wss:; media-src 'self' blob:; worker-src 'self' blob:; "
    "img-src 'self' data:; style-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _CSP,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ExpiresAfter(msgspec.Struct, frozen=True):
    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Meta(ge=10, le=7200)] = 600


class ClientSecretRequest(msgspec.Struct, frozen=True):
    expires_after: ExpiresAfter = ExpiresAfter()
    session: JsonObject | None = None


def json_response(body: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def json_error(
    status: int,
    message: str,
    *,
    code: str,
    type: str = "invalid_request_error",
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """`{"error": {...}}` as the protocol's HTTP side spells it."""
    error = ProtocolError(code, message, param=param, kind=type).as_dict()
    response = json_response({"error": error}, status)
    response.headers.update(headers or {})
    return response


def unauthorized(error: Unauthorized) -> web.Response:
    return json_error(401, str(error), code="invalid_api_key", type="authentication_error")


async def create_client_secret(request: web.Request) -> web.Response:
    service = request.app[service_key]
    try:
        grant = service.auth.authenticate(request)
        if grant.is_ephemeral:
            raise Unauthorized("An ephemeral key cannot mint another; use an API key.")
    except Unauthorized as error:
        return unauthorized(error)
    try:
        body = await _whole_body(request)
        wanted = msgspec.json.decode(body or b"{}", type=ClientSecretRequest)
        settings = service.settings(wanted.session)
        minted = service.auth.mint(wanted.session, wanted.expires_after.seconds)
    except msgspec.ValidationError as error:
        return _bad_request(from_validation(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _bad_request(ProtocolError("invalid_json", f"The body is not valid JSON: {error}."))
    except ProtocolError as error:
        return _bad_request(error)
    except Unauthorized as error:
        return json_error(429, str(error), code="rate_limit_exceeded", type="rate_limit_error")
    session = service.session_snapshot(settings) | {"expires_at": minted.expires_at}
    return json_response({"value": minted.value, "expires_at": minted.expires_at, "session": session})


async def _whole_body(request: web.Request) -> bytes:
    """All of it, in however many pieces it comes. Raises `ProtocolError` beyond `MAX_JSON_BYTES`."""
    body = bytearray()
    async for piece in request.content.iter_chunked(65_536):
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise ProtocolError("invalid_value", f"The body may have {MAX_JSON_BYTES} bytes; send a smaller session.")
    return bytes(body)


async def healthz(request: web.Request) -> web.Response:
    """The event loop turns."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """A worker answers, and new sessions are taken."""
    service = request.app[service_key]
    pool = service.pool
    ready = pool.ready and not service.draining
    state = {"ready": ready, "model": pool.model, "slots": pool.slots, "leased": pool.leased}
    if not ready:
        why = "draining" if service.draining else pool.last_failure or "the worker is loading the model"
        return json_response(state | {"reason": why}, 503)
    return json_response(state)


async def metrics(request: web.Request) -> web.Response:
    service = request.app[service_key]
    service.metrics.worker_restarts.set(service.pool.restarts)
    service.metrics.worker_slots.set(service.pool.slots)
    return web.Response(body=service.metrics.render(), headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4"})


async def page(request: web.Request) -> web.StreamResponse:
    index = WEB_ROOT / "index.html"
    if not index.is_file():
        return json_error(404, "The page is not built; run `make web`.", code="page_not_built")
    return web.FileResponse(index, headers=_PAGE_HEADERS)


@web.middleware
async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Pages of the allowed origins may call the API: keys protect it, cookies are not used.

    Others are refused here and not only by their browser, which asks nobody before it opens a WebSocket.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or not request.path.startswith(("/v1/", "/whip")):
        return await handler(request)
    allowed = request.app[service_key].config.http.allowed_origins
    if "*" not in allowed and origin not in allowed:
        if urlsplit(origin).netloc == request.host:
            return await handler(request)
        return json_error(
            403, f"Pages of {origin} may not call this server; add it to http.allowed_origins.", code="origin_refused"
        )
    is_preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    response = web.Response(status=204) if is_preflight else await handler(request)
    if response.prepared:
        return response
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Location, Retry-After, ETag, Link"
    response.headers[hdrs.VARY] = hdrs.ORIGIN
    if is_preflight:
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "authorization, content-type")
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST, PATCH, DELETE, OPTIONS"
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"
    return response


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """aiohttp's own refusals (404, 405, 413) as JSON."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(error.status, "http_error")
        return json_error(error.status, f"{request.method} {request.path}: {error.reason}.", code=code)


def register(app: web.Application) -> None:
    app.router.add_post("/v1/realtime/client_secrets", create_client_secret)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/", page)
    if (WEB_ROOT / "assets").is_dir():
        app.router.add_static("/assets", WEB_ROOT / "assets")


def _bad_request(error: ProtocolError) -> web.Response:
    return json_error(400, error.message, code=error.code, param=error.param)
