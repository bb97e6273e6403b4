"""A WebRTC client in Python: offers, speaks a recording, keeps every event and every sample it hears."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from fractions import Fraction

import aiohttp
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler

from tests.support.udp_relay import UdpRelay

RATE_HZ = 48_000
PACKET_SAMPLES = 960

Event = dict[str, object]


class Voice(MediaStreamTrack):
    """Plays s16 mono samples at 48 kHz in real time, then silence."""

    kind = "audio"

    def __init__(self, samples: np.ndarray) -> None:
        super().__init__()
        self._samples = samples
        self._position = 0
        self._began_s: float | None = None

    async def recv(self) -> AudioFrame:
        loop = asyncio.get_running_loop()
        if self._began_s is None:
            self._began_s = loop.time()
        await asyncio.sleep(max(0.0, self._began_s + self._position / RATE_HZ - loop.time()))
        piece = self._samples[self._position : self._position + PACKET_SAMPLES]
        piece = np.pad(piece, (0, PACKET_SAMPLES - piece.size))
        frame = AudioFrame.from_ndarray(piece.reshape(1, -1).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, self._position, Fraction(1, RATE_HZ)
        self._position += PACKET_SAMPLES
        return frame


class RtcClient:
    """`async with` connects and hangs up; `relay`: the network that all media pass."""

    def __init__(
        self,
        url: str,
        samples: np.ndarray | None = None,
        *,
        session: Event | None = None,
        relay: UdpRelay | None = None,
        query: str = "",
    ) -> None:
        self.url = url
        self._query = query
        self.events: list[Event] = []
        self.heard: list[np.ndarray] = []  # pieces of s16 mono at 48 kHz
        self.location = ""
        self._session = session
        self._relay = relay
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._peer.addTrack(Voice(np.zeros(0, np.int16) if samples is None else samples))
        self._channel = self._peer.createDataChannel("oai-events")
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._channel.on("message", self._on_message)
        self._peer.on("track", self._on_track)

    @property
    def state(self) -> str:
        return str(self._peer.connectionState)

    async def __aenter__(self) -> RtcClient:
        await self._peer.setLocalDescription(await self._peer.createOffer())
        offer = self._peer.localDescription.sdp
        if self._relay is not None:
            offer = self._relay.rewrite_offer(offer)
        async with aiohttp.ClientSession() as http:
            if self._session is None:
                body: object = offer
                headers = {"Content-Type": "application/sdp"}
            else:
                form = aiohttp.FormData(default_to_multipart=True)
                form.add_field("sdp", offer, content_type="application/sdp")
                form.add_field("session", json.dumps(self._session), content_type="application/json")
                body, headers = form, {}
            async with http.post(f"{self.url}/v1/realtime/calls{self._query}", data=body, headers=headers) as response:
                text = await response.text()
                assert response.status == 201, text
                assert response.content_type == "application/sdp"
                self.location = response.headers["Location"]
                self.answer = text
        if self._relay is not None:
            text = await self._relay.rewrite_answer(text)
        await self._peer.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._peer.close()
        if self._listening is not None:
            self._listening.cancel()
        if self._relay is not None:
            self._relay.close()

    def send(self, **event: object) -> None:
        self._channel.send(json.dumps(event))

    def types(self) -> list[str]:
        return [str(event["type"]) for event in self.events]

    def of_type(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["type"] == kind]

    async def wait_for(self, kind: str, *, count: int = 1, timeout_s: float = 15.0) -> Event:
        """The `count`-th event of a type, as soon as it is there."""
        await self.wait_until(lambda: len(self.of_type(kind)) >= count, f"{count} x {kind}", timeout_s=timeout_s)
        return self.of_type(kind)[count - 1]

    async def wait_until(self, true: Callable[[], bool], what: str, *, timeout_s: float = 15.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not true():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} within {timeout_s} s; got {self.types()}") from None

    def level(self, last_s: float) -> float:
        """Root mean square of what was heard lately, in 16-bit units."""
        samples = np.concatenate(self.heard or [np.zeros(1, np.int16)])[-int(last_s * RATE_HZ) :]
        return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))

    def _on_message(self, data: str) -> None:
        self.events.append(json.loads(data))
        self._changed.set()

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._listening = asyncio.ensure_future(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
        try:
            while True:
                frame = await track.recv()
                for mono in resampler.resample(frame):  # type: ignore[arg-type]
                    self.heard.append(mono.to_ndarray().reshape(-1))
                self._changed.set()
        except MediaStreamError:
            pass
