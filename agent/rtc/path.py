"""The way of a call's packets, which an ICE restart (RFC 8445, section 9) may change while the call goes on.

aiortc and aioice have no restart: an `RTCIceTransport` keeps the connection that it began with. `Path` puts itself
between DTLS and ICE, lets a second connection find its way, and then moves the transport to it. DTLS notices nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from aiortc import RTCIceTransport
from aiortc.rtcicetransport import candidate_from_aioice, candidate_to_aioice
from aiortc.sdp import candidate_from_sdp, candidate_to_sdp

from agent.rtc.gathering import Connection, Network, gathering_on

_MONITOR = "_RTCIceTransport__monitor_task"


class NoRestart(Exception):
    """A restart is not possible now; the message says why."""


class Path:
    """Of one transport, from before it connects."""

    def __init__(self, transport: RTCIceTransport, network: Network, timeout_s: float) -> None:
        if not hasattr(transport, _MONITOR):
            raise RuntimeError("aiortc keeps its monitor elsewhere in this version; use another")
        self._transport = transport
        self._network = network
        self._timeout_s = timeout_s
        self._current: Connection = transport._connection  # type: ignore[assignment]
        self._next: Connection | None = None
        self._moving: asyncio.Task[None] | None = None
        transport._recv = self._recv
        transport._send = self._send

    @property
    def remote_ufrag(self) -> str:
        """Of the latest generation."""
        return (self._next or self._current).remote_username or ""

    async def add(self, candidates: Sequence[str], is_last: bool) -> None:
        """The other side's, of the latest generation; what comes after its last one is ignored."""
        connection = self._next
        for value in candidates:
            candidate = candidate_from_sdp(value)
            if connection is None:
                await self._transport.addRemoteCandidate(candidate)
            else:
                with contextlib.suppress(ValueError):
                    await connection.add_remote_candidate(candidate_to_aioice(candidate))
        if is_last and connection is None:
            await self._transport.addRemoteCandidate(None)
        elif is_last and connection is not None:
            with contextlib.suppress(ValueError):
                await connection.add_remote_candidate(None)

    async def restart(self, ufrag: str, password: str) -> tuple[str, str, list[str]]:
        """Begins a new generation with the other side's credentials; this side's, with its candidates.

        Packets go by the old way until the new one is found; if it is not, they go on so. Raises `NoRestart`.
        """
        if self._transport.state != "completed":
            raise NoRestart("the call is not connected yet")
        await self._give_up()
        old = self._current
        new = Connection(
            ice_controlling=False,
            stun_server=old.stun_server,
            turn_server=old.turn_server,
            turn_username=old.turn_username,
            turn_password=old.turn_password,
            turn_ssl=old.turn_ssl,
            turn_transport=old.turn_transport,
        )
        new.remote_username, new.remote_password = ufrag, password
        with gathering_on(self._network):
            await new.gather_candidates()
        self._next = new
        self._moving = asyncio.create_task(self._move(new), name="ICE restart")
        found = [candidate_to_sdp(candidate_from_aioice(candidate)) for candidate in new.local_candidates]
        return new.local_username, new.local_password, found

    async def close(self) -> None:
        """Ends a move that is under way; the transport closes the connection that is in use."""
        await self._give_up()

    async def _move(self, new: Connection) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await new.connect()
        except (ConnectionError, TimeoutError):
            self._next = None
            await new.close()
            return
        old, self._current, self._next = self._current, new, None
        # Its monitor would take the end of the old connection for the end of the call.
        getattr(self._transport, _MONITOR).cancel()
        self._transport._connection = self._transport.iceGatherer._connection = new
        setattr(self._transport, _MONITOR, asyncio.ensure_future(self._transport._monitor()))
        await old.close()

    async def _give_up(self) -> None:
        if self._moving is not None and self._next is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
            given_up, self._next = self._next, None
            if given_up is not None:
                await given_up.close()

    async def _recv(self) -> bytes:
        while True:
            connection = self._current
            try:
                return await connection.recv()
            except ConnectionError:
                if connection is self._current:
                    raise

    async def _send(self, data: bytes) -> None:
        await self._current.send(data)
