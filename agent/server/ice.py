"""STUN and TURN servers for callers, with credentials that soon expire.

coturn's REST scheme (draft-uberti-behave-turn-rest): the user name is `EXPIRY:NAME`, the password the base64 of its
HMAC-SHA1 under the secret that agogic and the TURN server share. coturn asks for it when an allocation is made and not
when it is kept up, so a call may last longer than its credential.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

from agent.config import IceServerConfig, WebRtcConfig
from agent.ids import secret
from agent.json_object import JsonObject
from agent.rtc.gathering import IceServer, Network, external_addresses, offered_addresses


def ice_servers(configured: Iterable[IceServerConfig], expires_at: int, name: str) -> tuple[IceServer, ...]:
    """`expires_at` in Unix seconds; `name` says to whom a credential was given, in the TURN server's log."""
    return tuple(_server(server, expires_at, name) for server in configured)


def for_caller(config: WebRtcConfig, now_unix_s: int) -> tuple[IceServer, ...]:
    """All of them, for one caller. The name is drawn anew: who calls is not the TURN server's business."""
    return ice_servers(config.ice_servers, now_unix_s + config.ice_lifetime_s, secret("call")[:16])


def network(config: WebRtcConfig, host: str, now_unix_s: int) -> Network:
    """Where a call of a server that listens on `host` gathers its candidates."""
    asked = [server for server in config.ice_servers if server.gather]
    return Network(
        offered_addresses(config.addresses, host),
        external_addresses(config.external_addresses),
        config.ports,
        ice_servers(asked, now_unix_s + config.ice_lifetime_s, "agogic"),
    )


def as_json(server: IceServer) -> JsonObject:
    """`RTCIceServer` of W3C's WebRTC."""
    known: JsonObject = {"urls": list(server.urls)}
    return known | ({"username": server.username, "credential": server.credential} if server.credential else {})


def as_links(servers: Iterable[IceServer]) -> list[str]:
    """Values of `Link` headers (RFC 9725, section 4.6), one for each URL."""
    return [_link(url, server) for server in servers for url in server.urls]


def _link(url: str, server: IceServer) -> str:
    link = f'<{url}>; rel="ice-server"'
    if not server.credential:
        return link
    return f'{link}; username="{server.username}"; credential="{server.credential}"; credential-type="password"'


def _server(server: IceServerConfig, expires_at: int, name: str) -> IceServer:
    if not server.secret:
        return IceServer(server.urls, server.username, server.credential)
    username = f"{expires_at}:{name}"
    digest = hmac.new(server.secret.encode(), username.encode(), hashlib.sha1).digest()
    return IceServer(server.urls, username, base64.b64encode(digest).decode())
