"""Who may send calls here: a provider's signature, a ticket from an answer that was signed, or the configured token.

A media stream cannot be signed by every provider, but the request for the answer can: the answer then names an address
with a ticket in it, good for one stream within a minute.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Literal

from agent.clock import Clock
from agent.config import TelephonyConfig
from agent.server.auth import Unauthorized
from agent.telephony import signatures
from agent.telephony.signatures import Signed

Provider = Literal["twilio", "telnyx", "plivo", "vonage", "exotel"]
PROVIDERS: tuple[Provider, ...] = ("twilio", "telnyx", "plivo", "vonage", "exotel")
TICKET_S = 60.0
MAX_TICKETS = 10_000


class Gate:
    """`locked`: the server asks for keys, so that nobody comes in unproved."""

    def __init__(self, config: TelephonyConfig, clock: Clock, *, locked: bool) -> None:
        self._config = config
        self._clock = clock
        self._locked = locked
        self._tickets: dict[str, float] = {}

    def check_answer(self, provider: Provider, request: Signed, token: str) -> None:
        """Raises `Unauthorized`."""
        signed = self._signed(provider, request)
        if signed or (signed is None and self._token_fits(token)):
            return
        raise Unauthorized(self._refusal(provider, signed))

    def check_stream(self, provider: Provider, request: Signed, token: str) -> None:
        """Raises `Unauthorized`. A ticket is used up."""
        expires_s = self._tickets.pop(token, None)
        if expires_s is not None and self._clock.now_s() <= expires_s:
            return
        signed = self._signed(provider, request) if provider in ("twilio", "plivo") else None
        if signed or (self._token_fits(token) and (signed is None or self._config.token)):
            return
        raise Unauthorized(self._refusal(provider, signed))

    def ticket(self) -> str:
        """Raises `Unauthorized` if too many wait to be used."""
        now_s = self._clock.now_s()
        if len(self._tickets) >= MAX_TICKETS:
            self._tickets = {ticket: until for ticket, until in self._tickets.items() if until >= now_s}
        if len(self._tickets) >= MAX_TICKETS:
            raise Unauthorized(f"{MAX_TICKETS} answered calls have not sent their sound yet; try again in a minute.")
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = now_s + TICKET_S
        return ticket

    def _signed(self, provider: Provider, request: Signed) -> bool | None:
        """None where no signature can be checked."""
        config, now_s = self._config, self._clock.unix_s()
        if provider == "twilio" and config.twilio.auth_token:
            return signatures.twilio(request, config.twilio.auth_token)
        if provider == "telnyx" and config.telnyx.public_key:
            return signatures.telnyx(request, config.telnyx.public_key, now_s)
        if provider == "plivo" and config.plivo.auth_token:
            return signatures.plivo(request, config.plivo.auth_token)
        if provider == "vonage" and config.vonage.signature_secret:
            return signatures.vonage(request, config.vonage.signature_secret, now_s)
        return None

    def _token_fits(self, token: str) -> bool:
        if not self._config.token:
            return not self._locked
        return hmac.compare_digest(token.encode(), self._config.token.encode())

    def _refusal(self, provider: Provider, signed: bool | None) -> str:
        if signed is False:
            return f"The request is not signed by {provider}; check the secret and telephony.public_url."
        if self._config.token:
            return "The token in the address is missing or wrong; telephony.token is the right one."
        return f"Set the secret of {provider} under telephony.{provider}, or telephony.token, to take its calls."
