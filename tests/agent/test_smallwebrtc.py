"""SmallWebRTC signalling: what a browser with pipecat's client does not do by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from agent.config import parse_config
from agent.server.service import Service
from tests.agent.test_open_internet import serving
from tests.agent.test_webrtc_offers import offered
from tests.support.rtc_client import Voice

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
[http]
api_keys = ["key", "other"]
[webrtc]
addresses = ["127.0.0.1"]
connect_timeout_s = 60.0
[[webrtc.ice_servers]]
urls = ["turn:127.0.0.1:9"]
secret = "shared"
"""
BEARER = {"Authorization": "Bearer key"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[tuple[int, Service]]:
    async with serving(parse_config(CONFIG), workers=True) as found:
        yield found


@pytest.fixture(scope="module")
def url(served: tuple[int, Service]) -> str:
    return f"http://127.0.0.1:{served[0]}"


async def asked(url: str, body: Any, method: str = "POST", path: str = "/api/offer", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, str) else json.dumps(body)
    async with (
        aiohttp.ClientSession(url) as http,
        http.request(method, path, data=data, headers={**BEARER, "Content-Type": "application/json", **headers}) as got,
    ):
        return got.status, await got.json()


class Browser:
    """A client of the transport, in Python: offers, and keeps what it is told."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.pc_id = ""
        self._changed = asyncio.Event()

    async def connect(self, url: str, **more: Any) -> tuple[int, Any]:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.peer.addTrack(Voice(np.zeros(0, np.int16)))
        channel = self.peer.createDataChannel("chat")
        opened = asyncio.Event()
        channel.on("open", opened.set)
        channel.on("message", self._take)
        await self.peer.setLocalDescription(await self.peer.createOffer())
        self.offer = self.peer.localDescription.sdp
        status, answer = await asked(url, {"sdp": self.offer, "type": "offer", "pc_id": None, **more})
        if status == 200:
            self.pc_id, self.answer = answer["pc_id"], answer["sdp"]
            await self.peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
            await asyncio.wait_for(opened.wait(), 20)
            self.channel = channel
        return status, answer

    def send(self, kind: str, **data: Any) -> None:
        self.channel.send(json.dumps({"id": "1", "label": "rtvi-ai", "type": kind, "data": data}))

    async def until(self, kind: str, count: int = 1) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while len(found := [message for message in self.got if message["type"] == kind]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found[count - 1]

    def _take(self, text: str) -> None:
        self.got.append(json.loads(text))
        self._changed.set()


async def test_a_call_is_offered_written_to_offered_again_and_left(url: str) -> None:
    client = Browser()
    session = {"type": "realtime", "output_modalities": ["text"]}
    await client.connect(url, requestData={"session": session})
    client.send("client-ready", version="2.1.0")
    await client.until("bot-ready")
    client.send("send-text", content="A latte.")
    assert (await client.until("bot-output"))["data"]["will_be_spoken"] is False
    # The same connection once more, as a client does that has found candidates since.
    again = {"sdp": client.offer, "type": "offer", "pc_id": client.pc_id, "restart_pc": False}
    assert await asked(url, again) == (200, {"sdp": client.answer, "type": "answer", "pc_id": client.pc_id})
    other = Browser()
    await other.connect(url)
    status, refused = await asked(url, {**again, "sdp": other.offer})
    assert (status, refused["error"]["code"]) == (400, "invalid_sdp") and "restart_pc" in refused["error"]["message"]
    for leaving in (client, other):
        leaving.send("disconnect-bot")
    await asyncio.gather(client.until("signalling"), other.until("signalling"))
    assert (await asked(url, {"pc_id": client.pc_id, "candidates": []}, "PATCH"))[0] == 404
    await asyncio.gather(client.peer.close(), other.peer.close())


async def test_a_client_that_offers_anew_takes_its_session_along(url: str, served: tuple[int, Service]) -> None:
    first, second, stranger = Browser(), Browser(), Browser()
    await first.connect(url)
    first.send("send-text", content="A latte.", options={"audio_response": False})
    await first.until("bot-output")
    other_key = {"Authorization": "Bearer other"}
    stranger_offer = {"sdp": first.offer, "pc_id": first.pc_id, "restart_pc": True}
    status, refused = await asked(url, stranger_offer, **other_key)
    assert (status, refused["error"]["code"]) == (404, "resume_token_unknown")
    status, answer = await second.connect(url, pc_id=first.pc_id, restart_pc=True)
    assert status == 200 and answer["pc_id"] != first.pc_id
    second.send("send-text", content="And a muffin.", options={"audio_response": False})
    await second.until("bot-output")
    assert not [message for message in first.got if message["type"] == "signalling"], "the bot has not left"
    calls = served[1].calls
    assert calls[first.pc_id] is calls[second.pc_id], "it is the same session"
    # One that is not known (any more) begins anew.
    assert (await stranger.connect(url, pc_id="rtc_none", restart_pc=True))[0] == 200
    assert calls[stranger.pc_id] is not calls[second.pc_id]
    await asyncio.gather(first.peer.close(), second.peer.close(), stranger.peer.close())


async def test_candidates_follow_the_offer(url: str) -> None:
    peer, sdp = await offered("audio", "video", "video")
    bare = "\r\n".join(line for line in sdp.splitlines() if not line.startswith("a=candidate")) + "\r\n"
    status, answer = await asked(url, {"sdp": bare, "type": "offer"}, path="/sessions/some-name/api/offer")
    assert status == 200
    found = [line.removeprefix("a=") for line in sdp.splitlines() if line.startswith("a=candidate")]
    candidates = [{"candidate": value, "sdp_mid": "0", "sdp_mline_index": 0} for value in (*found[:3], "")]
    path = "/sessions/some-name/api/offer"
    body = {"pc_id": answer["pc_id"], "candidates": candidates}
    assert await asked(url, body, "PATCH", path) == (200, {"status": "success"})
    for wrong, status in (
        ({"pc_id": "rtc_none", "candidates": candidates}, 404),
        ({"pc_id": answer["pc_id"], "candidates": [{"candidate": "candidate:nonsense"}]}, 422),
        ({"candidates": []}, 400),
        ({"pc_id": answer["pc_id"], "candidates": candidates * 20}, 400),
    ):
        assert (await asked(url, wrong, "PATCH"))[0] == status
    await peer.close()


async def test_what_is_no_offer_is_refused(url: str) -> None:
    for body, status in (
        ("no json", 400), ({"type": "offer"}, 400), ({"sdp": "v=0"}, 400), ({"sdp": "x" * 70_000}, 400),
        ("x" * 1_300_000, 413), ({"sdp": "v=0", "request_data": {"voice": "x"}}, 400),
    ):  # fmt: skip
        assert (await asked(url, body))[0] == status
    client, sdp = await offered("audio")
    settings = {"session": {"type": "realtime", "nonsense": 1}}
    status, refused = await asked(url, {"sdp": sdp, "request_data": settings})
    assert (status, refused["error"]["code"]) == (400, "unknown_parameter")
    await client.close()


async def test_keys_and_origins_are_those_of_any_call(url: str) -> None:
    client, sdp = await offered("audio")
    candidates = {"pc_id": "", "candidates": []}
    for method, path, body in (
        ("POST", "/start", {}),
        ("POST", "/api/offer", {"sdp": sdp}),
        ("PATCH", "/api/offer", candidates),
    ):
        assert (await asked(url, body, method, path, Authorization="Bearer nobody"))[0] == 401
        assert (await asked(url, body, method, path, Origin="https://elsewhere.example"))[0] == 403
    await client.close()


async def test_start_names_a_session_and_the_servers_that_help(url: str) -> None:
    status, started = await asked(url, {"transport": "webrtc", "body": {}}, path="/start")
    assert status == 200 and started["sessionId"]
    (server,) = started["iceConfig"]["iceServers"]
    assert server["urls"] == ["turn:127.0.0.1:9"] and server["username"] and server["credential"]
