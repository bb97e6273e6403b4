"""Who may connect: API keys, and ephemeral keys with session settings bound to them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.ids import secret
from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError
from agent.server.keys import KeyRing, NamedKey, digest

_SUBPROTOCOL_KEY = "openai-insecure-api-key."
MAX_SECRETS = 10_000
MAX_SECRET_BYTES = 64 * 1024
MAX_ALL_SECRETS_BYTES = 32 * 1024 * 1024

TOO_MANY_SECRETS = "Too many ephemeral keys are alive already; use those."
USED = "The ephemeral key was good for one session; mint a new one at POST /v1/realtime/client_secrets."


class Unauthorized(Exception):
    """No key, or a wrong one; the message says which."""


@dataclass(frozen=True)
class Grant:
    """Permission to open sessions. `session` are settings that an ephemeral key brings along; `owner` tells keys apart
    without being one, "" where none was asked for. `key` has the name and the limits, of an ephemeral key those of the
    key that minted it."""

    session: JsonObject | None = None
    is_ephemeral: bool = False
    owner: str = ""
    key: NamedKey | None = None
    secret: ClientSecret | None = None

    @property
    def name(self) -> str:
        return "" if self.key is None else self.key.name


@dataclass
class ClientSecret:
    """`minted_by`: the digest of the API key, None where none is asked for."""

    value: str
    expires_at: int
    session: JsonObject | None
    size: int
    single_use: bool = False
    used: bool = False
    minted_by: str | None = None


class Authenticator:
    """Without keys everybody is let in: the configuration allows that on loopback only. `has_neighbours`: an ephemeral
    key that is unknown here may have opened a session elsewhere, to which its owner returns."""

    def __init__(self, keys: KeyRing, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self._secrets: dict[str, ClientSecret] = {}
        self._held = 0
        self.has_neighbours = False

    def authenticate(self, request: web.Request) -> Grant:
        """Whoever asks may open a session. Raises `Unauthorized`."""
        return self.grant(offered_key(request))

    def recognise(self, request: web.Request) -> Grant:
        """As `authenticate`, but a key that was good for one session still counts for what belongs to that session."""
        return self.grant(offered_key(request), again=True)

    def return_of(self, request: web.Request) -> Grant:
        """As `recognise`, for whoever takes up a session that a key opened before it expired."""
        return self.grant(offered_key(request), again=True, returns=True)

    def grant(self, key: str | None, *, again: bool = False, returns: bool = False) -> Grant:
        """What this key allows. Raises `Unauthorized`."""
        if key is not None and key.startswith("ek_"):
            return self._ephemeral(key, again, returns)
        if not self._keys.is_needed:
            return Grant()
        if key is None:
            raise Unauthorized("No API key was given; send 'Authorization: Bearer KEY'.")
        found = self._keys.find(key, self._clock.unix_s())
        if found is None:
            raise Unauthorized("The API key is not valid here.")
        return Grant(owner=found.name, key=found)

    def knows(self, key: str) -> bool:
        """Whether it is an ephemeral key of ours, good or not."""
        return key in self._secrets

    def alive(self) -> list[ClientSecret]:
        """All that have not expired."""
        now = self._clock.unix_s()
        return [each for each in self._secrets.values() if each.expires_at > now]

    def adopt(self, minted: ClientSecret) -> None:
        """It was minted by another server. Raises `Unauthorized` as `mint` does."""
        self._make_room(minted.size)
        self._secrets[minted.value] = minted
        self._held += minted.size

    def forget(self, minted: ClientSecret) -> None:
        """Its client was never told."""
        if self._secrets.pop(minted.value, None) is not None:
            self._held -= minted.size

    def redeem(self, grant: Grant) -> None:
        """A session is opened with it. Raises `ProtocolError` where another one was, with a key for one only."""
        if grant.secret is not None and grant.secret.single_use:
            if grant.secret.used:
                raise ProtocolError("invalid_api_key", USED)
            grant.secret.used = True

    def mint(
        self, session: JsonObject | None, lifetime_s: int, *, single_use: bool = False, by: Grant | None = None
    ) -> ClientSecret:
        """A key that opens sessions (or just one) with these settings until it expires, within the limits of the key
        that minted it, and no longer than that one is good.

        Raises `ProtocolError` for settings that are too long, `Unauthorized` if too many or too much of them live.
        """
        size = len(msgspec.json.encode(session)) if session is not None else 0
        if size > MAX_SECRET_BYTES:
            raise ProtocolError(
                "invalid_value", f"The session of an ephemeral key may have {MAX_SECRET_BYTES} bytes.", param="session"
            )
        self._make_room(size)
        minter = None if by is None or by.key is None else by.key.sha256
        expires_at = self._clock.unix_s() + lifetime_s
        minted = ClientSecret(secret("ek"), expires_at, session, size, single_use, minted_by=minter)
        self._secrets[minted.value] = minted
        self._held += size
        return minted

    def _make_room(self, size: int) -> None:
        """Raises `Unauthorized`."""
        if len(self._secrets) >= MAX_SECRETS or self._held + size > MAX_ALL_SECRETS_BYTES:
            now = self._clock.unix_s()
            self._secrets = {key: value for key, value in self._secrets.items() if value.expires_at > now}
            self._held = sum(value.size for value in self._secrets.values())
        if len(self._secrets) >= MAX_SECRETS or self._held + size > MAX_ALL_SECRETS_BYTES:
            raise Unauthorized(TOO_MANY_SECRETS)

    def _ephemeral(self, key: str, again: bool, returns: bool) -> Grant:
        found = self._secrets.get(key)
        if found is None:
            # SDKs in a browser insist on such a key even where none is asked for.
            if not self._keys.is_needed:
                return Grant(is_ephemeral=True)
            if returns and self.has_neighbours:
                return Grant(is_ephemeral=True, owner=digest(key)[:16])
            raise Unauthorized("The ephemeral key is unknown here; mint one at POST /v1/realtime/client_secrets.")
        if found.expires_at <= self._clock.unix_s() and not returns:
            raise Unauthorized("The ephemeral key has expired; mint a new one at POST /v1/realtime/client_secrets.")
        if found.used and not again:
            raise Unauthorized(USED)
        minter = None
        if found.minted_by is not None:
            minter = self._keys.by_digest(found.minted_by, self._clock.unix_s())
            if minter is None:
                raise Unauthorized("The API key that minted this ephemeral key is not valid here any more.")
        return Grant(session=found.session, is_ephemeral=True, owner=digest(key)[:16], key=minter, secret=found)


def offered_subprotocols(request: web.Request) -> list[str]:
    header = request.headers.get("Sec-WebSocket-Protocol", "")
    return [name.strip() for name in header.split(",") if name.strip()]


def offered_key(request: web.Request) -> str | None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    for name in offered_subprotocols(request):
        if name.startswith(_SUBPROTOCOL_KEY):
            return name.removeprefix(_SUBPROTOCOL_KEY)
    return None
