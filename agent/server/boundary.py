"""Which names this server answers to, and the pages of which origins may call it.

A browser lets any page open a WebSocket anywhere, and lets a page whose name is made to point here (DNS rebinding) read
what it gets. Keys protect a server that others can reach; one on loopback needs none, so there the names count.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from agent.config import HttpConfig, is_loopback

ANY = "*"


class Boundary:
    """By `http.allowed_hosts` and `http.allowed_origins`; where those are empty, by the address that is listened on."""

    def __init__(self, config: HttpConfig) -> None:
        self._is_local = is_loopback(config.host)
        self._hosts = frozenset(name.lower() for name in config.allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in config.allowed_origins)

    def answers_to(self, host: str | None) -> bool:
        """Whether a request with this `Host` is meant for us. Only machines of old send none, and no browser."""
        if host is None:
            return True
        name = name_of(f"//{host}")
        if name is None:
            return False
        if self._hosts:
            return ANY in self._hosts or name in self._hosts or is_local_name(name)
        return not self._is_local or is_local_name(name)

    def page_may_call(self, origin: str, host: str | None) -> bool:
        """Whether a page of this `Origin` may call us under the name `host`, which `answers_to` has accepted."""
        name, origin = name_of(origin), origin.lower()
        if ANY in self._origins or origin in self._origins:
            return True
        if host is not None and origin.partition("://")[2] == host.lower():
            return True
        if self._origins:
            return False
        return not self._is_local or (name is not None and is_local_name(name))


def name_of(address: str) -> str | None:
    """The host's name in a URL, without its port; None where there is none or it cannot be read."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname


def is_local_name(name: str) -> bool:
    """Names that no DNS server can make point elsewhere: loopback addresses, and what RFC 6761 says of localhost."""
    name = name.removesuffix(".")
    return is_loopback(name) or name.endswith(".localhost")
