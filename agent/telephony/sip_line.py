"""The sound of one SIP call on a UDP socket of its own."""

from __future__ import annotations

import asyncio
import logging
import random

from agent.rtc.jitter import LossMeter
from agent.telephony.line import FramedLine
from agent.telephony.sip.rtp import Address, Key, RtpSession, Sound
from agent.telephony.sip.sdp import Agreed

log = logging.getLogger("agogic.sip")

_PORT_TRIES = 50
_TICKS_PER_S = 50


class NoPort(Exception):
    """No port is left for a call's sound; the message says where it was looked for."""


class SipLine(FramedLine, asyncio.DatagramProtocol):
    """Sends from the moment there is an agreement, and hears from the first packet that fits it."""

    def __init__(self, signalling_host: str) -> None:
        super().__init__()
        self.rtp: RtpSession | None = None
        self.established = asyncio.Event()
        self._signalling_host = signalling_host
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._loss = LossMeter()
        self._ticks = 0
        self._loop = asyncio.get_running_loop()

    async def open(self, host: str, ports: tuple[int, int]) -> int:
        """The port in use: an even one from `ports`, any where those are 0. Raises `NoPort`."""
        low, high = ports
        for _ in range(_PORT_TRIES if low else 1):
            port = random.randrange(low, max(low, high) + 1) & ~1 if low else 0
            try:
                self._transport, _ = await self._loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
            except OSError as error:
                log.debug("port %d: %s", port, error)
                continue
            return int(self._transport.get_extra_info("sockname")[1])
        raise NoPort(f"no port between {low} and {high} is free; widen telephony.sip.rtp_ports")

    def agree(self, agreed: Agreed) -> None:
        """What both sides have agreed on, at first or anew."""
        if self.rtp is None:
            self.rtp = RtpSession(agreed, self._signalling_host)
        else:
            self.rtp.change(agreed)

    def shut(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.close()

    def tick(self) -> None:
        """20 ms of our side. On hold time passes without us, and the answer waits."""
        if self.rtp is None or self._transport is None or self._transport.is_closing():
            return
        self._ticks += 1
        if self._ticks % _TICKS_PER_S == 0:
            # What gets lost on the way there nobody says: most telephones send no RTCP, and none is asked for.
            self.network(self._loss.share(self.rtp.stats))
        if not self.rtp.may_send:
            self.rtp.pause(1)
            return
        frame = self.next_frame(self.rtp.line_hz)
        self._transport.sendto(self.rtp.packet(frame.samples, silent=frame.silent), self.rtp.remote)

    # --- asyncio.DatagramProtocol ---

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if self.rtp is not None:
            self._take(self.rtp.receive(data, (addr[0], addr[1]), self._loop.time()))
            self._arm()

    def error_received(self, exc: Exception) -> None:
        log.debug("RTP: %s", exc)

    def _take(self, happened: list[Sound | Key]) -> None:
        for one in happened:
            if isinstance(one, Key):
                self.press(one.key)
            else:
                self.hear(one.samples, one.rate_hz)

    def _arm(self) -> None:
        """Keeps one timer; a deadline that moved away is found when the old one fires."""
        deadline_s = self.rtp.deadline_s if self.rtp is not None else None
        if deadline_s is None or (self._timer is not None and self._timer_at_s <= deadline_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = deadline_s
        self._timer = self._loop.call_at(deadline_s, self._due)

    def _due(self) -> None:
        self._timer = None
        if self.rtp is not None:
            self._take(self.rtp.poll(self._loop.time()))
            self._arm()
