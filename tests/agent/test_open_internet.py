"""Calls beyond one network: TURN credentials, a range of ports, external addresses, IPv6, HTTPS."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import hmac
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.config import ConfigError, HttpConfig, ServerConfig, parse_config
from agent.rtc.gathering import Network, as_seen, external_addresses, gathering_on
from agent.rtc.peer import Peer
from agent.server.app import create_app
from agent.server.certificates import Watcher, load, server_context
from agent.server.door import DoorSite, Tls, door_key
from agent.server.service import Service
from agent.server.workers import WorkerPool
from tests.agent.test_webrtc_offers import Nobody, offered
from tests.support.rtc_client import RtcClient

TURN = """
[webrtc]
addresses = ["::1"]
[[webrtc.ice_servers]]
urls = ["turn:turn.example.org:3478?transport=udp", "turns:turn.example.org"]
secret = "shared"
[[webrtc.ice_servers]]
urls = ["stun:stun.example.org"]
"""


@asynccontextmanager
async def serving(config: ServerConfig, *, workers: bool = False) -> AsyncIterator[tuple[int, Service]]:
    """The port, on loopback. Without workers no session can be opened."""
    pool = WorkerPool([sys.executable, "-m", "tests.support.fake_worker"], 1, 60.0)
    running = asyncio.create_task(pool.run()) if workers else None
    if workers:
        await pool.wait_ready()
    service = Service(config, pool)
    app = create_app(service)
    runner = web.AppRunner(app)
    await runner.setup()
    context = server_context(config.http)
    tls = Tls(context, config.http.request_timeout_s) if context is not None else None
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    await DoorSite(runner, listening, app[door_key], tls).start()
    watcher = Watcher([config.http.certificate], lambda: load(context, config.http)) if context is not None else None
    service.watcher = watcher  # type: ignore[attr-defined]
    try:
        yield port, service
    finally:
        await runner.cleanup()
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


# --- TURN ---


async def test_callers_get_credentials_of_their_own_that_expire(tmp_path: Path) -> None:
    config = parse_config('[http]\napi_keys = ["key"]\n' + TURN)
    async with serving(config) as (port, service), aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{port}/v1/realtime/ice_servers"
        async with http.get(url) as refused:
            assert refused.status == 401
        replies = []
        for _ in range(2):
            async with http.get(url, headers={"Authorization": "Bearer key"}) as response:
                replies.append(await response.json())
        (turn, stun), (other, _) = (reply["ice_servers"] for reply in replies)
        assert stun == {"urls": ["stun:stun.example.org"]}
        assert turn["urls"] == ["turn:turn.example.org:3478?transport=udp", "turns:turn.example.org"]
        expiry, _, name = turn["username"].partition(":")
        assert int(expiry) == replies[0]["expires_at"] and 0 <= int(expiry) - service.clock.unix_s() <= 600
        digest = hmac.new(b"shared", turn["username"].encode(), hashlib.sha1).digest()
        assert base64.b64decode(turn["credential"]) == digest
        assert name and other["username"].partition(":")[2] != name
        assert "shared" not in str(replies)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[webrtc.ice_servers]]\nurls = ["turn:user:pw@host"]', "no address of a STUN or TURN server"),
        ('[[webrtc.ice_servers]]\nurls = ["turn:host"]\nsecret = "hidden"\nusername = "u"', "one or the other"),
        ("[webrtc]\nports = [5000, 4000]", "5000 and 4000"),
        ('[webrtc]\nexternal_addresses = ["outside"]', "SEEN/BOUND"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_without_showing_secrets(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(text)
    assert said in str(error.value) and "hidden'" not in str(error.value)


# --- addresses and ports ---


def peer(network: Network) -> Peer:
    return Peer(Nobody(), lambda samples: None, network=network, connect_timeout_s=5.0, disconnected_tolerance_s=5.0)


def candidates(description: str) -> set[tuple[str, int]]:
    found = re.findall(r"^a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", description, re.MULTILINE)
    return {(address, int(port)) for address, port in found}


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_calls_use_the_ports_that_they_may_and_no_others() -> None:
    port = free_port()
    network = Network(addresses=("127.0.0.1",), ports=(port, port))
    (client, offer), one, other = await offered("audio"), peer(network), peer(network)
    try:
        assert candidates(await one.answer(offer)) == {("127.0.0.1", port)}
        assert candidates(await other.answer(offer)) == set(), "the only port is in use"
        await one.close()
        third = peer(network)
        assert candidates(await third.answer(offer)) == {("127.0.0.1", port)}, "and free again when its call has ended"
        await third.close()
    finally:
        for closed in (one, other, client):
            await closed.close()


async def test_behind_nat_a_call_is_offered_where_the_world_sees_it() -> None:
    external = external_addresses(["203.0.113.7/127.0.0.1"])
    (client, offer), ours = await offered("audio"), peer(Network(addresses=("127.0.0.1",), external=external))
    try:
        answer = await ours.answer(offer)
        assert {address for address, _ in candidates(answer)} == {"203.0.113.7"}
        assert "127.0.0.1" not in answer
    finally:
        await ours.close()
        await client.close()


def test_an_external_address_without_a_bound_one_stands_for_all_of_its_version() -> None:
    text = (
        "c=IN IP4 10.0.0.5\r\n"
        "a=candidate:1 1 udp 1 10.0.0.5 4000 typ host\r\n"
        "a=candidate:2 1 udp 1 fd00::5 4000 typ host\r\n"
        "a=candidate:3 1 udp 1 192.0.2.9 4000 typ relay raddr 10.0.0.5 rport 1\r\n"
    )
    seen = as_seen(text, external_addresses(["203.0.113.7"]))
    assert "c=IN IP4 203.0.113.7" in seen and "203.0.113.7 4000 typ host" in seen
    assert "fd00::5 4000 typ host" in seen and "192.0.2.9 4000 typ relay" in seen


async def test_a_call_over_ipv6_connects() -> None:
    async with serving(parse_config(TURN), workers=True) as (port, _):
        with gathering_on(Network(addresses=("::1",))):
            async with RtcClient(f"http://127.0.0.1:{port}") as client:
                assert {address for address, _ in candidates(client.answer)} == {"::1"}
                await client.wait_for("session.created", timeout_s=30)


# --- HTTPS ---


def write_certificate(folder: Path, serial: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), serial, now, now + datetime.timedelta(days=1))
    (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def https(folder: Path, **more: object) -> ServerConfig:
    files = {"certificate": str(folder / "cert.pem"), "private_key": str(folder / "key.pem")}
    return ServerConfig(http=HttpConfig(**files, **more))  # type: ignore[arg-type]


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def shown(port: int) -> int:
    """The serial number of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


async def test_https_serves_requests_and_shows_a_new_certificate_once_its_files_change(tmp_path: Path) -> None:
    write_certificate(tmp_path, 1)
    async with serving(https(tmp_path)) as (port, service), aiohttp.ClientSession() as http:
        async with http.get(f"https://127.0.0.1:{port}/healthz", ssl=trusting()) as response:
            assert (await response.json())["status"] == "ok"
        async with http.post(
            f"https://127.0.0.1:{port}/v1/realtime/calls", ssl=trusting(), data=b"x" * 70_000
        ) as large:
            assert large.status == 415
        assert await shown(port) == 1
        (tmp_path / "cert.pem").write_text("half a certifica")
        service.watcher.look()  # type: ignore[attr-defined]
        assert await shown(port) == 1, "what cannot be read changes nothing"
        write_certificate(tmp_path, 2)
        service.watcher.look()  # type: ignore[attr-defined]
        assert await shown(port) == 2


async def test_a_handshake_that_never_ends_is_counted_and_ended(tmp_path: Path) -> None:
    write_certificate(tmp_path, 1)
    config = https(tmp_path, max_connections_per_address=1, request_timeout_s=1.0)
    async with serving(config) as (port, service):
        silent, _ = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(30):
            assert await shown(port) == 1, "who has not even shaken hands makes room"
            assert await silent.read() == b""
            late, _ = await asyncio.open_connection("127.0.0.1", port)
            assert await late.read() == b"", "and is not waited for"
        assert service.metrics.registry.get_sample_value("agogic_refused_total", {"reason": "address"}) is None


def test_a_certificate_that_cannot_be_used_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as error:
        server_context(https(tmp_path).http)
    assert "\n" not in str(error.value)
