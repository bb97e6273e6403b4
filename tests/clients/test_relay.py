"""A browser that may use nothing but a TURN server talks through coturn, with the credentials that agogic gave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import running
from tests.support.chromium import chromium
from tests.support.turn_server import SECRET, turn_server

pytestmark = pytest.mark.browser

CONVERSE = """async ({ credential }) => {
  const { ice_servers } = await (await fetch("/v1/realtime/ice_servers")).json();
  if (credential) ice_servers[0].credential = credential;
  const peer = new RTCPeerConnection({ iceServers: ice_servers, iceTransportPolicy: "relay" });
  const candidates = [];
  const gathered = new Promise((done) => { peer.onicecandidate = ({ candidate }) => {
    if (candidate === null) done(); else if (candidate.candidate) candidates.push(candidate.type);
  }; });
  const voice = new Audio();
  peer.ontrack = ({ track }) => { voice.srcObject = new MediaStream([track]); void voice.play(); };
  peer.addTransceiver("audio", { direction: "sendrecv" });
  const channel = peer.createDataChannel("oai-events");
  const events = [];
  const arrived = (kind) => new Promise((done) => {
    channel.addEventListener("message", ({ data }) => { if (JSON.parse(data).type === kind) done(); });
  });
  channel.addEventListener("message", ({ data }) => events.push(JSON.parse(data)));
  const created = arrived("session.created"), stopped = arrived("output_audio_buffer.stopped");
  await peer.setLocalDescription(await peer.createOffer());
  await gathered;
  if (candidates.length === 0) return { candidates };
  const headers = { "Content-Type": "application/sdp" };
  const reply = await fetch("/v1/realtime/calls", { method: "POST", headers, body: peer.localDescription.sdp });
  await peer.setRemoteDescription({ type: "answer", sdp: await reply.text() });
  await created;
  const content = [{ type: "input_text", text: "A latte." }];
  channel.send(JSON.stringify({ type: "conversation.item.create", item: { type: "message", role: "user", content } }));
  channel.send(JSON.stringify({ type: "response.create" }));
  await stopped;
  const stats = [...(await peer.getStats()).values()];
  const chosen = stats.find((entry) => entry.type === "transport").selectedCandidatePairId;
  const pair = stats.find((entry) => entry.id === chosen);
  const local = stats.find((entry) => entry.id === pair.localCandidateId).candidateType;
  const { totalAudioEnergy } = stats.find((entry) => entry.type === "inbound-rtp");
  peer.close();
  const text = events.filter(({ type }) => type === "response.output_audio_transcript.delta");
  const link = reply.headers.get("Link");
  return { candidates, local, totalAudioEnergy, link, text: text.map(({ delta }) => delta).join("") };
}"""


async def test_a_relay_only_browser_converses_through_coturn(tmp_path: Path) -> None:
    with turn_server(tmp_path) as port:
        turn = f'[[webrtc.ice_servers]]\nurls = ["turn:127.0.0.1:{port}?transport=udp"]\nsecret = "{SECRET}"\n'
        with running(tmp_path, real=False, extra=turn) as server:
            async with chromium() as page:
                await page.goto(server.url)
                found = await page.evaluate(CONVERSE, {"credential": ""})
                assert set(found["candidates"]) == {"relay"} and found["local"] == "relay"
                assert found["text"] == "One large latte. That is four fifty."
                assert found["totalAudioEnergy"] > 0.01
                assert 'rel="ice-server"' in found["link"] and "credential-type" in found["link"]
                guessed = await page.evaluate(CONVERSE, {"credential": "guessed"})
                assert guessed == {"candidates": []}, "coturn relays for nobody whom agogic did not send"
