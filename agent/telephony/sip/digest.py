"""Digest authentication (RFC 2617, RFC 7616) as SIP uses it, both sides: MD5 and SHA-256, qop auth or none."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from sipmessage import AuthChallenge, AuthCredentials, AuthParameters

NONCE_S = 300
_HASHES = {"md5": hashlib.md5, "sha-256": hashlib.sha256}


class DigestError(Exception):
    """A challenge that cannot be answered; the message says why."""


def _hashed(algorithm: str, text: str) -> str:
    return _HASHES[algorithm.lower()](text.encode()).hexdigest()


def _response(fields: Mapping[str, str], method: str, password: str) -> str:
    """What both sides compute."""
    algorithm = fields.get("algorithm", "MD5")
    secret = _hashed(algorithm, f"{fields['username']}:{fields['realm']}:{password}")
    asked = _hashed(algorithm, f"{method}:{fields['uri']}")
    if "qop" in fields:
        middle = f"{fields['nonce']}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}"
    else:
        middle = fields["nonce"]
    return _hashed(algorithm, f"{secret}:{middle}:{asked}")


class DigestServer:
    """Challenges and checks. Nonces carry their own time and proof, so nothing is kept of those who never answer."""

    def __init__(self, realm: str, passwords: Mapping[str, str]) -> None:
        self._realm = realm
        self._passwords = passwords
        self._key = secrets.token_bytes(32)

    def challenge(self, unix_s: int, *, stale: bool = False) -> AuthChallenge:
        fields = {"realm": self._realm, "nonce": self._nonce(unix_s), "algorithm": "MD5", "qop": "auth"}
        if stale:
            fields["stale"] = "true"
        return AuthChallenge(scheme="Digest", parameters=AuthParameters(**fields))

    def check(self, credentials: AuthCredentials | None, method: str, unix_s: int) -> bool | None:
        """True, False for a wrong name or password, None where a (new) challenge is all that is missing."""
        if credentials is None or credentials.scheme.lower() != "digest" or credentials.parameters is None:
            return None
        fields = credentials.parameters
        needed = ("username", "realm", "nonce", "uri", "response")
        if any(name not in fields for name in needed) or fields.get("algorithm", "MD5").upper() != "MD5":
            return False
        if "qop" in fields and (fields["qop"] != "auth" or "nc" not in fields or "cnonce" not in fields):
            return False
        if not self._is_fresh(fields["nonce"], unix_s):
            return None
        password = self._passwords.get(fields["username"])
        wanted = _response(fields, method, password if password is not None else secrets.token_hex(8))
        matches = hmac.compare_digest(wanted.encode(), fields["response"].encode())
        return matches and password is not None and fields["realm"] == self._realm

    def _nonce(self, unix_s: int) -> str:
        proof = hmac.new(self._key, str(unix_s).encode(), hashlib.sha256).hexdigest()[:32]
        return f"{unix_s:x}-{proof}"

    def _is_fresh(self, nonce: str, unix_s: int) -> bool:
        stamp, _, _ = nonce.partition("-")
        try:
            made_s = int(stamp, 16)
        except ValueError:
            return False
        return 0 <= unix_s - made_s <= NONCE_S and hmac.compare_digest(self._nonce(made_s).encode(), nonce.encode())


def credentials_for(challenge: AuthChallenge, method: str, uri: str, username: str, password: str) -> AuthCredentials:
    """The answer to a challenge. Raises `DigestError`."""
    asked = challenge.parameters
    algorithm = asked.get("algorithm", "MD5")
    if challenge.scheme.lower() != "digest" or algorithm.lower() not in _HASHES:
        raise DigestError(f"{challenge.scheme} {algorithm} is not served; use Digest with MD5 or SHA-256")
    if "realm" not in asked or "nonce" not in asked:
        raise DigestError("the challenge has no realm or no nonce")
    fields = {
        "username": username,
        "realm": asked["realm"],
        "nonce": asked["nonce"],
        "uri": uri,
        "algorithm": algorithm,
    }
    offered = [qop.strip() for qop in asked.get("qop", "").split(",") if qop.strip()]
    if offered:
        if "auth" not in offered:
            raise DigestError(f"qop {asked['qop']} is not served; offer auth")
        fields |= {"qop": "auth", "nc": "00000001", "cnonce": secrets.token_hex(8)}
    if "opaque" in asked:
        fields["opaque"] = asked["opaque"]
    fields["response"] = _response(fields, method, password)
    return AuthCredentials(scheme="Digest", parameters=AuthParameters(**fields))
