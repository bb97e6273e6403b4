"""One WebRTC peer: connection, data channel and two audio directions, without any idea of a conversation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError

from agent.rtc.description import BadOffer, finish_answer, prepare_offer
from agent.rtc.fragment import Fragment, render
from agent.rtc.gathering import Network, as_seen, gathering_on
from agent.rtc.jitter import LossMeter
from agent.rtc.path import NoRestart, Path
from agent.rtc.receive import Microphone, tap
from agent.rtc.screen import screen_all
from agent.rtc.send import SpeakerTrack

logger = logging.getLogger(__name__)

screen_all()

MAX_BUFFERED_BYTES = 4 * 1024 * 1024  # of events the client does not read; then the call ends
_WATCH_INTERVAL_S = 1.0
_DRAIN_STEP_S = 0.02


class PeerEvents(Protocol):
    """Who uses the peer; all of it is called on the event loop."""

    def peer_opened(self) -> None:
        """The data channel is open; without one, the connection."""

    def peer_message(self, data: str | bytes) -> None:
        """The client sent one event."""

    def peer_audio(self, pcm: bytes) -> None:
        """Microphone sound, s16le mono at 24 kHz."""

    def peer_network(self, loss: float | None, round_trip_ms: float | None) -> None:
        """Once a second, as far as it is known: the share of packets lost, of the direction that loses more."""

    def peer_closed(self, reason: str, *, by_client: bool) -> None:
        """The connection is gone; called once. `by_client`: it said so, and was not just lost."""


class Peer:
    """A peer connection that answers one offer. `close` is idempotent and leaves nothing behind."""

    def __init__(
        self,
        events: PeerEvents,
        source: Callable[[int], bytes | None],
        *,
        network: Network,
        connect_timeout_s: float,
        disconnected_tolerance_s: float,
    ) -> None:
        self._events = events
        self._network = network
        self._connect_timeout_s = connect_timeout_s
        self._disconnected_tolerance_s = disconnected_tolerance_s
        servers = [RTCIceServer(list(at.urls), at.username, at.credential) for at in network.ice_servers]
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._channel: RTCDataChannel | None = None
        self._speaker = SpeakerTrack(source)
        self._microphone = Microphone(events.peer_audio, asyncio.get_running_loop())
        self._loss = LossMeter()
        self._reason: str | None = None
        self._path: Path | None = None
        self._mid = ""
        self._has_channel = True
        self._connection.on("datachannel", self._on_channel)
        self._connection.on("connectionstatechange", self._on_state)

    @property
    def state(self) -> str:
        return str(self._connection.connectionState)

    @property
    def remote_ufrag(self) -> str:
        """The client's ICE user fragment, of its latest restart."""
        return "" if self._path is None else self._path.remote_ufrag

    @property
    def microphone(self) -> Microphone:
        return self._microphone

    @property
    def unsent_bytes(self) -> int:
        """Of events that wait for the client to read."""
        return 0 if self._channel is None else self._channel.bufferedAmount

    async def answer(self, offer: str) -> str:
        """The SDP answer with all candidates in it. Raises `BadOffer`; then `close` is still owed."""
        prepared = prepare_offer(offer)
        self._mid, self._has_channel = prepared.mid, prepared.has_channel
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(sdp=prepared.text, type="offer"))
            transport = self._audio().receiver.transport.transport
            self._path = Path(transport, self._network, self._connect_timeout_s)
            self._connection.addTrack(self._speaker)
            self._take_only_opus()
            with gathering_on(self._network):
                await self._connection.setLocalDescription(await self._connection.createAnswer())
        except (ValueError, OperationError, InvalidAccessError, InvalidStateError) as error:
            raise BadOffer(f"the offer cannot be answered: {error}") from error
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise BadOffer(f"the offer is malformed SDP ({type(error).__name__}: {error})") from error
        return as_seen(finish_answer(self._connection.localDescription.sdp, prepared), self._network.external)

    async def trickle(self, fragment: Fragment) -> None:
        """Candidates of the client that came after its offer."""
        if self._path is not None:
            await self._path.add(fragment.candidates, fragment.is_last)

    async def restart(self, fragment: Fragment) -> str:
        """An ICE restart with the client's new credentials; this side's part of it. Raises `NoRestart`."""
        if self._path is None:
            raise NoRestart("the call is not connected yet")
        ufrag, password, candidates = await self._path.restart(fragment.ufrag, fragment.password)
        # That there are no more is not passed on: a client whose checks come is found without any.
        await self._path.add(fragment.candidates, False)
        return as_seen(render(self._mid, ufrag, password, candidates), self._network.external)

    def send(self, event: bytes) -> bool:
        """Sends one event; False where the channel is not open or the client has stopped reading. Without a channel
        it is for nobody, which is the client's wish."""
        if not self._has_channel:
            return True
        channel = self._channel
        if channel is None or channel.readyState != "open" or channel.bufferedAmount > MAX_BUFFERED_BYTES:
            return False
        channel.send(event.decode())
        return True

    async def watch(self) -> None:
        """Returns when the connection is closed: by the client, by failure, by silence of the network or by timeout."""
        waited_s, silent_s, received_before = 0.0, 0.0, -1
        while self._reason is None:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            if self.state != "connected" or (self._has_channel and self._channel is None):
                waited_s += _WATCH_INTERVAL_S
                if waited_s >= self._connect_timeout_s:
                    self._over(f"not connected within {self._connect_timeout_s:g} s")
                continue
            received = await self._report()
            silent_s = silent_s + _WATCH_INTERVAL_S if received == received_before else 0.0
            received_before = received
            if silent_s >= self._disconnected_tolerance_s:
                self._over(f"nothing heard from the client for {self._disconnected_tolerance_s:g} s")

    async def drain(self, timeout_s: float) -> None:
        """Waits until sent events have left, at most `timeout_s`."""
        for _ in range(round(timeout_s / _DRAIN_STEP_S)):
            if self._reason is not None or self._channel is None or self._channel.bufferedAmount == 0:
                return
            await asyncio.sleep(_DRAIN_STEP_S)

    async def close(self) -> None:
        """Ends the connection and frees its sockets, thread and timers."""
        self._over("closed")
        self._microphone.close()
        self._connection.remove_all_listeners()
        if self._channel is not None:
            self._channel.remove_all_listeners()
        self._speaker.stop()
        if self._path is not None:
            await self._path.close()
        # aiortc closes by itself too when the client leaves; a wait for that which is cut short would break it.
        closing = asyncio.ensure_future(self._connection.close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise

    async def _report(self) -> int:
        """Bytes received so far; the loss the client reports goes to the encoder, and what is known to the user."""
        received = 0
        losses, round_trip_ms = [self._loss.share(self._microphone.stats)], None
        for report in (await self._connection.getStats()).values():
            if report.type == "transport":
                received += report.bytesReceived
            elif report.type == "remote-inbound-rtp":
                self._speaker.expect_loss(max(5, report.fractionLost * 100 // 256))
                losses.append(report.fractionLost / 256)
                round_trip_ms = None if report.roundTripTime is None else max(0.0, 1000 * report.roundTripTime)
        self._events.peer_network(max((loss for loss in losses if loss is not None), default=None), round_trip_ms)
        return received

    def _audio(self) -> RTCRtpTransceiver:
        return next(item for item in self._connection.getTransceivers() if item.kind == "audio")

    def _take_only_opus(self) -> None:
        audio = self._audio()
        audio._codecs = [codec for codec in audio._codecs if codec.mimeType.lower() == "audio/opus"]
        tap(audio.receiver, self._microphone)
        for other in self._connection.getTransceivers():
            if other.kind != "audio":
                other.direction = "inactive"

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None:
            return
        self._channel = channel
        channel.on("message", self._events.peer_message)
        channel.on("close", self._on_channel_close)
        self._events.peer_opened()

    def _on_channel_close(self) -> None:
        self._over("the client closed the data channel", by_client=True)

    def _on_state(self) -> None:
        if self.state == "connected" and not self._has_channel:
            self._events.peer_opened()
        if self.state in ("failed", "closed"):
            self._over(f"the connection is {self.state}", by_client=self.state == "closed")

    def _over(self, reason: str, *, by_client: bool = False) -> None:
        if self._reason is None:
            self._reason = reason
            self._events.peer_closed(reason, by_client=by_client)
