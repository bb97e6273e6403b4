import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { ConnectOptions } from "../src/connection";
import type { AgogicError } from "../src/errors";
import type { ServerEvent } from "../src/events";
import { encodePcm } from "../src/pcm";
import { connectWebSocket } from "../src/websocket";
import { FakeAudioContext, fakeStream, stubAudio } from "./fakes";

class FakeWebSocket {
  static readonly OPEN = 1;
  static last: FakeWebSocket;
  readyState = 0;
  sent: string[] = [];
  onopen?: () => void;
  onerror?: (() => void) | null;
  onclose?: (event: { code: number }) => void;
  onmessage?: (event: { data: string }) => void;
  constructor(readonly url: URL, readonly protocols: string[]) {
    FakeWebSocket.last = this;
    queueMicrotask(() => {
      if (FakeWebSocket.refuses) return this.onerror?.();
      this.readyState = 1;
      this.onopen?.();
    });
  }
  static refuses = false;
  send(text: string): void { this.sent.push(text); }
  close(): void { this.readyState = 3; }
  say(event: ServerEvent): void { this.onmessage?.({ data: JSON.stringify(event) }); }
}

let audio: ReturnType<typeof stubAudio>;
let events: ServerEvent[];
let losses: AgogicError[];

beforeEach(() => {
  vi.useFakeTimers();
  audio = stubAudio();
  events = [];
  losses = [];
  FakeWebSocket.refuses = false;
  vi.stubGlobal("WebSocket", FakeWebSocket);
  vi.stubGlobal("navigator", {});
});

afterEach(() => vi.clearAllTimers());

const options = (more: Partial<ConnectOptions> = {}): ConnectOptions => ({
  url: "https://here.example", model: "agogic", apiKey: "ek_1", iceServers: [], relayOnly: false, workletUrl: "/w.js",
  onEvent: (event) => events.push(event), onLost: (error) => losses.push(error), ...more,
});
const sent = (): Record<string, unknown>[] => FakeWebSocket.last.sent.map((text) => JSON.parse(text) as Record<string, unknown>);
const sound = (item_id: string, samples: number): ServerEvent =>
  ({ type: "response.output_audio.delta", item_id, delta: encodePcm(new Float32Array(samples).fill(0.5)) });

it("asks for the realtime protocol with its key, securely where the page is secure", async () => {
  const connection = await connectWebSocket(options());
  const { url, protocols } = FakeWebSocket.last;
  expect(String(url)).toBe("wss://here.example/v1/realtime?model=agogic");
  expect(protocols).toEqual(["realtime", "openai-insecure-api-key.ek_1"]);
  connection.send({ type: "response.create" });
  connection.close();
  connection.close();
  connection.send({ type: "too.late" });
  expect(sent()).toEqual([{ type: "response.create" }]);
  expect(losses).toEqual([]);
});

it("says so where nobody answers, and where the sound cannot be set up", async () => {
  FakeWebSocket.refuses = true;
  await expect(connectWebSocket(options())).rejects.toMatchObject({ code: "unreachable" });
  FakeWebSocket.refuses = false;
  vi.stubGlobal("AudioContext", class extends FakeAudioContext {
    override audioWorklet = { addModule: vi.fn(async () => { throw new Error("policy"); }) };
  });
  await expect(connectWebSocket(options())).rejects.toThrow("policy");
  expect(FakeWebSocket.last.readyState).toBe(3);
});

it("sends the microphone only while it is open", async () => {
  const connection = await connectWebSocket(options());
  connection.attachMicrophone(fakeStream());
  const capture = audio.node("agogic-capture");
  capture.port.onmessage!({ data: new Float32Array(4).fill(0.5) });
  connection.openMicrophone(true);
  capture.port.onmessage!({ data: new Float32Array(4).fill(0.5) });
  expect(sent()).toEqual([{ type: "input_audio_buffer.append", audio: "AEAAQABAAEA=" }]);
  expect(connection.levels()).toEqual({ microphone: 1, voice: 1 });
  expect(connection.taps()).toMatchObject({ microphone: audio.node("source") });
  connection.attachMicrophone(undefined);
  expect(connection.levels().microphone).toBe(0);
});

it("plays the answer, shows its words when they are heard, and tells the server where it was cut", async () => {
  const connection = await connectWebSocket(options());
  const player = audio.node("agogic-player");
  const socket = FakeWebSocket.last;
  socket.say(sound("a", 24_000));
  socket.say({ type: "response.output_audio_transcript.delta", item_id: "a", delta: "One", start_time: 0, end_time: 0.4 });
  socket.say({ type: "response.output_audio_transcript.delta", item_id: "a", delta: " latte", start_time: 0.4, end_time: 0.9 });
  expect(player.port.posted).toMatchObject([{ item: "a", start: 0 }]);
  expect(events).toEqual([{ type: "response.output_audio.delta", item_id: "a" }]);
  player.port.onmessage!({ data: { item: "a", heard: 4800 } });
  expect(events.slice(1)).toMatchObject([{ delta: "One" }]);
  socket.say({ type: "input_audio_buffer.speech_started", item_id: "u" });
  expect(sent()).toEqual([{ type: "conversation.item.truncate", item_id: "a", content_index: 0, audio_end_ms: 200 }]);
  connection.silence(); // nothing plays any more, nothing is to be told
  player.port.onmessage!({ data: { item: "a", heard: 24_000, dry: true } });
  expect(sent()).toHaveLength(1);
  expect(events.filter((event) => event.type.endsWith("transcript.delta"))).toHaveLength(1);
});

it("sets volume and speaker", async () => {
  const connection = await connectWebSocket(options());
  connection.setVolume(2);
  expect(audio.node("gain").gain.value).toBe(1);
  await connection.setSpeaker("headset");
  expect(FakeAudioContext.last.sink).toBe("headset");
});

it("says why the connection ended", async () => {
  for (const [code, kind, words] of [[1006, "lost", "was lost"], [1012, "lost", "restarting"], [1008, "expired", "ended"]] as const) {
    await connectWebSocket(options());
    FakeWebSocket.last.onclose!({ code });
    expect(losses.at(-1)).toMatchObject({ code: kind, message: expect.stringContaining(words) as string });
  }
  expect(losses).toHaveLength(3);
});

it("notices a server that stands still within three seconds, though the socket is open", async () => {
  const fetch = vi.fn(async (_url: string) => new Response());
  vi.stubGlobal("fetch", fetch);
  await connectWebSocket(options());
  await vi.advanceTimersByTimeAsync(5000);
  expect(fetch).toHaveBeenCalledWith("https://here.example/healthz", expect.objectContaining({ mode: "no-cors" }));
  expect(losses).toEqual([]);
  fetch.mockImplementation(() => new Promise(() => undefined));
  await vi.advanceTimersByTimeAsync(4000); // what was asked before counts for a second
  expect(losses).toMatchObject([{ code: "lost", message: "The server does not answer any more." }]);
});

it("goes on in the middle of an answer, and knows where that is", async () => {
  const offered = connectWebSocket(options({ resume: { token: "t1", after: "e9" } }));
  await vi.advanceTimersByTimeAsync(0);
  const socket = FakeWebSocket.last;
  expect(socket.url.search).toBe("?model=agogic&resume=t1&after=e9");
  socket.say({ type: "x_agogic.session_resumed", last_client_event_id: null, session: { id: "s" } } as ServerEvent);
  await offered;
  await vi.advanceTimersByTimeAsync(0);
  socket.say({ ...sound("a", 24_000), x_agogic: { start_time: 2 } } as ServerEvent);
  socket.say({ type: "response.output_audio_transcript.delta", item_id: "a", delta: " four", start_time: 2.4, end_time: 2.8 });
  const player = audio.node("agogic-player");
  expect(player.port.posted).toMatchObject([{ item: "a", start: 48_000 }]);
  player.port.onmessage!({ data: { item: "a", heard: 60_000 } });
  expect(events.at(-1)).toMatchObject({ delta: " four" });
  socket.say({ type: "input_audio_buffer.speech_started", item_id: "u" });
  expect(sent()).toEqual([{ type: "conversation.item.truncate", item_id: "a", content_index: 0, audio_end_ms: 2500 }]);
});

it("is told by the server that there is nothing to go on with", async () => {
  const offered = connectWebSocket(options({ resume: { token: "t1", after: "e9" } }));
  const refused = expect(offered).rejects.toMatchObject({ code: "stale" });
  await vi.advanceTimersByTimeAsync(0);
  FakeWebSocket.last.say({ type: "error", error: { message: "no", code: "resume_token_unknown" } } as ServerEvent);
  FakeWebSocket.last.onclose!({ code: 4004 });
  await refused;
});

it.each([[true, ["One", " large"]], [false, ["One"]]])("shows what had come when the session goes on: %s", async (goesOn, shown) => {
  const connection = await connectWebSocket(options());
  const socket = FakeWebSocket.last;
  socket.say(sound("a", 24_000));
  for (const [delta, start_time] of [["One", 0], [" large", 0.4]] as const) {
    socket.say({ type: "response.output_audio_transcript.delta", item_id: "a", delta, start_time, end_time: start_time + 0.4 });
  }
  audio.node("agogic-player").port.onmessage!({ data: { item: "a", heard: 4800 } });
  socket.onclose!({ code: 1006 });
  const over = connection.playedOut(goesOn);
  await vi.advanceTimersByTimeAsync(1500);
  await over;
  expect(events.flatMap((event) => ("delta" in event && event.delta ? [event.delta] : []))).toEqual(shown);
});
