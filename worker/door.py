"""The way in for services on other machines: TLS with a certificate made at start, and one ticket a connection.

The private key lives in this process alone. What whoever started the worker needs to issue tickets is written into a
file that only it can read (`agent.handshake.Door`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import os
import secrets
import ssl
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent import handshake
from agent.handshake import CHALLENGE_BYTES, HANDSHAKE_S, KEY_BYTES, MAX_PROOF_BYTES, Gate

log = logging.getLogger("agogic.worker")

MAX_STRANGERS = 64
"""Connections that have not proved anything yet; more are closed at once."""
_HEADER = struct.Struct("<I")
_VALID_DAYS = 3650

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class WorkerDoor:
    """Listens at `address` (HOST:PORT; port 0: any free one) and tells where in the file `told`. `serve` gets the
    connections that were let in."""

    def __init__(self, address: str, told: Path) -> None:
        self._host, _, port = address.rpartition(":")
        self._host = self._host.strip("[]")
        self._port = int(port)
        self._told = told
        self._strangers = 0

    async def open(self, serve: Serve) -> asyncio.Server:
        """Raises OSError where the address cannot be bound, or the file not be written."""
        key = secrets.token_bytes(KEY_BYTES)
        gate = Gate(key)
        certificate, context = _identity(self._host)

        async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await self._admit(gate, reader, writer):
                await serve(reader, writer)
            else:
                writer.close()

        server = await asyncio.start_server(
            stranger, self._host, self._port, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
        )
        port = server.sockets[0].getsockname()[1]
        _write_alone(self._told, msgspec.msgpack.encode(handshake.Door(self._host, port, certificate, key)))
        log.info("services on other machines are let in at %s:%d", self._host, port)
        return server

    async def _admit(self, gate: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self._strangers >= MAX_STRANGERS:
            log.warning("%d connections prove nothing; another is closed", self._strangers)
            return False
        self._strangers += 1
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                challenge = secrets.token_bytes(CHALLENGE_BYTES)
                writer.write(_HEADER.pack(len(challenge)) + challenge)
                (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
                if size > MAX_PROOF_BYTES:
                    raise handshake.Refused(f"a proof has at most {MAX_PROOF_BYTES} bytes, not {size}")
                gate.admit(challenge, await reader.readexactly(size), int(time.time()))
                return True
        except (handshake.Refused, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            log.warning("a connection is not let in: %s", error or "it proved nothing in time")
            return False
        finally:
            self._strangers -= 1


def _identity(host: str) -> tuple[str, ssl.SSLContext]:
    """A certificate in PEM for this run of the worker, and the context that speaks with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agogic worker")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
    with contextlib.suppress(ValueError):
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
        )
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The library reads keys from files only; this one is gone when it has been read.
    with tempfile.TemporaryDirectory(prefix="agogic-key-") as folder:
        path = Path(folder) / "pair.pem"
        _write_alone(path, secret + certificate)
        context.load_cert_chain(path)
    return certificate.decode(), context


def _write_alone(path: Path, data: bytes) -> None:
    """A file that appears whole and that nobody else can read."""
    hidden = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        hidden.unlink()
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    hidden.rename(path)
