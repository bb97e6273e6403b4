"""The aiohttp application: routes and middlewares around one `Service`."""

from __future__ import annotations

from aiohttp import web

from agent.server import http
from agent.server.app_keys import service_key
from agent.server.service import Service
from agent.transports import webrtc, websocket


def create_app(service: Service) -> web.Application:
    """Routes only; whoever runs the application also runs `service.pool`."""
    app = web.Application(
        middlewares=[http.cors, http.json_errors], client_max_size=service.config.http.max_message_bytes
    )
    app[service_key] = service
    websocket.register(app)
    webrtc.register(app)
    http.register(app)
    return app
