"""Calls, end to end within one process: a Python WebRTC peer, the service, and a worker that answers with tones."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from msgspec.structs import replace

from agent.config import HttpConfig, ServerConfig, WebRtcConfig
from agent.server.app import create_app
from agent.server.service import Service
from agent.server.workers import WorkerPool
from tests.support.rtc_client import RATE_HZ, RtcClient
from tests.support.speech import order
from tests.support.udp_relay import Conditions, UdpRelay

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEBRTC = WebRtcConfig(addresses=("127.0.0.1",), connect_timeout_s=2.0, disconnected_tolerance_s=3.0)


@dataclass
class Server:
    url: str
    service: Service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[WorkerPool]:
    command = [sys.executable, "-m", "tests.support.fake_worker", "--slots", "3"]
    pool = WorkerPool(command, 1, 30.0)
    running = asyncio.create_task(pool.run())
    await until(lambda: pool.ready)
    yield pool
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def serve(config: ServerConfig, pool: WorkerPool) -> AsyncIterator[Server]:
    service = Service(config, pool)
    runner = web.AppRunner(create_app(service))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield Server(f"http://127.0.0.1:{port}", service)
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(pool: WorkerPool) -> AsyncIterator[Server]:
    async for running in serve(
        ServerConfig(http=HttpConfig(allowed_origins=("https://elsewhere.example",)), webrtc=WEBRTC), pool
    ):
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked(pool: WorkerPool) -> AsyncIterator[Server]:
    async for running in serve(ServerConfig(http=HttpConfig(api_keys=("secret",)), webrtc=WEBRTC), pool):
        yield running


async def offer() -> str:
    """What a client would send; its connection is not kept."""
    client = RtcClient("")
    try:
        await client._peer.setLocalDescription(await client._peer.createOffer())
        return str(client._peer.localDescription.sdp)
    finally:
        await client.__aexit__()


async def post(
    url: str, body: object, content_type: str | None = "application/sdp", **headers: str
) -> tuple[int, dict[str, object], aiohttp.typedefs.LooseHeaders]:
    if content_type is not None:
        headers["Content-Type"] = content_type
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as response:
        is_json = response.content_type == "application/json"
        return response.status, (await response.json() if is_json else {}), response.headers


async def settled(server: Server, calls: int = 0) -> None:
    """Waits until so many calls are left, with their sessions."""
    await until(lambda: len(server.service.calls) == server.service.session_count == calls)


async def until(true: Callable[[], bool]) -> None:
    for _ in range(300):
        if true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come true within 15 s")


# --- a conversation ---


async def test_a_spoken_turn_is_answered_in_order_and_heard(server: Server) -> None:
    speech = order(RATE_HZ, before_s=0.2, after_s=0.5)
    async with RtcClient(server.url, speech) as client:
        await client.wait_for("session.created")
        assert client.types()[0] == "session.created"
        await client.wait_for("output_audio_buffer.stopped", timeout_s=25)
        kinds = client.types()
        wanted = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "response.created",
            "response.output_item.added",
            "output_audio_buffer.started",
            "response.output_audio.done",
            "response.done",
            "output_audio_buffer.stopped",
        ]
        assert [kind for kind in kinds if kind in wanted] == wanted
        assert "response.output_audio.delta" not in kinds
        spoken = [event["delta"] for event in client.of_type("response.output_audio_transcript.delta")]
        assert "".join(map(str, spoken)) == "One large latte. That is four fifty."
        heard = np.concatenate(client.heard)
        loud = np.abs(heard) > 1000
        assert 2.0 < loud.sum() / RATE_HZ < 3.5  # seven words of 0.4 s, as a sine
    await settled(server)


async def test_words_arrive_with_their_sound_not_ahead_of_it(server: Server) -> None:
    async with RtcClient(server.url) as client:
        await client.wait_for("session.created")
        began = asyncio.get_running_loop().time()
        ask(client, "A latte, please.")
        times = []
        for count in range(1, 8):
            await client.wait_for("response.output_audio_transcript.delta", count=count)
            times.append(asyncio.get_running_loop().time() - began)
        steps = np.diff(times)
        assert 2.2 < times[-1] - times[0] < 2.9
        assert steps.min() > 0.15
    await settled(server)


async def test_an_interruption_flushes_and_truncates_to_what_was_heard(server: Server) -> None:
    async with RtcClient(server.url) as client:
        await client.wait_for("session.created")
        ask(client, "A latte, please.")
        await client.wait_for("response.output_audio_transcript.delta", count=3)
        client.send(type="response.cancel")
        client.send(type="output_audio_buffer.clear")
        truncated = await client.wait_for("conversation.item.truncated")
        assert 700 < int(str(truncated["audio_end_ms"])) < 1700
        done = client.of_type("response.done")[0]["response"]
        assert isinstance(done, dict) and done["status"] == "cancelled"
        kinds = client.types()
        assert kinds.index("output_audio_buffer.cleared") > kinds.index("response.done")
        await asyncio.sleep(0.5)
        assert client.level(last_s=0.2) < 30
        assert "error" not in kinds
    await settled(server)


async def test_speech_over_the_answer_stops_it_and_truncates_without_being_asked(server: Server) -> None:
    speech = order(RATE_HZ, before_s=1.2)
    async with RtcClient(server.url, speech) as client:
        await client.wait_for("session.created")
        ask(client, "A latte, please.")
        await client.wait_for("conversation.item.truncated", timeout_s=10)
        kinds = client.types()
        assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.done")
        assert kinds.index("response.done") < kinds.index("output_audio_buffer.cleared")
        assert kinds.index("output_audio_buffer.cleared") < kinds.index("conversation.item.truncated")
    await settled(server)


async def test_appending_audio_is_refused_because_audio_travels_as_rtp(server: Server) -> None:
    async with RtcClient(server.url) as client:
        await client.wait_for("session.created")
        client.send(type="input_audio_buffer.append", event_id="mine", audio="AAAA")
        error = (await client.wait_for("error"))["error"]
        assert isinstance(error, dict)
        assert (error["code"], error["event_id"]) == ("invalid_event_for_transport", "mine")
    await settled(server)


async def test_the_session_part_of_the_body_configures_the_session(server: Server) -> None:
    session = {"type": "realtime", "instructions": "Be brief.", "audio": {"input": {"turn_detection": None}}}
    async with RtcClient(server.url, session=session) as client:
        created = (await client.wait_for("session.created"))["session"]
        assert isinstance(created, dict)
        assert created["instructions"] == "Be brief."
        assert created["audio"]["input"]["turn_detection"] is None
    await settled(server)


async def test_hanging_up_by_request_ends_the_call(server: Server) -> None:
    async with RtcClient(server.url) as client:
        await client.wait_for("session.created")
        assert client.location.startswith("/v1/realtime/calls/")
        status, _, _ = await post(f"{server.url}{client.location}/hangup", b"", None)
        assert status == 200
        await settled(server)
        status, body, _ = await post(f"{server.url}{client.location}/hangup", b"", None)
        assert (status, code(body)) == (404, "call_not_found")


async def test_a_side_band_observes_steers_and_ends_with_the_call(server: Server) -> None:
    async with RtcClient(server.url) as client, aiohttp.ClientSession() as http:
        await client.wait_for("session.created")
        call_id = client.location.rsplit("/", 1)[1]
        async with http.ws_connect(f"{server.url}/v1/realtime?call_id={call_id}") as side:
            assert (await side.receive_json(timeout=5))["type"] == "session.created"
            await side.send_json({"type": "session.update", "session": {"instructions": "Whisper."}})
            updated = await client.wait_for("session.updated")
            assert (await side.receive_json(timeout=5)) == updated
            # Its own mistakes are its own: a stock client may end at an error that it cannot explain.
            await side.send_bytes(b"x")
            await side.send_json({"type": "response.cancel"})
            codes = [(await side.receive_json(timeout=5))["error"]["code"] for _ in range(2)]
            assert codes == ["invalid_event", "response_cancel_not_active"]
            assert not client.of_type("error")
            await post(f"{server.url}{client.location}/hangup", b"", None)
            assert (await side.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
            assert side.close_code == 1000
    await settled(server)


async def test_bad_events_get_one_error_each_and_the_call_goes_on(server: Server) -> None:
    async with RtcClient(server.url) as client:
        await client.wait_for("session.created")
        sent: list[tuple[str | bytes, str]] = [
            ("{", "invalid_event"),
            ("[]", "invalid_event"),
            (b"\x00\xff", "invalid_event"),
            ('{"type": "no.such.event"}', "invalid_event"),
            ('{"type": 7}', "invalid_value"),
            ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_event_for_transport"),
            (
                '{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": 1}',
                "item_truncate_invalid_item_id",
            ),
            (
                '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "mp3"}}}}}',
                "invalid_value",
            ),
            (
                '{"type": "conversation.item.create", "item": {"pad": "' + "x" * 60_000 + '"}}',
                "missing_required_parameter",
            ),
        ]
        for count, (data, code) in enumerate(sent, start=1):
            client._channel.send(data)
            error = (await client.wait_for("error", count=count))["error"]
            assert isinstance(error, dict) and error["code"] == code, (data, error)
            assert "Invalid value for ''" not in str(error["message"])
        ask(client, "A latte, please.")
        await client.wait_for("output_audio_buffer.started")
        assert len(client.of_type("error")) == len(sent)
    await settled(server)


async def test_an_order_with_the_button_held_on_an_open_line(server: Server) -> None:
    """A stock client in push-to-talk leaves its microphone on; only what is said between clear and commit counts."""
    session = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    speech = order(RATE_HZ, before_s=1.0)
    async with RtcClient(server.url, speech, session=session) as client:
        await client.wait_for("session.created")
        client.send(type="input_audio_buffer.clear")
        await client.wait_for("input_audio_buffer.cleared")
        await asyncio.sleep(len(speech) / RATE_HZ)
        client.send(type="input_audio_buffer.commit")
        client.send(type="response.create")
        committed = await client.wait_for("input_audio_buffer.committed")
        heard = await client.wait_for("conversation.item.input_audio_transcription.completed")
        assert heard["item_id"] == committed["item_id"]
        usage = heard["usage"]
        assert isinstance(usage, dict)
        # The second of silence before it is not part of it.
        assert 1.0 < usage["seconds"] < len(speech) / RATE_HZ - 0.4
        assert not client.of_type("input_audio_buffer.speech_started")
        await client.wait_for("output_audio_buffer.started")
    await settled(server)


# --- signalling ---


async def test_the_answer_carries_all_candidates_and_asks_for_error_correction(server: Server) -> None:
    async with RtcClient(server.url) as client:
        assert "a=candidate:" in client.answer
        assert "127.0.0.1" in client.answer
        assert "useinbandfec=1" in client.answer
        assert "PCMU" not in client.answer
        await client.wait_for("session.created")
    await settled(server)


async def test_an_offer_without_candidates_is_answered_and_connects(server: Server) -> None:
    """As stock clients offer: the server learns the client's address from its checks alone."""
    client = RtcClient(server.url)
    local = type(client._peer).localDescription
    stripped = property(lambda peer: without_candidates(local.fget(peer)))  # type: ignore[attr-defined]
    client._peer.__class__ = type("Quiet", (type(client._peer),), {"localDescription": stripped})
    async with client:
        await client.wait_for("session.created")
    await settled(server)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "empty"),
        (b"hello", "no SDP"),
        (b"v=0\r\nm=audio x y z\r\n", "malformed"),
        (b"v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", "0 audio lines"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
async def test_a_malformed_offer_is_a_400_with_a_sentence(server: Server, body: bytes, sentence: str) -> None:
    status, answer, _ = await post(f"{server.url}/v1/realtime/calls", body)
    assert status == 400
    assert sentence in message(answer)
    assert server.service.session_count == 0


async def test_an_offer_without_opus_is_refused(server: Server) -> None:
    text = (await offer()).replace("opus/48000/2", "telepathy/48000/2")
    status, answer, _ = await post(f"{server.url}/v1/realtime/calls", text.encode())
    assert status == 400
    assert "opus" in message(answer)


async def test_damaged_offers_never_end_in_a_server_error(server: Server) -> None:
    lines = (await offer()).split("\r\n")
    for index in range(len(lines) - 1):
        damaged = "\r\n".join(lines[:index] + lines[index + 1 :])
        status, _, headers = await post(f"{server.url}/v1/realtime/calls", damaged.encode())
        assert status in (201, 400), f"without {lines[index]!r}"
        if status == 201:
            await post(f"{server.url}{dict(headers)['Location']}/hangup", b"", None)
    await settled(server)


async def test_other_content_types_are_a_415_and_too_long_offers_a_413(server: Server) -> None:
    url = f"{server.url}/v1/realtime/calls"
    assert (await post(url, b"{}", "application/json"))[0] == 415
    assert (await post(url, b"v=0\r\n" + b"a=x\r\n" * 20_000))[0] == 413


async def test_a_bad_session_object_is_a_400_naming_the_field(server: Server) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("sdp", await offer())
    form.add_field("session", '{"type": "realtime", "output_modalities": ["smell"]}')
    status, answer, _ = await post(f"{server.url}/v1/realtime/calls", form, None)
    assert status == 400
    assert "output_modalities" in message(answer)
    assert server.service.session_count == 0


async def test_a_key_is_asked_for_where_one_is_configured(locked: Server) -> None:
    url = f"{locked.url}/v1/realtime/calls"
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        status, answer, _ = await post(url, b"v=0", **headers)
        assert (status, code(answer)) == (401, "invalid_api_key")
    assert (await post(url, b"v=0", Authorization="Bearer secret"))[0] == 400


async def test_preflight_and_exposed_headers_let_pages_of_other_origins_call(server: Server) -> None:
    url = f"{server.url}/v1/realtime/calls"
    asked = {
        "Origin": "https://elsewhere.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-openai-agents-sdk",
    }
    async with aiohttp.ClientSession() as http, http.options(url, headers=asked) as response:
        assert response.status == 204
        assert "x-openai-agents-sdk" in response.headers["Access-Control-Allow-Headers"]
    _, _, headers = await post(url, b"v=0", Origin="https://elsewhere.example")
    assert "Location" in dict(headers)["Access-Control-Expose-Headers"]


async def test_a_full_house_is_a_503_that_says_when_to_come_again(server: Server) -> None:
    clients = [RtcClient(server.url) for _ in range(3)]
    try:
        for client in clients:
            await client.__aenter__()
            await client.wait_for("session.created")
            ask(client, "A latte, please.")
            await client.wait_for("output_audio_buffer.started")
        status, answer, headers = await post(f"{server.url}/v1/realtime/calls", (await offer()).encode())
        assert (status, code(answer)) == (503, "server_overloaded")
        assert int(dict(headers)["Retry-After"]) > 0
    finally:
        for client in clients:
            await client.__aexit__()
    await settled(server)


# --- the network ---


async def test_a_network_that_loses_packets_makes_the_next_answer_coarser_and_says_so(server: Server) -> None:
    async with RtcClient(server.url, relay=UdpRelay(Conditions(loss=0.3))) as client:
        await client.wait_for("session.created")
        (call,) = server.service.calls.values()
        policy = call.session._briefing.policy
        # Receiver reports have come: the round trip is in nothing else.
        await until(lambda: (policy.network.loss or 0.0) >= 0.02 and policy.network.round_trip_ms is not None)
        ask(client, "A latte, please.")
        created = await client.wait_for("response.created")
        rate = created["response"]["x_agogic"]["output_frame_rate"]
        assert rate["requested_hz"] <= 8.0
        assert re.fullmatch(r"loss \d+ %: 12.5 → (8|5) Hz", rate["reason"]), rate
    await settled(server)


# --- endings ---


async def test_a_client_that_never_connects_is_released(server: Server) -> None:
    status, _, _ = await post(f"{server.url}/v1/realtime/calls", (await offer()).encode())
    assert status == 201
    assert server.service.session_count == 1
    await settled(server)


async def test_closed_calls_leave_no_task_thread_or_session(server: Server) -> None:
    async def call() -> None:
        async with RtcClient(server.url) as client:
            await client.wait_for("session.created")
            ask(client, "A latte, please.")
            await client.wait_for("output_audio_buffer.started")
        await settled(server)

    await call()
    gc.collect()
    tasks, threads, objects = len(asyncio.all_tasks()), threading.active_count(), peers_alive()
    for _ in range(4):
        await call()
    await asyncio.sleep(0.3)
    gc.collect()
    assert threading.active_count() <= threads
    assert len(asyncio.all_tasks()) <= tasks
    assert peers_alive() <= objects


def peers_alive() -> int:
    return sum(1 for thing in gc.get_objects() if type(thing).__name__ in ("RTCPeerConnection", "Session", "Peer"))


def ask(client: RtcClient, text: str) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    client.send(type="conversation.item.create", item=item)
    client.send(type="response.create")


def without_candidates(description: object) -> object:
    text = "\r\n".join(
        line
        for line in description.sdp.split("\r\n")  # type: ignore[attr-defined]
        if not line.startswith(("a=candidate", "a=end-of-candidates"))
    )
    return (
        replace(description, sdp=text)
        if hasattr(description, "__struct_fields__")
        else type(description)(
            sdp=text,
            type=description.type,  # type: ignore[attr-defined,call-arg]
        )
    )


def code(body: dict[str, object]) -> object:
    error = body["error"]
    assert isinstance(error, dict)
    return error["code"]


def message(body: dict[str, object]) -> str:
    error = body["error"]
    assert isinstance(error, dict)
    return str(error["message"])
