"""The aiohttp application: routes and middlewares around one `Service`."""

from __future__ import annotations

import logging

from aiohttp import hdrs, web, web_response
from aiohttp.http_exceptions import HttpProcessingError

from agent.server import admin, http, middlewares, paths
from agent.server.app_keys import service_key
from agent.server.boundary import Boundary
from agent.server.door import Door, door_key, through_the_door
from agent.server.service import Service
from agent.telephony import app as telephony
from agent.transports import call, smallwebrtc, webrtc, websocket, whip

# Which versions run here is for nobody to read; a header of ours would not be in answers to what is no HTTP.
web_response.SERVER_SOFTWARE = "agogic"  # type: ignore[attr-defined]


class _JunkIsNoMistake(logging.Filter):
    """What is no HTTP, and a browser's subprotocols that are not ours, are not worth a traceback of aiohttp's."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.msg, record.args = "somebody sends what is no HTTP (%s)", (type(record.exc_info[1]).__name__,)
            record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
        return "overlap server-known" not in str(record.msg)


_filter = _JunkIsNoMistake()
for _name in ("aiohttp.server", "aiohttp.websocket"):
    logging.getLogger(_name).addFilter(_filter)


async def _keep_nothing(request: web.Request, response: web.StreamResponse) -> None:
    """Answers of the API hold keys and conversations: no cache may have them."""
    if request.path.startswith("/v1/"):
        response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")


async def _end_sessions(app: web.Application) -> None:
    await app[service_key].end_all()


def create_app(service: Service) -> web.Application:
    """Routes only; whoever runs the application also runs `service.models`, and puts `DoorSite` before it."""
    config = service.config.http
    app = web.Application(
        middlewares=[
            through_the_door,
            middlewares.boundary,
            middlewares.body_in_time,
            middlewares.json_errors,
            paths.collapsed_slashes,
            middlewares.shared_keys,
        ],
        client_max_size=config.max_message_bytes,
    )
    app.on_response_prepare.append(_keep_nothing)
    app[service_key] = service
    app[middlewares.boundary_key] = Boundary(config)
    app[door_key] = Door(
        config.max_connections,
        config.max_connections_per_address,
        lambda reason: service.metrics.refused.labels(reason).inc(),
    )
    app.on_cleanup.append(_end_sessions)
    websocket.register(app)
    call.register(app)
    webrtc.register(app)
    whip.register(app)
    smallwebrtc.register(app)
    telephony.register(app)
    admin.register(app)
    http.register(app)
    return app
