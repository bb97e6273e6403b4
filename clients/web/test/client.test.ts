import { beforeEach, expect, it, vi } from "vitest";
import { AgogicClient, type AgogicOptions } from "../src/sdk/client";
import { type Connection, ConnectionError, type ConnectOptions } from "../src/sdk/connection";
import type { ClientEvent } from "../src/sdk/events";

class FakeConnection implements Connection {
  readonly sent: ClientEvent[] = [];
  microphone = false;
  silenced = 0;
  closed = false;
  readonly tailMs = 100;

  constructor(readonly kind: "webrtc" | "websocket", readonly options: ConnectOptions) {}

  send(event: ClientEvent): void { this.sent.push(event); }
  setMicrophone(open: boolean): void { this.microphone = open; }
  silence(): void { this.silenced += 1; }
  levels(): { microphone: number; voice: number } { return { microphone: 0.5, voice: 0.25 }; }
  close(): void { this.closed = true; }

  types(): string[] { return this.sent.map((event) => event.type); }
}

const track = { stop: vi.fn() };

beforeEach(() => {
  track.stop.mockReset();
  vi.useFakeTimers();
  vi.stubGlobal("navigator", { mediaDevices: { getUserMedia: async () => ({ getTracks: () => [track] }) } });
});

function setUp(options: Partial<AgogicOptions> = {}, refuse: { webrtc?: Error; websocket?: Error } = {}) {
  const made: FakeConnection[] = [];
  const connect = (kind: "webrtc" | "websocket") => async (given: ConnectOptions) => {
    if (refuse[kind]) throw refuse[kind];
    made.push(new FakeConnection(kind, given));
    return made.at(-1)!;
  };
  const transports = { webrtc: connect("webrtc"), websocket: connect("websocket") };
  return { client: new AgogicClient({ origin: "http://here", ...options }, transports), made };
}

const unreachable = new ConnectionError("no way", "unreachable");

it("talks over WebRTC where it can, and leaves turns to the server", async () => {
  const { client, made } = setUp();
  await client.connect();
  expect(client.transport).toBe("webrtc");
  expect(made[0]!.microphone).toBe(true);
  expect(made[0]!.sent[0]).toMatchObject({
    type: "session.update", session: { audio: { input: { turn_detection: { type: "server_vad" } } } },
  });
});

it("falls back to WebSocket when no media path is found, not when the server refuses", async () => {
  const { client } = setUp({}, { webrtc: unreachable });
  await client.connect();
  expect(client.transport).toBe("websocket");
  const refused = setUp({}, { webrtc: new ConnectionError("key?", "unauthorised") });
  await expect(refused.client.connect()).rejects.toThrow("key?");
  expect(refused.client.state).toBe("idle");
  expect(refused.made).toEqual([]);
});

it("lets go of the microphone when it cannot connect", async () => {
  const { client } = setUp({}, { webrtc: unreachable, websocket: unreachable });
  await expect(client.connect()).rejects.toThrow("no way");
  expect(track.stop).toHaveBeenCalledOnce();
});

it("explains a refused microphone", async () => {
  const denied = new DOMException("denied", "NotAllowedError");
  vi.stubGlobal("navigator", { mediaDevices: { getUserMedia: async () => { throw denied; } } });
  const { client } = setUp();
  await expect(client.connect()).rejects.toMatchObject({ code: "microphone", message: /Allow it/ });
});

it("push to talk: clears, listens while held, then commits and asks after the tail", async () => {
  const { client, made } = setUp({ mode: "push" });
  await client.connect();
  const connection = made[0]!;
  expect(connection.microphone).toBe(false);
  expect(connection.sent[0]).toMatchObject({ session: { audio: { input: { turn_detection: null } } } });
  client.startTalking();
  expect(connection.microphone).toBe(true);
  expect(connection.types().slice(1)).toEqual(["input_audio_buffer.clear"]);
  client.stopTalking();
  expect(connection.microphone).toBe(true); // the last word is still on its way
  vi.advanceTimersByTime(100);
  expect(connection.microphone).toBe(false);
  expect(connection.types().slice(2)).toEqual(["input_audio_buffer.commit", "response.create"]);
});

it("interrupts only a response that is being given, but always silences", async () => {
  const { client, made } = setUp();
  await client.connect();
  const connection = made[0]!;
  client.interrupt();
  expect(connection.types()).not.toContain("response.cancel");
  connection.options.onEvent({ type: "response.created", response: { id: "r", status: "in_progress" } });
  client.interrupt();
  expect(connection.types()).toContain("response.cancel");
  expect(connection.silenced).toBe(2);
});

it("sends chosen rates at once and again with each configuration", async () => {
  const { client, made } = setUp();
  client.setRates({ input: 8, output: 5 });
  await client.connect();
  const rates = { input_frame_rate: 8, output_frame_rate: 5 };
  expect(made[0]!.sent[0]).toMatchObject({ session: { x_agogic: rates } });
  client.setRates({ input: "auto", output: 4 });
  expect(made[0]!.sent.at(-1)).toMatchObject({ session: { x_agogic: { output_frame_rate: 4 } } });
});

it("warns of errors, but not of those that are only a race", async () => {
  const { client, made } = setUp();
  const warnings: string[] = [];
  client.on("warning", (text) => warnings.push(text));
  await client.connect();
  const say = (code: string) =>
    made[0]!.options.onEvent({ type: "error", error: { type: "invalid_request_error", code, message: code } });
  say("response_cancel_not_active");
  say("invalid_value");
  expect(warnings).toEqual(["invalid_value"]);
});

it("a lost connection is reported once and leaves nothing open", async () => {
  const { client, made } = setUp();
  const errors: string[] = [];
  client.on("error", (error) => errors.push(error.message));
  await client.connect();
  made[0]!.options.onLost(new ConnectionError("gone", "lost"));
  expect(errors).toEqual(["gone"]);
  expect(client.state).toBe("idle");
  expect(track.stop).toHaveBeenCalledOnce();
});

it("says why the server ended the session", async () => {
  const { client, made } = setUp();
  const errors: string[] = [];
  client.on("error", (error) => errors.push(error.message));
  await client.connect();
  const error = { type: "invalid_request_error", code: "session_expired", message: "Nobody has said anything." };
  made[0]!.options.onEvent({ type: "error", error });
  made[0]!.options.onLost(new ConnectionError("gone", "lost"));
  expect(errors).toEqual(["Nobody has said anything."]);
});

it("leaves the microphone open when the button came up just before the mode was changed", async () => {
  const { client, made } = setUp({ mode: "push" });
  await client.connect();
  client.startTalking();
  client.stopTalking();
  client.setMode("open");
  vi.advanceTimersByTime(200);
  expect(made[0]!.microphone).toBe(true);
  expect(made[0]!.types()).not.toContain("input_audio_buffer.commit");
});

it("closing while connecting leaves no connection and no microphone behind", async () => {
  const { client, made } = setUp();
  const connecting = client.connect();
  client.close();
  await connecting;
  expect(track.stop).toHaveBeenCalledOnce();
  expect(made.every((connection) => connection.closed)).toBe(true);
  expect(client.state).toBe("idle");
});
