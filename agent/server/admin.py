"""`/v1/admin/`: workers listed, drained and replaced, and the server told to go. Only with a key of `http.admin_keys`;
without any, nobody may.

    GET  /v1/admin/workers                    all of them, and what they do
    POST /v1/admin/workers/{id}/drain         no new sessions; it goes when those that it has have left, and none comes
    POST /v1/admin/workers/{id}/replace       another is started; once that is ready, this one is drained
    POST /v1/admin/workers/replace            all of them, one after the other, by what is configured now
    POST /v1/admin/drain                      the server itself, as SIGTERM does

Answers come when it is done. Whoever does not wait for them changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import msgspec
from aiohttp import web

from agent.config import ConfigError
from agent.server.app_keys import service_key
from agent.server.auth import Unauthorized, offered_key
from agent.server.http import json_error, json_response, unauthorized
from agent.server.service import Service
from agent.server.workers import NotDrained, NotReplaced


async def list_workers(request: web.Request) -> web.Response:
    return refusal(request) or _workers(request.app[service_key])


async def drain_worker(request: web.Request) -> web.Response:
    models = request.app[service_key].models
    return refusal(request) or await _done(request, models.drain(_number(request)))


async def replace_worker(request: web.Request) -> web.Response:
    models = request.app[service_key].models
    return refusal(request) or await _done(request, models.replace(_number(request)))


async def replace_workers(request: web.Request) -> web.Response:
    return refusal(request) or await _done(request, request.app[service_key].models.roll())


async def drain(request: web.Request) -> web.Response:
    """Answered at once: there will be nobody left to say that it is done."""
    service = request.app[service_key]
    refused = refusal(request)
    if refused is None:
        service.stop()
    return refused or json_response({"draining": True, "sessions": service.session_count}, 202)


def refusal(request: web.Request) -> web.Response | None:
    """What whoever may not do this is told; None for who may."""
    service = request.app[service_key]
    if not service.admins.is_needed:
        return json_error(
            403, "This server has no admin key; set http.admin_keys or AGOGIC_ADMIN_KEY.", code="admin_disabled"
        )
    key = offered_key(request)
    if key is None:
        return unauthorized(Unauthorized("No admin key was given; send 'Authorization: Bearer KEY'."))
    if service.admins.find(key, service.clock.unix_s()) is None:
        return unauthorized(Unauthorized("The admin key is not valid here."))
    return None


async def _done(request: web.Request, work: Coroutine[None, None, object]) -> web.Response:
    service = request.app[service_key]
    try:
        await asyncio.shield(service.perform(work))
    except NotDrained as error:
        return json_error(409, f"{str(error).capitalize()}.", code="not_drained")
    except NotReplaced as error:
        return json_error(502, f"{error}.", code="not_replaced", type="server_error")
    except ConfigError as error:
        return json_error(409, f"{error}.", code="configuration_refused")
    return _workers(service)


def _workers(service: Service) -> web.Response:
    return json_response({"object": "list", "data": msgspec.to_builtins(service.models.workers())})


def _number(request: web.Request) -> int:
    return int(request.match_info["id"])


def register(app: web.Application) -> None:
    app.router.add_get("/v1/admin/workers", list_workers)
    app.router.add_post("/v1/admin/workers/replace", replace_workers)
    app.router.add_post("/v1/admin/workers/{id:[0-9]{1,9}}/drain", drain_worker)
    app.router.add_post("/v1/admin/workers/{id:[0-9]{1,9}}/replace", replace_worker)
    app.router.add_post("/v1/admin/drain", drain)
