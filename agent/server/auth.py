"""Who may connect: API keys, and ephemeral keys with session settings bound to them."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from aiohttp import web

from agent.clock import Clock
from agent.ids import secret

JsonObject = dict[str, object]
_SUBPROTOCOL_KEY = "openai-insecure-api-key."
MAX_SECRETS = 10_000


class Unauthorized(Exception):
    """No key, or a wrong one; the message says which."""


@dataclass(frozen=True)
class Grant:
    """Permission to open sessions. `session` are settings that an ephemeral key brings along."""

    session: JsonObject | None = None
    is_ephemeral: bool = False


@dataclass(frozen=True)
class ClientSecret:
    value: str
    expires_at: int
    session: JsonObject | None


class Authenticator:
    """Without keys everybody is let in: the configuration allows that on loopback only."""

    def __init__(self, api_keys: tuple[str, ...], clock: Clock) -> None:
        self._api_keys = api_keys
        self._clock = clock
        self._secrets: dict[str, ClientSecret] = {}

    def authenticate(self, request: web.Request) -> Grant:
        """Raises `Unauthorized`."""
        return self.grant(_offered_key(request))

    def grant(self, key: str | None) -> Grant:
        """What this key allows. Raises `Unauthorized`."""
        if key is not None and key.startswith("ek_"):
            return self._ephemeral(key)
        if not self._api_keys:
            return Grant()
        if key is None:
            raise Unauthorized("No API key was given; send 'Authorization: Bearer KEY'.")
        # Headers need not be UTF-8: what could not be read as such must come out as the bytes it was.
        offered = key.encode(errors="surrogateescape")
        if not any(hmac.compare_digest(offered, known.encode()) for known in self._api_keys):
            raise Unauthorized("The API key is not valid here.")
        return Grant()

    def mint(self, session: JsonObject | None, lifetime_s: int) -> ClientSecret:
        """A key that opens sessions with these settings until it expires. Raises `Unauthorized` if too many live."""
        now = self._clock.unix_s()
        alive = {key: value for key, value in self._secrets.items() if value.expires_at > now}
        if len(alive) >= MAX_SECRETS:
            raise Unauthorized(f"{MAX_SECRETS} ephemeral keys are alive already; use those.")
        if len(self._secrets) >= MAX_SECRETS:
            self._secrets = alive
        minted = ClientSecret(secret("ek"), now + lifetime_s, session)
        self._secrets[minted.value] = minted
        return minted

    def _ephemeral(self, key: str) -> Grant:
        found = self._secrets.get(key)
        if found is None:
            # SDKs in a browser insist on such a key even where none is asked for.
            if not self._api_keys:
                return Grant(is_ephemeral=True)
            raise Unauthorized("The ephemeral key is unknown here; mint one at POST /v1/realtime/client_secrets.")
        if found.expires_at <= self._clock.unix_s():
            raise Unauthorized("The ephemeral key has expired; mint a new one at POST /v1/realtime/client_secrets.")
        return Grant(session=found.session, is_ephemeral=True)


def offered_subprotocols(request: web.Request) -> list[str]:
    header = request.headers.get("Sec-WebSocket-Protocol", "")
    return [name.strip() for name in header.split(",") if name.strip()]


def _offered_key(request: web.Request) -> str | None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    for name in offered_subprotocols(request):
        if name.startswith(_SUBPROTOCOL_KEY):
            return name.removeprefix(_SUBPROTOCOL_KEY)
    return None
