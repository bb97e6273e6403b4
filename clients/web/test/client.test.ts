import { beforeEach, expect, it, vi } from "vitest";
import { AgogicClient, type AgogicOptions } from "../src/client";
import type { Connect } from "../src/connection";
import { AgogicError } from "../src/errors";
import type { ServerEvent } from "../src/events";
import { FakeConnection, FakeTrack, fakeStream } from "./fakes";

let track: FakeTrack;
let asked: (MediaStreamConstraints | undefined)[];

beforeEach(() => {
  asked = [];
  vi.useFakeTimers();
  vi.stubGlobal("navigator", {
    mediaDevices: {
      getUserMedia: async (wanted: MediaStreamConstraints) => {
        asked.push(wanted);
        track = new FakeTrack();
        return fakeStream(track);
      },
    },
  });
});

function setUp(options: Partial<AgogicOptions> = {}, refuse: { webrtc?: Error | undefined; websocket?: Error | undefined } = {}) {
  const made: FakeConnection[] = [];
  const connect = (kind: "webrtc" | "websocket"): Connect => async (given) => {
    const refused = refuse[kind];
    if (refused) throw refused;
    made.push(new FakeConnection(kind, given));
    return made.at(-1)!;
  };
  const client = new AgogicClient(
    { url: "http://here/", ...options },
    { webrtc: connect("webrtc"), websocket: connect("websocket") },
  );
  return { client, made, refuse };
}

const unreachable = new AgogicError("no way", "unreachable");
const lost = new AgogicError("gone", "lost");

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
  const refused = setUp({}, { webrtc: new AgogicError("key?", "unauthorised") });
  await expect(refused.client.connect()).rejects.toThrow("key?");
  expect(refused.client.state).toBe("idle");
  expect(refused.made).toEqual([]);
});

it("lets go of the microphone when it cannot connect", async () => {
  const { client } = setUp({}, { webrtc: unreachable, websocket: unreachable });
  await expect(client.connect()).rejects.toThrow("no way");
  expect(track.stopped).toBe(true);
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
  expect(made[0]!.sent[0]).toMatchObject({ session: { x_agogic: { ...rates, joined_turns: true } } });
  client.setRates({ input: "auto", output: 4 });
  expect(made[0]!.sent.at(-1)).toMatchObject({ session: { x_agogic: { output_frame_rate: 4 } } });
});

it("warns of errors, but not of those that are only a race", async () => {
  const { client, made } = setUp();
  const warnings: string[] = [];
  client.on("warning", (warning) => warnings.push(warning.message));
  await client.connect();
  const say = (code: string) =>
    made[0]!.options.onEvent({ type: "error", error: { type: "invalid_request_error", code, message: code } });
  say("response_cancel_not_active");
  say("invalid_value");
  expect(warnings).toEqual(["invalid_value"]);
});

it("a lost connection is reported once and leaves nothing open where it is not made again", async () => {
  const { client, made } = setUp({ reconnect: false });
  const errors: string[] = [];
  client.on("error", (error) => errors.push(error.message));
  await client.connect();
  made[0]!.options.onLost(new AgogicError("gone", "lost"));
  expect(errors).toEqual(["gone"]);
  expect(client.state).toBe("idle");
  expect(track.stopped).toBe(true);
});

it("says why the server ended the session", async () => {
  const { client, made } = setUp();
  const errors: string[] = [];
  client.on("error", (error) => errors.push(error.message));
  await client.connect();
  const error = { type: "invalid_request_error", code: "session_expired", message: "Nobody has said anything." };
  made[0]!.options.onEvent({ type: "error", error });
  made[0]!.options.onLost(new AgogicError("gone", "lost"));
  expect(errors).toEqual(["Nobody has said anything."]);
});

it("leaves the microphone open when the button came up just before the mode was changed", async () => {
  const { client, made } = setUp({ mode: "push" });
  await client.connect();
  client.startTalking();
  client.stopTalking();
  client.configure({ mode: "open" });
  vi.advanceTimersByTime(200);
  expect(made[0]!.microphone).toBe(true);
  expect(made[0]!.types()).not.toContain("input_audio_buffer.commit");
});

it("closing while connecting leaves no connection and no microphone behind", async () => {
  const { client, made } = setUp();
  const connecting = client.connect();
  client.close();
  await connecting;
  expect(track.stopped).toBe(true);
  expect(made.every((connection) => connection.closed)).toBe(true);
  expect(client.state).toBe("idle");
});

const answer = (text: string): ServerEvent[] => [
  { type: "conversation.item.added", item: { id: "u1", type: "message", role: "user", content: [{ type: "input_text", text: "A latte." }] } },
  { type: "response.created", response: { id: "r1", status: "in_progress" } },
  { type: "response.output_item.added", response_id: "r1", item: { id: "a1", type: "message", role: "assistant" } },
  { type: "response.output_audio_transcript.delta", item_id: "a1", delta: text, start_time: 0, end_time: 1 },
];

it("makes a lost connection again and tells the new session what was said", async () => {
  const { client, made, refuse } = setUp({ instructions: "Be kind." });
  const states: string[] = [];
  client.on("state", (state) => states.push(state));
  await client.connect();
  for (const event of answer("One latte")) made[0]!.options.onEvent(event);
  refuse.webrtc = refuse.websocket = unreachable;
  made[0]!.options.onLost(lost);
  expect(client.state).toBe("reconnecting");
  expect(client.conversation.turns.map((turn) => turn.status)).toEqual(["done", "interrupted"]);
  await vi.advanceTimersByTimeAsync(3000);
  refuse.webrtc = refuse.websocket = undefined;
  await vi.advanceTimersByTimeAsync(1100);
  expect(states).toEqual(["connecting", "connected", "reconnecting", "connected"]);
  expect(track.stopped).toBe(false);
  expect(made[1]!.microphone).toBe(true);
  expect(made[1]!.sent).toMatchObject([
    { type: "session.update", session: { instructions: "Be kind." } },
    { item: { id: "u1", role: "user", content: [{ type: "input_text", text: "A latte." }] } },
    { item: { id: "a1", role: "assistant", content: [{ type: "output_text", text: "One latte" }] } },
  ]);
  // the session's own report of these items changes nothing
  made[1]!.options.onEvent({ type: "conversation.item.added", item: { id: "a1", type: "message", role: "assistant" } });
  expect(client.conversation.turns).toHaveLength(2);
});

it("gives up at once where the key is refused, and in the end where nobody comes back", async () => {
  for (const [problem, told] of [[new AgogicError("key?", "unauthorised"), "key?"], [unreachable, "gone"]] as const) {
    const { client, made, refuse } = setUp();
    const errors: string[] = [];
    client.on("error", (error) => errors.push(error.message));
    await client.connect();
    refuse.webrtc = refuse.websocket = problem;
    made[0]!.options.onLost(lost);
    await vi.advanceTimersByTimeAsync(11 * 60_000);
    expect(errors).toEqual([told]);
    expect(client.state).toBe("idle");
  }
});

it("closing while it reconnects ends that", async () => {
  const { client, made } = setUp();
  await client.connect();
  made[0]!.options.onLost(lost);
  client.close();
  await vi.advanceTimersByTimeAsync(5000);
  expect(made).toHaveLength(1);
  expect(client.state).toBe("idle");
});

it("goes on with the conversation when it is connected again after its end", async () => {
  const { client, made } = setUp();
  await client.connect();
  for (const event of answer("One latte")) made[0]!.options.onEvent(event);
  client.close();
  await client.connect();
  expect(made[1]!.types()).toEqual(["session.update", "conversation.item.create", "conversation.item.create"]);
  client.forget();
  expect(client.conversation.turns).toEqual([]);
});

it("asks for a fresh key for each connection", async () => {
  let count = 0;
  const { client, made } = setUp({ apiKey: async () => `ek_${++count}` });
  await client.connect();
  made[0]!.options.onLost(lost);
  await vi.advanceTimersByTimeAsync(1000);
  expect(made.map((connection) => connection.options.apiKey)).toEqual(["ek_1", "ek_2"]);
  expect(made[0]!.options.url).toBe("http://here");
});

it("begins in writing over WebSocket and takes a microphone in later", async () => {
  const { client, made } = setUp({ microphone: false });
  await client.connect();
  expect(asked).toEqual([]);
  expect(client.transport).toBe("websocket");
  expect(made[0]!.microphone).toBe(false);
  client.write("A latte.");
  expect(made[0]!.types().slice(1)).toEqual(["conversation.item.create", "response.create"]);
  await client.speak("usb");
  expect(asked[0]).toMatchObject({ audio: { deviceId: { exact: "usb" }, echoCancellation: true } });
  expect(made[0]!.microphone).toBe(true);
  expect(client.hasMicrophone).toBe(true);
});

it("mutes the track itself, so that nothing of it is measured or recorded either", async () => {
  const { client, made } = setUp();
  await client.connect();
  client.setMuted(true);
  expect([client.muted, made[0]!.microphone, track.enabled]).toEqual([true, false, false]);
  client.setMuted(false);
  expect([made[0]!.microphone, track.enabled]).toEqual([true, true]);
});

it("takes another microphone when the one in use is unplugged", async () => {
  const { client, made } = setUp();
  const warnings: string[] = [];
  client.on("warning", (warning) => warnings.push(warning.message));
  await client.connect();
  const first = track;
  first.dispatchEvent(new Event("ended"));
  await vi.advanceTimersByTimeAsync(1);
  expect(warnings[0]).toMatch(/unplugged/);
  expect(track).not.toBe(first);
  expect(made[0]!.stream!.getTracks()[0]).toBe(track);
});

it("keeps volume and speaker across connections", async () => {
  const { client, made } = setUp();
  client.setVolume(0.3);
  await client.setSpeaker("headset");
  await client.connect();
  expect([made[0]!.volume, made[0]!.speaker]).toEqual([0.3, "headset"]);
  client.setVolume(0.6);
  expect(made[0]!.volume).toBe(0.6);
  expect(client.levels()).toEqual({ microphone: 0.5, voice: 0.25 });
  expect(client.recording()).toBeUndefined();
});

it("runs the functions that an answer calls and asks for the next answer", async () => {
  const run = vi.fn(async ({ size }: Record<string, unknown>) => ({ price: size === "large" ? 4.5 : 4 }));
  const { client, made } = setUp({ tools: { price: { description: "Price of a size", parameters: {}, run } } });
  await client.connect();
  expect(made[0]!.sent[0]).toMatchObject({ session: { tools: [{ type: "function", name: "price" }] } });
  made[0]!.options.onEvent({
    type: "response.done",
    response: {
      id: "r", status: "completed",
      output: [{ id: "c", type: "function_call", call_id: "call_1", name: "price", arguments: '{"size":"large"}' }],
    },
  });
  await vi.advanceTimersByTimeAsync(1);
  expect(made[0]!.sent.slice(1)).toEqual([
    { type: "conversation.item.create", item: { type: "function_call_output", call_id: "call_1", output: '{"price":4.5}' } },
    { type: "response.create", event_id: "ask_1" },
  ]);
  made[0]!.options.onLost(lost);
  await vi.advanceTimersByTimeAsync(500);
  expect(made[1]!.sent.slice(1)).toMatchObject([
    { item: { type: "function_call", name: "price" } },
    { item: { type: "function_call_output", call_id: "call_1" } },
  ]);
});

it("tells the model and the app of a function that throws or does not exist", async () => {
  const tools = { broken: { description: "", parameters: {}, run: () => { throw new Error("no till"); } } };
  const { client, made } = setUp({ tools });
  const warnings: AgogicError[] = [];
  client.on("warning", (warning) => warnings.push(warning));
  await client.connect();
  const call = (name: string) => ({ id: name, type: "function_call" as const, call_id: name, name, arguments: "" });
  made[0]!.options.onEvent({
    type: "response.done", response: { id: "r", status: "completed", output: [call("broken"), call("toString")] },
  });
  await vi.advanceTimersByTimeAsync(1);
  expect(made[0]!.sent.slice(1)).toMatchObject([
    { item: { output: '{"error":"no till"}' } }, { item: { output: expect.stringMatching("no function") } }, { type: "response.create" },
  ]);
  expect(warnings.map((warning) => warning.code)).toEqual(["tool", "tool"]);
});

it("tells who listens what was sent and received", async () => {
  const { client, made } = setUp();
  const seen: string[] = [];
  client.on("sent", (event) => seen.push(`> ${event.type}`));
  const off = client.on("event", (event) => seen.push(`< ${event.type}`));
  await client.connect();
  made[0]!.options.onEvent({ type: "input_audio_buffer.cleared" });
  off();
  made[0]!.options.onEvent({ type: "input_audio_buffer.cleared" });
  expect(seen).toEqual(["> session.update", "< input_audio_buffer.cleared"]);
});

it("does not show what is overheard while the button is up", async () => {
  const { client, made } = setUp({ mode: "push" });
  await client.connect();
  made[0]!.options.onEvent({ type: "x_agogic.input_transcript", item_id: "u", transcript: "psst" });
  expect(client.conversation.turns).toEqual([]);
});

const refused = (id: string): ServerEvent => ({
  type: "error",
  error: { type: "invalid_request_error", code: "conversation_already_has_active_response", message: "busy", event_id: id },
});
const begun: ServerEvent = { type: "response.created", response: { id: "r", status: "in_progress" } };

it("asks again in place of an answer that began at the same moment as something was written", async () => {
  const { client, made } = setUp();
  const warnings: string[] = [];
  client.on("warning", (warning) => warnings.push(warning.message));
  await client.connect();
  client.write("A latte.");
  made[0]!.options.onEvent(begun);
  made[0]!.options.onEvent(refused("ask_1"));
  expect(made[0]!.types().slice(1)).toEqual([
    "conversation.item.create", "response.create", "response.cancel", "response.create",
  ]);
  expect(warnings).toEqual([]);
  made[0]!.options.onEvent(refused("somebody's own"));
  expect(warnings).toEqual(["busy"]);
});

it("asks for the answer to a function's result when the answer that came between is over", async () => {
  const tools = { price: { description: "", parameters: {}, run: () => 4 } };
  const { client, made } = setUp({ tools });
  await client.connect();
  const call = { id: "c", type: "function_call" as const, call_id: "1", name: "price", arguments: "{}" };
  made[0]!.options.onEvent({ type: "response.done", response: { id: "r", status: "completed", output: [call] } });
  await vi.advanceTimersByTimeAsync(1);
  made[0]!.options.onEvent(begun);
  made[0]!.options.onEvent(refused("ask_1"));
  expect(made[0]!.types().filter((type) => type.startsWith("response."))).toEqual(["response.create"]);
  made[0]!.options.onEvent({ type: "response.done", response: { id: "r2", status: "completed" } });
  made[0]!.options.onEvent({ type: "response.done", response: { id: "r3", status: "completed" } });
  expect(made[0]!.types().filter((type) => type.startsWith("response."))).toEqual(["response.create", "response.create"]);
});

it("muted in the middle of a turn, sends silence until the server has noticed its end", async () => {
  const { client, made } = setUp();
  await client.connect();
  made[0]!.options.onEvent({ type: "input_audio_buffer.speech_started", item_id: "u" });
  client.setMuted(true);
  expect([track.enabled, made[0]!.microphone]).toEqual([false, true]);
  made[0]!.options.onEvent({ type: "input_audio_buffer.speech_stopped", item_id: "u" });
  expect(made[0]!.microphone).toBe(false);
  // the server may notice the beginning of a turn only after the button was pressed
  made[0]!.options.onEvent({ type: "input_audio_buffer.speech_started", item_id: "v" });
  expect([track.enabled, made[0]!.microphone]).toEqual([false, true]);
});

const beginning = (token: string, event_id: string): ServerEvent => ({
  type: "session.created", event_id, session: { id: "s", model: "m" }, x_agogic: { resume: { token, within_s: 60 } },
});
const resumed = (token: string, last: string | null): ServerEvent => ({
  type: "x_agogic.session_resumed", event_id: "again", session: { id: "s", model: "m" }, last_client_event_id: last,
  x_agogic: { resume: { token, within_s: 60 } },
});
const come = (connection: FakeConnection, event: ServerEvent): void => {
  connection.options.onReceived?.(event);
  connection.options.onEvent(event);
};

it("takes a lost session up where it was, with the key it was opened with", async () => {
  let count = 0;
  const { client, made } = setUp({ apiKey: async () => `ek_${++count}` });
  await client.connect();
  come(made[0]!, beginning("t1", "e1"));
  for (const [index, event] of answer("One").entries()) come(made[0]!, { ...event, event_id: `e${index + 2}` });
  client.send({ type: "first" });
  client.send({ type: "second" });
  const first = made[0]!.sent.at(-2)!.event_id as string;
  made[0]!.options.onLost(lost);
  expect(client.conversation.turns.map((turn) => turn.status)).toEqual(["done", "open"]);
  expect(made[0]!.closed).toBe(false);
  client.send({ type: "third" });
  client.setRates({ output: 5 });
  await vi.advanceTimersByTimeAsync(500);
  expect(made[1]!.options).toMatchObject({ apiKey: "ek_1", resume: { token: "t1", after: "e5" } });
  expect(made[0]!.closed).toBe(true);
  expect(client.state).toBe("connected");
  expect(made[1]!.types()).toEqual(["session.update"]);
  come(made[1]!, resumed("t2", first));
  expect(made[1]!.types()).toEqual(["session.update", "second", "third", "session.update"]);
  come(made[1]!, { type: "response.output_audio_transcript.delta", event_id: "e6", item_id: "a1", delta: " latte" });
  expect(client.conversation.turns.at(-1)!.text).toBe("One latte");
  made[1]!.options.onLost(lost);
  await vi.advanceTimersByTimeAsync(500);
  expect(made[2]!.options.resume).toEqual({ token: "t2", after: "e6" });
});

it("tells a new session what was said where the server does not know the old one, or nobody answered for too long", async () => {
  for (const problem of [new AgogicError("unknown", "stale"), unreachable]) {
    const { client, made, refuse } = setUp();
    await client.connect();
    come(made[0]!, beginning("t1", "e1"));
    for (const event of answer("One latte")) come(made[0]!, event);
    refuse.webrtc = refuse.websocket = problem;
    made[0]!.options.onLost(lost);
    await vi.advanceTimersByTimeAsync(problem === unreachable ? 62_000 : 260);
    refuse.webrtc = refuse.websocket = undefined;
    await vi.advanceTimersByTimeAsync(1100);
    expect(made[1]!.options.resume).toBeUndefined();
    expect(made[1]!.types()).toEqual(["session.update", "conversation.item.create", "conversation.item.create"]);
    expect(client.conversation.turns.map((turn) => turn.status)).toEqual(["done", "interrupted"]);
  }
});
