"""Who may connect: API keys, and ephemeral keys with session settings bound to them."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.ids import secret
from agent.protocol.errors import ProtocolError

JsonObject = dict[str, object]
_SUBPROTOCOL_KEY = "openai-insecure-api-key."
MAX_SECRETS = 10_000
MAX_SECRET_BYTES = 64 * 1024
MAX_ALL_SECRETS_BYTES = 32 * 1024 * 1024


class Unauthorized(Exception):
    """No key, or a wrong one; the message says which."""


@dataclass(frozen=True)
class Grant:
    """Permission to open sessions. `session` are settings that an ephemeral key brings along; `owner` tells keys apart
    without being one, "" where none was asked for."""

    session: JsonObject | None = None
    is_ephemeral: bool = False
    owner: str = ""


@dataclass(frozen=True)
class ClientSecret:
    value: str
    expires_at: int
    session: JsonObject | None
    size: int


class Authenticator:
    """Without keys everybody is let in: the configuration allows that on loopback only."""

    def __init__(self, api_keys: tuple[str, ...], clock: Clock) -> None:
        self._api_keys = api_keys
        self._clock = clock
        self._secrets: dict[str, ClientSecret] = {}
        self._held = 0

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
        return Grant(owner=_digest(key))

    def mint(self, session: JsonObject | None, lifetime_s: int) -> ClientSecret:
        """A key that opens sessions with these settings until it expires.

        Raises `ProtocolError` for settings that are too long, `Unauthorized` if too many or too much of them live.
        """
        size = len(msgspec.json.encode(session)) if session is not None else 0
        if size > MAX_SECRET_BYTES:
            raise ProtocolError(
                "invalid_value", f"The session of an ephemeral key may have {MAX_SECRET_BYTES} bytes.", param="session"
            )
        if len(self._secrets) >= MAX_SECRETS or self._held + size > MAX_ALL_SECRETS_BYTES:
            now = self._clock.unix_s()
            self._secrets = {key: value for key, value in self._secrets.items() if value.expires_at > now}
            self._held = sum(value.size for value in self._secrets.values())
        if len(self._secrets) >= MAX_SECRETS or self._held + size > MAX_ALL_SECRETS_BYTES:
            raise Unauthorized(f"{len(self._secrets)} ephemeral keys are alive already; use those.")
        minted = ClientSecret(secret("ek"), self._clock.unix_s() + lifetime_s, session, size)
        self._secrets[minted.value] = minted
        self._held += size
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
        return Grant(session=found.session, is_ephemeral=True, owner=_digest(key))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]


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
