"""Whether a request comes from the provider it claims to come from, by each provider's own scheme."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TOLERANCE_S = 300

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Signed:
    """A request as its signature sees it: the whole public URL, the form's fields in order, the body as it came."""

    method: str
    url: str
    headers: Mapping[str, str]
    form: Pairs = ()
    body: bytes = b""


def twilio(request: Signed, auth_token: str) -> bool:
    """HMAC-SHA1 over the URL and the form's fields, sorted by name."""
    text = request.url
    for name in sorted({name for name, _ in request.form}):
        values = sorted({value for key, value in request.form if key == name})
        text += "".join(name + value for value in values)
    wanted = base64.b64encode(hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest())
    return hmac.compare_digest(wanted, request.headers.get("X-Twilio-Signature", "").encode())


def plivo(request: Signed, auth_token: str) -> bool:
    """V3: HMAC-SHA256 over the URL with its parameters sorted, the form's fields, and a nonce."""
    nonce = request.headers.get("X-Plivo-Signature-V3-Nonce", "")
    parts = urlsplit(request.url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    form = list(request.form)
    if request.method == "GET":
        query, form = query + form, []
    text = f"{parts.scheme}://{parts.netloc}{parts.path}"
    if query or form:
        text += "?" + "&".join(f"{name}={value}" for name, value in sorted(query))
    if form:
        text += ("." if query else "") + "".join(name + value for name, value in sorted(form))
    wanted = base64.b64encode(hmac.new(auth_token.encode(), f"{text}.{nonce}".encode(), hashlib.sha256).digest())
    given = request.headers.get("X-Plivo-Signature-V3", "").split(",")
    return bool(nonce) and any(hmac.compare_digest(wanted, one.strip().encode()) for one in given)


def telnyx(request: Signed, public_key: str, now_s: int) -> bool:
    """Ed25519 over time and body."""
    stamp = request.headers.get("Telnyx-Timestamp", "")
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        signature = base64.b64decode(request.headers.get("Telnyx-Signature-Ed25519", ""), validate=True)
        if abs(now_s - int(stamp)) > TOLERANCE_S:
            return False
        key.verify(signature, stamp.encode() + b"|" + request.body)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def vonage(request: Signed, signature_secret: str, now_s: int) -> bool:
    """A JWT (HS256) that names the body's hash."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    try:
        claims = jwt.decode(
            token, signature_secret, algorithms=["HS256"], options={"verify_aud": False, "verify_iat": False}
        )
        issued_s = int(claims["iat"])
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        return False
    if abs(now_s - issued_s) > TOLERANCE_S:
        return False
    payload_hash = claims.get("payload_hash")
    return not request.body or payload_hash == hashlib.sha256(request.body).hexdigest()
