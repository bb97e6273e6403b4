"""Telephony's place in the service's application."""

from __future__ import annotations

from aiohttp import web

from agent.telephony import audiosocket_server, control, stream_server

addresses_key: web.AppKey[list[str]] = web.AppKey("telephony_addresses", list)


def register(app: web.Application) -> None:
    """Adds routes, and ports that open and close with the application; their addresses are under `addresses_key`."""
    app[addresses_key] = []
    stream_server.register(app)
    audiosocket_server.register(app, app[addresses_key])
    control.register(app, app[addresses_key])
