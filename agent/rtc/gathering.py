"""Where a call can be reached: the candidates of this side (RFC 8445, section 5.1.1).

aioice offers every interface but 127.0.0.1, on whatever port the system gives. A browser on the same machine without a
network needs exactly that address, a server with several networks may want to offer only some, a firewall has opened
only some ports, and behind 1:1 NAT the world sees another address. So our own `Connection` stands in for aioice's.
"""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import random
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import aioice.ice
import aiortc.rtcicetransport
from aioice import Candidate
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.turn import UDP_SOCKET_BUFFER_SIZE

_GATHER_TIMEOUT_S = 5
_CANDIDATE = re.compile(r"^(a=candidate:\S+ \d+ udp \d+ )(\S+)( \d+ typ host)", re.MULTILINE | re.IGNORECASE)
_CONNECTION = re.compile(r"^c=IN IP[46] (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class IceServer:
    """A STUN or TURN server as `RTCIceServer` of W3C's WebRTC has it; without credentials they are ""."""

    urls: tuple[str, ...]
    username: str = ""
    credential: str = ""


@dataclass(frozen=True)
class Network:
    """`addresses` to bind and offer (empty = all of the machine's), `external` = what the world sees in place of an
    address that is bound, `ports` = the first and the last that may be bound ((0, 0) = any), `ice_servers` to ask."""

    addresses: tuple[str, ...] = ()
    external: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[int, int] = (0, 0)
    ice_servers: tuple[IceServer, ...] = ()


_network: contextvars.ContextVar[Network] = contextvars.ContextVar("rtc_network", default=Network())  # noqa: B039 it is frozen
_every_address = aioice.ice.get_host_addresses


class Connection(aioice.ice.Connection):
    """Binds where the `Network` of the context says; TURN is left to aioice."""

    async def get_component_candidates(
        self,
        component: int,
        addresses: list[str],
        timeout: int = _GATHER_TIMEOUT_S,  # noqa: ASYNC109 as aioice calls it
    ) -> list[Candidate]:
        ports = _network.get().ports
        protocols = [await self._bind(component, address, ports) for address in addresses]
        bound = [protocol for protocol in protocols if protocol is not None]
        self._protocols += bound
        relayed = asyncio.ensure_future(super().get_component_candidates(component, [], timeout))
        reflexive = await asyncio.gather(*(self._ask_stun(protocol, timeout) for protocol in bound))
        hosts = [protocol.local_candidate for protocol in bound if protocol.local_candidate is not None]
        return [*hosts, *(found for found in reflexive if found is not None), *await relayed]

    async def _bind(self, component: int, address: str, ports: tuple[int, int]) -> aioice.ice.StunProtocol | None:
        """None where nothing of it can be bound."""
        loop = asyncio.get_running_loop()
        for port in _candidates_of(ports):
            try:
                transport, protocol = await loop.create_datagram_endpoint(
                    lambda: aioice.ice.StunProtocol(self), local_addr=(address, port)
                )
            except OSError:
                continue
            held = transport.get_extra_info("socket")
            if held is not None:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_SOCKET_BUFFER_SIZE)
            host, port = transport.get_extra_info("sockname")[:2]
            protocol.local_candidate = Candidate(
                foundation=candidate_foundation("host", "udp", host),
                component=component,
                transport="udp",
                priority=candidate_priority(component, "host"),
                host=host,
                port=port,
                type="host",
            )
            return protocol
        return None

    async def _ask_stun(self, protocol: aioice.ice.StunProtocol, timeout_s: float) -> Candidate | None:
        local = protocol.local_candidate
        if self.stun_server is None or local is None or ipaddress.ip_address(local.host).version != 4:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                candidate, _ = await aioice.ice.server_reflexive_candidate(protocol, self.stun_server)
        except (TimeoutError, OSError, aioice.stun.TransactionError):
            return None
        return candidate


def _candidates_of(ports: tuple[int, int]) -> Iterator[int]:
    """Every port of the range once, from a random one on: neighbours in time are no neighbours in number."""
    first, last = ports
    if not last:
        yield 0
        return
    count = last - first + 1
    begin = random.randrange(count)
    yield from (first + (begin + step) % count for step in range(count))


def offered_addresses(configured: Sequence[str], host: str) -> tuple[str, ...]:
    """Where a call may be reached: where the configuration says, else where the server itself listens; empty = on all
    of this machine's addresses."""
    if configured:
        return tuple(configured)
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:  # a name
        return ()
    return () if address.is_unspecified else (str(address),)


def external_addresses(configured: Sequence[str]) -> dict[str, str]:
    """Bound address to what the world sees, of entries "SEEN/BOUND" or "SEEN" (for every address of its version, key
    "4" or "6"). Raises `ValueError`."""
    found = {}
    for entry in configured:
        seen, slash, bound = entry.partition("/")
        version = ipaddress.ip_address(seen).version
        if slash and ipaddress.ip_address(bound).version != version:
            raise ValueError(f"{entry!r} pairs addresses of two versions")
        found[bound if slash else str(version)] = seen
    return found


def as_seen(description: str, external: Mapping[str, str]) -> str:
    """A session description with the addresses that the world sees in its host candidates and connection lines."""
    if not external:
        return description

    def seen(address: str) -> str:
        try:
            version = str(ipaddress.ip_address(address).version)
        except ValueError:  # a name
            return address
        return external.get(address) or external.get(version) or address

    description = _CANDIDATE.sub(lambda match: match[1] + seen(match[2]) + match[3], description)
    return _CONNECTION.sub(lambda match: match[0].replace(match[1], seen(match[1])), description)


@contextmanager
def gathering_on(network: Network) -> Iterator[None]:
    """Within it, ICE gathers candidates on this network; without it on all of the host's addresses, loopback too."""
    token = _network.set(network)
    try:
        yield
    finally:
        _network.reset(token)


def host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """Stands in for aioice's function of the same purpose."""
    allowed = _network.get().addresses
    if not allowed:
        return [*_every_address(use_ipv4, use_ipv6), *(["127.0.0.1"] if use_ipv4 else [])]
    versions = {4: use_ipv4, 6: use_ipv6}
    return [address for address in allowed if versions[ipaddress.ip_address(address).version]]


aioice.ice.get_host_addresses = host_addresses
aiortc.rtcicetransport.Connection = Connection  # type: ignore[attr-defined]
