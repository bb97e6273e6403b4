import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { ConnectOptions } from "../src/connection";
import type { AgogicError } from "../src/errors";
import type { ServerEvent } from "../src/events";
import { connectWebRtc } from "../src/webrtc";
import { FakeAudio, FakeAudioContext, FakeTrack, fakeStream, stubAudio } from "./fakes";

class FakePeer {
  static last: FakePeer;
  static pathless = false;
  connectionState = "new";
  localDescription: RTCSessionDescriptionInit | null = null;
  bytesReceived = 1000;
  closed = false;
  onconnectionstatechange?: () => void;
  ontrack?: (event: { track: unknown }) => void;
  channel = {
    readyState: "connecting", sent: [] as string[],
    onopen: undefined as (() => void) | undefined, onclose: undefined as (() => void) | undefined,
    onmessage: undefined as ((event: { data: string }) => void) | undefined,
    send(text: string) { this.sent.push(text); },
  };
  sender = { track: undefined as unknown, replaceTrack: vi.fn(async (track: unknown) => { this.sender.track = track; }) };
  constructor(readonly configuration: RTCConfiguration) { FakePeer.last = this; }
  addTransceiver() { return { sender: this.sender }; }
  createDataChannel() { return this.channel; }
  async createOffer() { return { type: "offer", sdp: "v=0 offer" }; }
  async setLocalDescription(description: RTCSessionDescriptionInit) { this.localDescription = description; }
  async setRemoteDescription() {
    if (FakePeer.pathless) return this.become("failed");
    this.channel.readyState = "open";
    this.channel.onopen?.();
  }
  become(state: string) { this.connectionState = state; this.onconnectionstatechange?.(); }
  async getStats() { return new Map([["t", { type: "transport", bytesReceived: this.bytesReceived }]]); }
  close() { this.closed = true; }
}

let events: ServerEvent[];
let losses: AgogicError[];
let fetched: { url: string; init: RequestInit }[];
let reply: () => Response;

beforeEach(() => {
  vi.useFakeTimers();
  stubAudio();
  events = [];
  losses = [];
  fetched = [];
  FakePeer.pathless = false;
  reply = () => new Response("v=0 answer", { status: 201 });
  vi.stubGlobal("RTCPeerConnection", FakePeer);
  vi.stubGlobal("navigator", {});
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    fetched.push({ url, init });
    return reply();
  });
});

afterEach(() => vi.clearAllTimers());

const options: ConnectOptions = {
  url: "http://here", model: "a b", apiKey: "ek_1", iceServers: [{ urls: "stun:here" }], relayOnly: false, workletUrl: undefined,
  onEvent: (event) => events.push(event), onLost: (error) => losses.push(error),
};

it("posts its offer and talks over the data channel", async () => {
  const connection = await connectWebRtc(options);
  expect(fetched[0]!.url).toBe("http://here/v1/realtime/calls?model=a%20b");
  expect(fetched[0]!.init).toMatchObject({ method: "POST", body: "v=0 offer", headers: { Authorization: "Bearer ek_1" } });
  const peer = FakePeer.last;
  expect(peer.configuration.iceServers).toEqual([{ urls: "stun:here" }]);
  connection.send({ type: "response.create" });
  connection.silence();
  expect(peer.channel.sent.map((text) => (JSON.parse(text) as { type: string }).type)).toEqual(["response.create", "output_audio_buffer.clear"]);
  peer.channel.onmessage!({ data: '{"type":"input_audio_buffer.cleared"}' });
  expect(events).toEqual([{ type: "input_audio_buffer.cleared" }]);
  connection.close();
  expect(peer.closed).toBe(true);
  expect(FakeAudioContext.last.state).toBe("closed");
});

it("asks the server for STUN and TURN servers, and goes without where it names none", async () => {
  const turn = { urls: ["turn:here"], username: "1:me", credential: "c" };
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    fetched.push({ url, init });
    return url.endsWith("/ice_servers") ? new Response(JSON.stringify({ ice_servers: [turn] })) : reply();
  });
  await connectWebRtc({ ...options, iceServers: undefined, relayOnly: true });
  expect(fetched[0]).toMatchObject({ url: "http://here/v1/realtime/ice_servers", init: { headers: { Authorization: "Bearer ek_1" } } });
  expect(FakePeer.last.configuration).toEqual({ iceServers: [turn], iceTransportPolicy: "relay" });
  for (const broken of [new Response("no", { status: 404 }), new Response("{}"), new Response("?")]) {
    vi.stubGlobal("fetch", async (url: string) => (url.endsWith("/ice_servers") ? broken : reply()));
    await connectWebRtc({ ...options, iceServers: undefined });
    expect(FakePeer.last.configuration).toEqual({ iceServers: [], iceTransportPolicy: "all" });
  }
});

it("asks for the session that it had, and is told where that is gone", async () => {
  const resume = { token: "resume_t1", after: "event_9" };
  await connectWebRtc({ ...options, resume });
  expect(fetched[0]!.url).toBe("http://here/v1/realtime/calls?model=a%20b&resume=resume_t1&after=event_9");
  reply = () => new Response(JSON.stringify({ error: { message: "gone", code: "resume_token_unknown" } }), { status: 404 });
  await expect(connectWebRtc({ ...options, resume })).rejects.toMatchObject({ code: "stale" });
});

it("gives its sender a track only while the microphone is open", async () => {
  const connection = await connectWebRtc(options);
  const track = new FakeTrack();
  connection.attachMicrophone(fakeStream(track));
  expect(FakePeer.last.sender.track).toBeNull();
  connection.openMicrophone(true);
  expect(FakePeer.last.sender.track).toBe(track);
  connection.openMicrophone(false);
  expect(FakePeer.last.sender.track).toBeNull();
});

it("plays the answer through an element in the document, as loud and where it is wanted", async () => {
  const connection = await connectWebRtc(options);
  FakePeer.last.ontrack!({ track: new FakeTrack() });
  connection.attachMicrophone(fakeStream());
  connection.setVolume(0.4);
  await connection.setSpeaker("headset");
  expect(FakeAudio.last).toMatchObject({ volume: 0.4, sink: "headset" });
  expect(connection.levels()).toEqual({ microphone: 1, voice: 1 });
  expect(connection.taps()?.voice).toBeDefined();
  document.dispatchEvent(new Event("visibilitychange")); // back from a phone call
  expect(FakeAudio.last.played).toBe(1);
});

it("tells a refusal from a missing server and from a missing path", async () => {
  reply = () => new Response('{"error":{"message":"Which key?","code":"invalid_api_key"}}', { status: 401 });
  await expect(connectWebRtc(options)).rejects.toMatchObject({ code: "unauthorised", message: "Which key?", details: { serverCode: "invalid_api_key" } });
  reply = () => new Response("busy", { status: 503 });
  await expect(connectWebRtc(options)).rejects.toMatchObject({ code: "overloaded", message: /503/ });
  reply = () => new Response("{}", { status: 403 });
  await expect(connectWebRtc(options)).rejects.toMatchObject({ code: "refused" });
  reply = () => { throw new TypeError("fetch failed"); };
  await expect(connectWebRtc(options)).rejects.toMatchObject({ code: "unreachable" });
  reply = () => new Response("v=0", { status: 201 });
  FakePeer.pathless = true;
  await expect(connectWebRtc(options)).rejects.toMatchObject({ code: "unreachable", message: /path/ });
  expect(FakePeer.last.closed).toBe(true);
  expect(losses).toEqual([]);
});

it("notices within three seconds that nothing comes any more, and says no farewell while the session may go on", async () => {
  const connection = await connectWebRtc(options);
  const peer = FakePeer.last;
  for (let second = 0; second < 6; second += 0.25) {
    peer.bytesReceived += 100;
    await vi.advanceTimersByTimeAsync(250);
  }
  expect(losses).toEqual([]);
  await vi.advanceTimersByTimeAsync(4000);
  expect(losses).toMatchObject([{ code: "lost" }]);
  expect(peer.closed).toBe(false);
  connection.close();
  expect(peer.closed).toBe(true);
});

it("reports once that the server hung up or the path broke", async () => {
  await connectWebRtc(options);
  FakePeer.last.channel.onclose!();
  FakePeer.last.become("failed");
  expect(losses).toMatchObject([{ message: "The server ended the conversation." }]);
});
