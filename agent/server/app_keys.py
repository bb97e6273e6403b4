"""Keys under which the aiohttp application holds what handlers need."""

from __future__ import annotations

from aiohttp import web

from agent.server.service import Service

service_key: web.AppKey[Service] = web.AppKey("service", Service)
