"""WHIP in a real browser: a page that converses and restarts ICE, and a published client that only sends."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from tests.clients.conftest import Server
from tests.clients.test_agents_sdk import bundle
from tests.support.chromium import chromium
from tests.support.fake_worker import REPLY, TRANSCRIPT

pytestmark = pytest.mark.browser

# A whole client as RFC 9725 describes it: candidates follow the offer, ICE is restarted, the session is deleted.
CONVERSE = """async () => {
  const peer = new RTCPeerConnection({ iceServers: [] });
  const voice = new Audio();
  peer.ontrack = ({ track }) => { voice.srcObject = new MediaStream([track]); void voice.play(); };
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  peer.addTransceiver(microphone.getTracks()[0], { direction: "sendrecv" });
  microphone.getTracks()[0].enabled = false;
  const channel = peer.createDataChannel("events");
  const events = [];
  channel.onmessage = ({ data }) => events.push(JSON.parse(data));
  const until = async (true_, what) => {
    for (let tries = 0; tries < 600; tries += 1) {
      if (true_()) return;
      await new Promise((again) => setTimeout(again, 50));
    }
    throw new Error(what + " " + JSON.stringify(events.map(({ type }) => type)));
  };
  const count = (kind) => events.filter(({ type }) => type === kind).length;
  const ask = () => {
    const content = [{ type: "input_text", text: "A latte." }];
    const item = { type: "message", role: "user", content };
    channel.send(JSON.stringify({ type: "conversation.item.create", item }));
    channel.send(JSON.stringify({ type: "response.create" }));
  };
  let found = [];
  peer.onicecandidate = ({ candidate }) => { if (candidate?.candidate) found.push(candidate.candidate); };
  const bare = (sdp) => sdp.split("\\r\\n").filter((line) => !line.startsWith("a=candidate")).join("\\r\\n");
  const gathered = () => until(() => found.length > 0 && peer.iceGatheringState === "complete", "gathered");
  const of = (sdp, name) => sdp.match(new RegExp("a=" + name + ":(\\\\S+)"))[1];
  const fragment = () => {
    const { sdp } = peer.localDescription;
    return ["a=ice-ufrag:" + of(sdp, "ice-ufrag"), "a=ice-pwd:" + of(sdp, "ice-pwd"), "m=audio 9 UDP/TLS/RTP/SAVPF 0",
      "a=mid:0", ...found.map((value) => "a=" + value), "a=end-of-candidates", ""].join("\\r\\n");
  };
  const patch = (etag, body) => fetch(resource, {
    method: "PATCH", body, headers: { "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": etag },
  });

  await peer.setLocalDescription(await peer.createOffer());
  const offer = bare(peer.localDescription.sdp);
  const reply = await fetch("/whip", { method: "POST", body: offer, headers: { "Content-Type": "application/sdp" } });
  const resource = reply.headers.get("Location"), first = reply.headers.get("ETag"), answer = await reply.text();
  await peer.setRemoteDescription({ type: "answer", sdp: answer });
  await gathered();
  const trickled = (await patch(first, fragment())).status;
  await until(() => count("session.created") === 1, "created");
  ask();
  await until(() => count("output_audio_buffer.stopped") === 1, "answered");

  found = [];
  await peer.setLocalDescription(await peer.createOffer({ iceRestart: true }));
  await gathered();
  const restart = await patch("*", fragment());
  const second = restart.headers.get("ETag"), theirs = await restart.text();
  const lines = answer.split("\\r\\n").filter((line) => !/^a=(candidate|end-of)/.test(line)).map((line) =>
    line.replace(/^a=ice-ufrag:.*/, "a=ice-ufrag:" + of(theirs, "ice-ufrag"))
      .replace(/^a=ice-pwd:.*/, "a=ice-pwd:" + of(theirs, "ice-pwd")));
  const at = lines.findIndex((line) => line.startsWith("a=mid:")) + 1;
  lines.splice(at, 0, ...theirs.split("\\r\\n").filter((line) => line.startsWith("a=candidate")));
  await peer.setRemoteDescription({ type: "answer", sdp: lines.join("\\r\\n") });
  const port = Number(theirs.match(/ typ host/) && theirs.match(/ (\\d+) typ host/)[1]);
  const chosen = async () => {
    const stats = [...(await peer.getStats()).values()];
    const pair = stats.find(({ id }) => id === stats.find(({ type }) => type === "transport").selectedCandidatePairId);
    return stats.find(({ id }) => id === pair?.remoteCandidateId)?.port;
  };
  const soon = () => new Promise((again) => setTimeout(again, 50));
  for (let tries = 0; tries < 200 && (await chosen()) !== port; tries += 1) await soon();
  const moved = (await chosen()) === port;
  const stale = (await patch(first, fragment())).status;
  ask();
  await until(() => count("output_audio_buffer.stopped") === 2, "answered again");
  const ended = (await fetch(resource, { method: "DELETE" })).status;
  const gone = (await patch(second, fragment())).status;
  const energy = [...(await peer.getStats()).values()].find(({ type }) => type === "inbound-rtp").totalAudioEnergy;
  return { created: reply.status, trickled, restarted: restart.status, moved, stale, ended, gone, energy };
}"""


async def test_a_page_converses_trickles_restarts_ice_and_ends_its_session(
    fake_server: Server, microphone: Path
) -> None:
    async with chromium(microphone=microphone, tolerated=("404", "412")) as page:
        await page.goto(fake_server.url)
        found = await page.evaluate(CONVERSE)
    assert found.pop("energy") > 0.01
    assert found == {
        "created": 201, "trickled": 204, "restarted": 200, "moved": True, "stale": 412, "ended": 200, "gone": 404,
    }  # fmt: skip


async def test_a_published_client_that_only_sends_is_heard_and_answered_in_writing(
    fake_server: Server, microphone: Path, node_modules: Path, tmp_path: Path
) -> None:
    script = bundle(node_modules, "whip.ts", tmp_path / "whip.js", "--format=iife")
    patches: list[int] = []
    # It says so of candidates that it finds before it has kept its own offer, and sends those that come later.
    async with chromium(microphone=microphone, tolerated=("Missing local SDP meta data",)) as page:
        page.on("response", lambda reply: patches.append(reply.status) if reply.request.method == "PATCH" else None)
        await page.goto(fake_server.url)
        await page.evaluate(script.read_text())
        resource = await page.evaluate("window.publish()")
        call_id = str(resource).rsplit("/", 1)[1]
        async with aiohttp.ClientSession() as http:
            side = await http.ws_connect(f"{fake_server.url}/v1/realtime?call_id={call_id}")
            said: dict[str, str] = {}
            heard, answered = "conversation.item.input_audio_transcription.completed", "response.output_text.done"
            while not {heard, answered} <= said.keys():
                event = await side.receive_json(timeout=60)
                said[event["type"]] = event.get("transcript") or event.get("text") or ""
                assert not event["type"].startswith("response.output_audio")
            assert said[heard] == TRANSCRIPT
            assert said[answered] == REPLY
            await page.evaluate("window.unpublish()")
            assert (await side.receive(timeout=30)).type is aiohttp.WSMsgType.CLOSE
    assert patches and set(patches) == {204}
