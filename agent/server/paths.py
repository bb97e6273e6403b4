"""Paths as clients glue them together: a base URL that ends in a slash and a path that begins with one."""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.typedefs import Handler


@web.middleware
async def collapsed_slashes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """`/v1//realtime` is `/v1/realtime`. The innermost middleware: those before it judge the path as it was sent.

    Answered at once and not by a redirect, which WebSocket clients and many others do not follow. Only below `/v1/`,
    so that nothing gets past what guards that.
    """
    path = request.path
    if request.match_info.http_exception is None or not path.startswith("/v1/") or "//" not in path:
        return await handler(request)
    url = request.rel_url.with_path(re.sub("/{2,}", "/", path)).with_query(request.rel_url.query)
    plain = request.clone(rel_url=url)
    found = await request.app.router.resolve(plain)
    if found.http_exception is not None:
        return await handler(request)
    found.add_app(request.app)
    plain._match_info = found
    return await found.handler(plain)
