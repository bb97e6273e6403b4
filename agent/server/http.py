"""The plain HTTP side: ephemeral keys, health, metrics, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta

from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError, from_validation
from agent.protocol.limits import check_depth, check_size
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized
from agent.server.service import RETRY_AFTER_S, NoCapacity

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


class SecretOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ours: `single_use` = good for one session."""

    single_use: bool = False


class ClientSecretRequest(msgspec.Struct, frozen=True):
    expires_after: ExpiresAfter = ExpiresAfter()
    session: JsonObject | None = None
    x_agogic: SecretOptions = SecretOptions()


def json_response(body: object, status: int = 200) -> web.Response:
    """Nobody may keep it: it holds keys, or what is true for a moment."""
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store"},
    )


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


def overloaded(error: Exception) -> web.Response:
    return json_error(
        503, str(error), code="server_overloaded", type="server_error", headers={"Retry-After": str(RETRY_AFTER_S)}
    )


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
        check_size(body)
        wanted = msgspec.json.decode(body or b"{}", type=ClientSecretRequest)
        check_depth(body, wanted)
        settings = service.settings(wanted.session)
        once = wanted.x_agogic.single_use
        minted = service.auth.mint(wanted.session, wanted.expires_after.seconds, single_use=once, by=grant)
        await service.share_secret(minted)
    except msgspec.ValidationError as error:
        return _bad_request(from_validation(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _bad_request(ProtocolError("invalid_json", f"The body is not valid JSON: {error}."))
    except ProtocolError as error:
        return _bad_request(error)
    except Unauthorized as error:
        return json_error(429, str(error), code="rate_limit_exceeded", type="rate_limit_error")
    except NoCapacity as error:
        return overloaded(error)
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
    """A worker answers, and new sessions are taken. `recorded`: how sessions are, where they are."""
    service = request.app[service_key]
    models = service.models
    ready = models.ready and not service.draining
    shown = models.default.shown
    state: JsonObject = {"ready": ready, "model": shown, "slots": models.slots, "leased": models.leased}
    if service.recorder is not None:
        state["recorded"] = service.recorder.kind
    if not ready:
        why = "draining" if service.draining else models.why_not_ready
        return json_response(state | {"reason": why}, 503)
    return json_response(state)


async def metrics(request: web.Request) -> web.Response:
    """Who uses the server how much is nobody's business but the operator's: it takes an API key where there are any."""
    service = request.app[service_key]
    try:
        if service.auth.authenticate(request).is_ephemeral and service.keys.is_needed:
            raise Unauthorized("An ephemeral key cannot read the metrics; use an API key.")
    except Unauthorized as error:
        return unauthorized(error)
    service.read_gauges()
    return web.Response(body=service.metrics.render(), headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4"})


async def list_models(request: web.Request) -> web.Response:
    """What a client may ask for by name, as OpenAI's API lists it. Where only one is served, it goes by any name."""
    service = request.app[service_key]
    try:
        grant = service.auth.recognise(request)
    except Unauthorized as error:
        return unauthorized(error)
    allowed = grant.key.models if grant.key is not None else ()
    names = [model.shown for model in service.models if not allowed or not model.name or model.name in allowed]
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "agogic"} for name in names]
    return json_response({"object": "list", "data": listed})


async def page(request: web.Request) -> web.StreamResponse:
    index = WEB_ROOT / "index.html"
    if not index.is_file():
        return json_error(404, "The page is not built; run `make web`.", code="page_not_built")
    return web.FileResponse(index, headers=_PAGE_HEADERS)


class Assets:
    """The page's files, by the names they had when the server started: nothing else of the disk can be asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        path = self._files.get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path)


def register(app: web.Application) -> None:
    app.router.add_post("/v1/realtime/client_secrets", create_client_secret)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/", page)
    app.router.add_get("/assets/{name:.+}", Assets(WEB_ROOT / "assets").__call__)


def _bad_request(error: ProtocolError) -> web.Response:
    return json_error(400, error.message, code=error.code, param=error.param)
