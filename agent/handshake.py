"""How a service proves to a worker on another machine that it may connect: a ticket, and the answer to a challenge.

    worker                                                    service
      │  (TLS 1.3; the certificate is the one in the ticket)     │
      │ ◄──────────────────────────────────────────────────────  │
      │  challenge: 32 random bytes                              │
      │ ──────────────────────────────────────────────────────►  │
      │  proof: ticket id, expiry, HMAC-SHA256(secret, challenge)│
      │ ◄──────────────────────────────────────────────────────  │
      │  Ready, and the wire of `agent.wire`                     │

A ticket comes to the service over the control plane, which knows who may ask for one. Its secret is made of its id and
expiry by a key that never leaves the worker's machine, so the worker keeps no list of tickets, only of the used ones:
each is good for one connection. Nothing here touches a socket.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass, field

import msgspec

CHALLENGE_BYTES = 32
KEY_BYTES = 32
TICKET_S = 30
"""So long a ticket is good; a connection that was made with it goes on."""
MAX_PROOF_BYTES = 256
HANDSHAKE_S = 5.0
"""So long either side waits for the other's part."""
_ID_BYTES = 16
_EXPIRY = struct.Struct("<Q")


class Refused(Exception):
    """The proof is none; the message says why, for the log."""


class Ticket(msgspec.Struct, frozen=True):
    """Lets a service in at `host`:`port` once. `certificate`: the worker's, in PEM; there is no other that counts."""

    host: str
    port: int
    certificate: str
    id: bytes
    expires_unix_s: int
    secret: bytes

    def __repr__(self) -> str:
        return f"Ticket({self.host}:{self.port})"


class Door(msgspec.Struct, frozen=True):
    """What a worker tells whoever started it, and nobody else: where its door is, and the key that tickets come of."""

    host: str
    port: int
    certificate: str
    key: bytes

    def __repr__(self) -> str:
        return f"Door({self.host}:{self.port})"


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """What the service sends back."""

    id: bytes
    expires_unix_s: int
    answer: bytes


def issue(door: Door, now_unix_s: int) -> Ticket:
    """A new ticket for that door."""
    identity, expires = secrets.token_bytes(_ID_BYTES), now_unix_s + TICKET_S
    secret = _secret(door.key, identity, expires)
    return Ticket(door.host, door.port, door.certificate, identity, expires, secret)


def prove(ticket: Ticket, challenge: bytes) -> bytes:
    """The payload of the frame that answers the challenge. Raises `Refused` where that is none."""
    if len(challenge) != CHALLENGE_BYTES:
        raise Refused(f"a challenge has {CHALLENGE_BYTES} bytes, not {len(challenge)}")
    return msgspec.msgpack.encode(Proof(ticket.id, ticket.expires_unix_s, _answer(ticket.secret, challenge)))


@dataclass
class Gate:
    """The worker's judgement. Bound: it remembers the used tickets that have not expired."""

    key: bytes
    _used: dict[bytes, int] = field(default_factory=dict)

    def admit(self, challenge: bytes, payload: bytes, now_unix_s: int) -> None:
        """Raises `Refused` unless the payload proves an unused ticket; it is used then."""
        try:
            proof = msgspec.msgpack.decode(payload, type=Proof)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(f"that is no proof: {error}") from None
        if len(proof.id) != _ID_BYTES or not now_unix_s <= proof.expires_unix_s <= now_unix_s + 2 * TICKET_S:
            raise Refused("the ticket has expired")
        expected = _answer(_secret(self.key, proof.id, proof.expires_unix_s), challenge)
        if not hmac.compare_digest(expected, proof.answer):
            raise Refused("the answer to the challenge is wrong")
        self._used = {used: expires for used, expires in self._used.items() if expires >= now_unix_s}
        if proof.id in self._used:
            raise Refused("the ticket was used already")
        self._used[proof.id] = proof.expires_unix_s


def _secret(key: bytes, identity: bytes, expires_unix_s: int) -> bytes:
    return hmac.digest(key, b"agogic ticket" + identity + _EXPIRY.pack(expires_unix_s), hashlib.sha256)


def _answer(secret: bytes, challenge: bytes) -> bytes:
    return hmac.digest(secret, b"agogic proof" + challenge, hashlib.sha256)
