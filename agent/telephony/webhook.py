"""Webhooks as OpenAI sends them (Standard Webhooks): signed, sent again when nobody takes them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging

import aiohttp
import msgspec

from agent.ids import secret
from agent.telephony.sip.call import SipCall

log = logging.getLogger("agogic.telephony")

TRIES = 3
TIMEOUT_S = 5.0
_PRIVATE = ("authorization", "proxy-authorization")


def signed(body: bytes, webhook_id: str, unix_s: int, key: str) -> dict[str, str]:
    """The headers that prove a body; `key` is `whsec_` and base64, or any text."""
    raw = key.encode()
    if key.startswith("whsec_"):
        try:
            raw = base64.b64decode(key.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raw = key.encode()
    content = f"{webhook_id}.{unix_s}.".encode() + body
    signature = base64.b64encode(hmac.new(raw, content, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(unix_s),
        "webhook-signature": f"v1,{signature}",
        "content-type": "application/json",
    }


def incoming_event(call: SipCall, webhook_id: str, unix_s: int) -> bytes:
    """`realtime.call.incoming`: the call's id and the headers of its INVITE, credentials left out."""
    headers = call.invite.headers
    fields = [
        {"name": name, "value": value}
        for name in headers.keys()  # noqa: SIM118
        if name.lower() not in _PRIVATE
        for value in headers.getlist(name)
    ]
    data = {"call_id": call.id, "sip_headers": fields, "sip_media_security": "rtp"}
    event = {
        "object": "event",
        "id": webhook_id,
        "type": "realtime.call.incoming",
        "created_at": unix_s,
        "data": data,
    }
    return msgspec.json.encode(event)


async def send(url: str, key: str, call: SipCall, unix_s: int) -> bool:
    """False where nobody took it."""
    webhook_id = secret("evt")
    body = incoming_event(call, webhook_id, unix_s)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        for attempt in range(TRIES):
            await asyncio.sleep(0.5 * attempt)
            try:
                async with http.post(url, data=body, headers=signed(body, webhook_id, unix_s, key)) as answer:
                    if answer.status < 300:
                        return True
                    log.warning("the webhook %s answered %d", url, answer.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("the webhook %s cannot be reached: %s", url, error)
    return False
