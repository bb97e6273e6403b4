"""Signatures and answers, judged by the providers' own libraries."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import xml.etree.ElementTree as ElementTree

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from plivo.utils.signature_v3 import construct_get_url, construct_post_url, get_signature_v3, validate_v3_signature
from telnyx.lib.webhook_verification import WebhookVerificationError, verify_webhook_signature
from twilio.request_validator import RequestValidator
from twilio.twiml.voice_response import Connect, VoiceResponse
from vonage_jwt.verify_jwt import verify_signature as vonage_verifies

from agent.clock import ManualClock
from agent.config import TelephonyConfig, TelnyxConfig, TwilioConfig
from agent.server.auth import Unauthorized
from agent.telephony import answers, signatures
from agent.telephony.gate import Gate
from agent.telephony.signatures import Signed

URL = "https://voice.example.com/telephony/x/answer?token=a%20b&x=2"
FORM = (("CallSid", "CA1"), ("From", "+14155550100"), ("Caller Name", "Ann & Bö"), ("Empty", ""))


def test_twilios_library_and_we_agree() -> None:
    validator = RequestValidator("secret")
    signature = validator.compute_signature(URL, dict(FORM))
    assert signatures.twilio(Signed("POST", URL, {"X-Twilio-Signature": signature}, FORM), "secret")
    assert validator.validate(URL, dict(FORM), signature)
    assert not signatures.twilio(Signed("POST", URL, {"X-Twilio-Signature": signature}, FORM), "other")
    assert not signatures.twilio(Signed("POST", URL, {"X-Twilio-Signature": signature}, FORM[1:]), "secret")
    assert not signatures.twilio(Signed("POST", URL, {}, FORM), "secret")


def test_twilios_signature_of_a_websocket_upgrade() -> None:
    url = "wss://voice.example.com/telephony/twilio"
    signature = RequestValidator("secret").compute_signature(url, {})
    assert signatures.twilio(Signed("GET", url, {"X-Twilio-Signature": signature}), "secret")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("url", [URL, "https://voice.example.com/telephony/plivo/answer"])
@pytest.mark.parametrize("form", [(), (("CallUUID", "c 1"), ("From", "1415"), ("Empty", ""))])
def test_plivos_library_and_we_agree(method: str, url: str, form: tuple[tuple[str, str], ...]) -> None:
    build = construct_get_url if method == "GET" else construct_post_url
    signature = get_signature_v3(b"secret", build(url, dict(form)).decode(), "nonce1").decode()
    headers = {"X-Plivo-Signature-V3": f"AAAA,{signature}", "X-Plivo-Signature-V3-Nonce": "nonce1"}
    assert validate_v3_signature(method, url, "nonce1", "secret", signature, dict(form))
    assert signatures.plivo(Signed(method, url, headers, form), "secret")
    assert not signatures.plivo(Signed(method, url, headers, form), "other")
    assert not signatures.plivo(Signed(method, url, headers | {"X-Plivo-Signature-V3-Nonce": "n2"}, form), "secret")


def test_telnyx_library_and_we_agree() -> None:
    private = Ed25519PrivateKey.generate()
    public = base64.b64encode(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    body, now = b"CallSid=v3:abc&From=%2B1415", int(time.time())
    signed = base64.b64encode(private.sign(f"{now}|".encode() + body)).decode()
    headers = {"Telnyx-Signature-Ed25519": signed, "Telnyx-Timestamp": str(now)}
    verify_webhook_signature(body, headers, public)
    assert signatures.telnyx(Signed("POST", URL, headers, body=body), public, now)
    for wrong in (Signed("POST", URL, headers, body=body + b"&x=1"), Signed("POST", URL, {}, body=body)):
        with pytest.raises(WebhookVerificationError):
            verify_webhook_signature(wrong.body, wrong.headers, public)
        assert not signatures.telnyx(wrong, public, now)
    assert not signatures.telnyx(Signed("POST", URL, headers, body=body), public, now + 600)


def test_vonages_library_and_we_agree() -> None:
    secret, body, now = "s" * 32, b'{"uuid": "1"}', int(time.time())
    claims = {"iss": "Vonage", "iat": now, "payload_hash": hashlib.sha256(body).hexdigest(), "api_key": "k"}
    token = jwt.encode(claims, secret, algorithm="HS256")
    headers = {"Authorization": f"Bearer {token}"}
    assert vonage_verifies(token, secret) and not vonage_verifies(token, "t" * 32)
    assert signatures.vonage(Signed("POST", URL, headers, body=body), secret, now)
    assert not signatures.vonage(Signed("POST", URL, headers, body=body), "t" * 32, now)
    assert not signatures.vonage(Signed("POST", URL, headers, body=b"{}"), secret, now)
    assert not signatures.vonage(Signed("POST", URL, headers, body=body), secret, now + 600)
    unsigned = jwt.encode(claims, None, algorithm="none")
    assert not signatures.vonage(Signed("POST", URL, {"Authorization": f"Bearer {unsigned}"}, body=body), secret, now)


def test_twiml_is_what_twilios_library_writes() -> None:
    theirs = VoiceResponse()
    connect = Connect()
    connect.stream(url="wss://h/telephony/twilio/a&b")
    theirs.append(connect)
    ours = answers.twilio("wss://h/telephony/twilio/a&b").body

    def tree(text: str) -> str:
        return ElementTree.tostring(ElementTree.fromstring(text.encode())).decode().replace(" />", "/>")

    assert tree(ours) == tree(str(theirs)).replace(" />", "/>")


def test_plivo_xml_is_what_plivos_library_writes() -> None:
    from plivo import plivoxml

    theirs = plivoxml.ResponseElement()
    theirs.add(
        plivoxml.StreamElement(
            "wss://h/s", bidirectional=True, keepCallAlive=True, contentType="audio/x-mulaw;rate=8000"
        )
    )
    ours = ElementTree.fromstring(answers.plivo("wss://h/s").body.encode())
    wanted = ElementTree.fromstring(theirs.to_string().encode())
    assert ours[0].text == wanted[0].text and ours[0].attrib == wanted[0].attrib


def test_the_nccos_endpoint_passes_vonages_own_model() -> None:
    from vonage_voice.models import WebsocketEndpoint

    action = json.loads(answers.vonage("wss://h/s", 16_000, "u1").body)[0]
    assert action["action"] == "connect"
    checked = WebsocketEndpoint.model_validate(action["endpoint"][0])
    assert checked.uri == "wss://h/s" and checked.headers == {"uuid": "u1"}


def test_a_ticket_opens_one_stream_within_a_minute() -> None:
    clock = ManualClock()
    gate = Gate(TelephonyConfig(telnyx=TelnyxConfig(public_key="AAAA")), clock, locked=True)
    request = Signed("GET", "wss://h/telephony/telnyx/x", {})
    first, second = gate.ticket(), gate.ticket()
    gate.check_stream("telnyx", request, first)
    with pytest.raises(Unauthorized):
        gate.check_stream("telnyx", request, first)
    clock.advance(61)
    with pytest.raises(Unauthorized):
        gate.check_stream("telnyx", request, second)


def test_who_gets_in() -> None:
    clock, request = ManualClock(), Signed("GET", "wss://h/telephony/exotel", {})
    Gate(TelephonyConfig(), clock, locked=False).check_stream("exotel", request, "")
    with pytest.raises(Unauthorized, match=r"telephony\.token"):
        Gate(TelephonyConfig(), clock, locked=True).check_stream("exotel", request, "")
    guarded = Gate(TelephonyConfig(token="t"), clock, locked=False)
    guarded.check_stream("exotel", request, "t")
    with pytest.raises(Unauthorized):
        guarded.check_stream("exotel", request, "u")
    signed = Gate(TelephonyConfig(twilio=TwilioConfig(auth_token="x")), clock, locked=False)
    with pytest.raises(Unauthorized, match="not signed by twilio"):
        signed.check_answer("twilio", Signed("POST", URL, {}), "")
    with pytest.raises(Unauthorized):
        signed.check_stream("twilio", request, "")
