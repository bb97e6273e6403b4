"""What the guide says about deploying, done: its proxy in front of its configuration."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.docs.test_docs import BLOCKS
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.ws_client import WsClient

NAME = "talk.example.org"


def block(kind: str, holding: str = "") -> str:
    (found,) = (code for page, of, code in BLOCKS if page.name == "deploy.md" and of == kind and holding in code)
    return found


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of the guide's name, signed by itself: the certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=now.year + 1, day=1)
    )
    signed = made.sign(key, hashes.SHA256())
    paths = folder / "chain.pem", folder / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    unlocked = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, unlocked))
    return paths


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[int]:
    """The guide's nginx in front of the guide's configuration; the port of the proxy."""
    if shutil.which("nginx") is None:
        pytest.fail("nginx is needed for this test: apt-get install nginx-light, or run `make test`")
    config = tmp_path / "agogic.toml"
    config.write_text(block("toml", "allowed_hosts"))
    with ServiceProcess(fake_worker_command(), config=config) as service:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        chain, key = certificate(tmp_path)
        served = block("nginx").replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        served = served.replace("http://127.0.0.1:8790", service.base_url)
        served = re.sub(r"(ssl_certificate\s+)\S+;", rf"\g<1>{chain};", served)
        served = re.sub(r"(ssl_certificate_key\s+)\S+;", rf"\g<1>{key};", served)
        whole = tmp_path / "nginx.conf"
        top = "daemon off; pid nginx.pid; error_log errors.log;" + (" user root;" if os.getuid() == 0 else "")
        whole.write_text(f"{top} events {{}} http {{ access_log off; {served} }}")
        proxy = subprocess.Popen(["nginx", "-p", str(tmp_path), "-c", str(whole)])
        try:
            deadline_s = time.monotonic() + 20
            while proxy.poll() is None and time.monotonic() < deadline_s:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            assert proxy.poll() is None, (tmp_path / "errors.log").read_text()
            yield port
        finally:
            proxy.terminate()
            proxy.wait(10)


async def test_a_conversation_goes_through_the_proxy_under_its_name(proxied: int) -> None:
    (key,) = re.findall(r'api_keys = \["([^"]+)"\]', block("toml", "allowed_hosts"))
    address = f"https://127.0.0.1:{proxied}/v1/realtime?model=agogic"
    headers = {"Host": NAME, "Authorization": f"Bearer {key}", "Origin": f"https://{NAME}"}
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(address, headers=headers, ssl=False, max_msg_size=0) as connection:
            client = WsClient(connection)
            await client.until("session.created")
            assert (await client.ask())["status"] == "completed"
        async with http.get(f"https://127.0.0.1:{proxied}/", headers={"Host": "evil.example"}, ssl=False) as refused:
            assert refused.status >= 400
