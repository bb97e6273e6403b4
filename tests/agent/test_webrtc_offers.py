"""Offers with more than a call needs: the first usable audio line and one data channel are taken, the rest declined."""

from __future__ import annotations

import re

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack

from agent.rtc.description import BadOffer, finish_answer, prepare_offer
from agent.rtc.gathering import Network
from agent.rtc.peer import Peer


class Nobody:
    """Uses a peer and hears nothing."""

    def peer_opened(self) -> None: ...

    def peer_message(self, data: str | bytes) -> None: ...

    def peer_audio(self, pcm: bytes) -> None: ...

    def peer_network(self, loss: float | None, round_trip_ms: float | None) -> None: ...

    def peer_closed(self, reason: str, *, by_client: bool) -> None: ...


def peer() -> Peer:
    return Peer(
        Nobody(), lambda samples: None, network=Network(addresses=("127.0.0.1",)), connect_timeout_s=5.0,
        disconnected_tolerance_s=5.0,
    )  # fmt: skip


async def offered(*kinds: str) -> tuple[RTCPeerConnection, str]:
    """A client's connection and its offer with these media lines, in this order, and a data channel behind them."""
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    for kind in kinds:
        if kind == "audio":
            client.addTransceiver(AudioStreamTrack(), "sendrecv")
        else:
            client.addTransceiver(kind, "recvonly")
    client.createDataChannel("oai-events")
    await client.setLocalDescription(await client.createOffer())
    return client, client.localDescription.sdp


def media_lines(text: str) -> list[tuple[str, int, str]]:
    """Kind, port and mid of every media line."""
    sections = re.split(r"(?m)^(?=m=)", text)[1:]
    found = []
    for section in sections:
        kind, port = re.match(r"m=(\w+) (\d+)", section).groups()  # type: ignore[union-attr]
        mid = re.search(r"(?m)^a=mid:(\S+)", section)
        found.append((kind, int(port), mid[1] if mid else ""))
    return found


def switched_off(text: str, index: int) -> str:
    head, *sections = re.split(r"(?m)^(?=m=)", text)
    sections[index] = re.sub(r"^m=(\w+) \d+", r"m=\1 0", sections[index])
    return head + "".join(sections)


@pytest.mark.parametrize(
    ("kinds", "off", "taken"),
    [
        (("audio",), (), (0, 1)),
        (("audio", "audio"), (), (0, 2)),
        (("video", "audio", "video"), (), (1, 3)),
        (("audio", "audio"), (0,), (1, 2)),
        (("audio", "audio", "audio", "video"), (0, 2), (1, 4)),
    ],
)
async def test_the_first_usable_audio_line_is_taken_and_the_others_are_declined(
    kinds: tuple[str, ...], off: tuple[int, ...], taken: tuple[int, ...]
) -> None:
    client, text = await offered(*kinds)
    for index in off:
        text = switched_off(text, index)
    ours = peer()
    try:
        answer = await ours.answer(text)
        lines = media_lines(answer)
        # RFC 3264: as many lines, of the same kinds, in the same order.
        assert [(kind, mid) for kind, _, mid in lines] == [(kind, mid) for kind, _, mid in media_lines(text)]
        assert [index for index, (_, port, _) in enumerate(lines) if port] == list(taken)
        (bundle,) = re.findall(r"(?m)^a=group:BUNDLE (.*?)\r?$", answer)
        assert bundle.split() == [lines[index][2] for index in taken]
        assert answer.count("opus/48000/2") == 1
    finally:
        await ours.close()
        await client.close()


async def test_a_line_that_shares_a_port_is_not_switched_off() -> None:
    """What browsers write in place of a port where everything is bundled (RFC 8843)."""
    client, text = await offered("audio")
    shared = re.sub(r"m=application \d+(.*?\r\n)", r"m=application 0\1a=bundle-only\r\n", text)
    ours = peer()
    try:
        assert all(port for _, port, _ in media_lines(await ours.answer(shared)))
    finally:
        await ours.close()
        await client.close()


async def test_an_audio_line_without_opus_is_passed_over() -> None:
    client, text = await offered("audio", "audio")
    first, second = (match.start() for match in re.finditer(r"(?m)^m=audio", text))
    text = text[:first] + text[first:second].replace("opus/48000/2", "telepathy/48000/2") + text[second:]
    prepared = prepare_offer(text)
    assert [line is None for line in prepared.declined] == [False, True, True]
    await client.close()


async def test_a_client_with_two_microphones_connects() -> None:
    """aiortc itself cannot take a declined line; what a browser makes of one is what is left without it."""
    client, text = await offered("audio")
    second = re.search(r"(?ms)^m=audio.*?(?=^m=)", text)[0]  # type: ignore[index]
    doubled = text + re.sub(r"a=mid:\S+", "a=mid:77", second)
    ours = peer()
    try:
        answer = await ours.answer(doubled)
        assert media_lines(answer)[-1] == ("audio", 0, "77")
        kept = "".join(part for part in re.split(r"(?m)^(?=m=)", answer) if "a=mid:77" not in part)
        await client.setRemoteDescription(RTCSessionDescription(sdp=kept, type="answer"))
        assert client.signalingState == "stable"
    finally:
        await ours.close()
        await client.close()


def test_an_offer_whose_audio_is_all_off_says_so() -> None:
    text = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=audio 0 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n"
    with pytest.raises(BadOffer, match="port 0"):
        prepare_offer(text)


async def test_nothing_is_added_to_an_answer_without_declined_lines() -> None:
    client, text = await offered("audio")
    prepared = prepare_offer(text)
    assert prepared.declined == (None, None)
    assert finish_answer("v=0\r\nm=audio 9 x 0\r\nm=application 9 y z\r\n", prepared).count("m=") == 2
    await client.close()
