// The play of `tests/conformance/clients/play.py` by the stock `@openai/agents-realtime` over WebSocket. Only the address
// is ours. `node conformance.cjs URL SOUNDS STEP...` prints a line of JSON for each step.
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";

declare const process: { argv: string[]; exit(code: number): never; on(event: string, then: (error: unknown) => void): void };
declare function require(name: "node:fs"): { readFileSync(path: string): Uint8Array };

const PIECE_BYTES = 1920; // 40 ms
const HEARD_BEFORE_INTERRUPTION_BYTES = 48_000;
const PATIENCE_LOOKS = 1500; // of 20 ms
const INSTRUCTIONS =
  "You take orders at a coffee counter. Restate every order. When the customer is done, call submit_order once and " +
  "then read out the order number.";
const PICTURE =
  "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=";

const [url, sounds, ...steps] = process.argv.slice(2) as [string, string, ...string[]];
const counted = { sound_bytes: 0, interruptions: 0 };
const calls: [string, unknown][] = [];
const errors: string[] = [];
let history: [string, string][] = [];
let isLost = false;
let session: RealtimeSession;
let microphone: Uint8Array[] = [];
let isOn = true;

const nap = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
const tap = async (path: string) => (await fetch(`${url}/tap/${path}`, { method: "POST" })).text();
const completed = async () => Number(await tap("completed"));

async function until(holds: () => boolean, otherwise: string): Promise<void> {
  for (let look = 0; look < PATIENCE_LOOKS; look += 1) {
    if (holds()) return;
    await nap(20);
  }
  throw new Error(otherwise);
}

const submitOrder = tool({
  name: "submit_order",
  description: "Sends a confirmed order off",
  strict: false,
  parameters: {
    type: "object",
    properties: Object.fromEntries(
      ["coffeeDrink", "size", "roast", "milkAmount"].map((name) => [name, { type: "string" }]),
    ),
    required: ["coffeeDrink"],
    additionalProperties: true,
  },
  execute: async (order: unknown) => {
    calls.push(["submit_order", order]);
    return { order_number: 7 };
  },
});

async function open(): Promise<void> {
  isLost = false;
  const address = `${url.replace("http", "ws")}/v1/realtime?model=gpt-realtime`;
  const transport = new OpenAIRealtimeWebSocket({ url: address, useInsecureApiKey: true });
  session = new RealtimeSession(
    new RealtimeAgent({ name: "counter", instructions: INSTRUCTIONS, tools: [submitOrder] }),
    { transport },
  );
  session.on("audio", ({ data }) => (counted.sound_bytes += data.byteLength));
  session.on("audio_interrupted", () => (counted.interruptions += 1));
  session.on("error", ({ error }) => errors.push(JSON.stringify(error)));
  transport.on("connection_change", (status) => (isLost ||= status === "disconnected"));
  session.on("history_updated", (items) => {
    history = items.flatMap((item) =>
      item.type !== "message"
        ? []
        : [[
            item.role,
            item.content
              .map((part) => ("transcript" in part ? part.transcript : "text" in part ? part.text : "") ?? "")
              .join(" "),
          ] as [string, string]],
    );
  });
  await session.connect({ apiKey: "local" });
}

async function talk(): Promise<never> {
  const silence = new Uint8Array(PIECE_BYTES);
  for (let due = Date.now(); ; ) {
    if (isOn) session.sendAudio(new Uint8Array(microphone.shift() ?? silence).buffer);
    due = Math.max(due + 40, Date.now() - 1000);
    await nap(Math.max(0, due - Date.now()));
  }
}

function say(name: string): void {
  const pcm = require("node:fs").readFileSync(`${sounds}/${name}.pcm`);
  for (let at = 0; at < pcm.length; at += PIECE_BYTES) microphone.push(pcm.subarray(at, at + PIECE_BYTES));
}

async function rest(): Promise<void> {
  for (let quiet = 0, heard = counted.sound_bytes; quiet < 6; quiet += 1) {
    await nap(100);
    if (heard !== counted.sound_bytes) quiet = -1;
    heard = counted.sound_bytes;
  }
}

async function untilCompleted(count: number): Promise<void> {
  for (let look = 0; look < PATIENCE_LOOKS / 5; look += 1) {
    if ((await completed()) >= count) return rest();
    await nap(100);
  }
  throw new Error("the answer did not end");
}

async function heard(ask: () => void): Promise<void> {
  const { sound_bytes } = counted;
  const before = await completed();
  ask();
  await until(() => counted.sound_bytes > sound_bytes, "no answer was heard");
  await untilCompleted(before + 1);
}

const send = (event: { type: string }) => session.transport.sendEvent(event as never);

const PLAY: Record<string, () => Promise<void>> = {
  greeting: () => heard(() => send({ type: "response.create" })),
  turn: () => heard(() => say("order")),
  second_turn: async () => {
    session.addImage(PICTURE, { triggerResponse: false });
    await heard(() => say("price"));
  },
  joined: () => heard(() => say("paused")),
  interruption: async () => {
    const { sound_bytes, interruptions } = counted;
    say("coffee");
    await until(() => counted.sound_bytes > sound_bytes + HEARD_BEFORE_INTERRUPTION_BYTES, "nothing was answered");
    const before = await completed();
    say("large");
    await until(() => counted.interruptions > interruptions, "the client was not interrupted");
    await untilCompleted(before + 1);
  },
  tool: async () => {
    const before = await completed();
    say("done");
    await until(() => calls.length > 0, "the function was not called");
    await untilCompleted(before + 2);
  },
  given: () =>
    heard(() =>
      send({ type: "response.create", response: { instructions: 'Say "Please wait a moment."' } } as { type: string }),
    ),
  reconnect: async () => {
    isOn = false;
    await tap("cut");
    await until(() => isLost, "the client did not notice");
    await open();
    microphone = [];
    isOn = true;
    await heard(() => say("order"));
  },
};

async function main(): Promise<void> {
  process.on("unhandledRejection", (error) => errors.push(String(error)));
  await tap("step?name=open");
  await open();
  void talk();
  for (const step of steps) {
    await tap(`step?name=${step}`);
    const before = { ...counted };
    let failure = "";
    await PLAY[step]!().catch((error: Error) => (failure = error.message));
    const grown = Object.fromEntries(
      Object.entries(counted).map(([key, value]) => [key, value - before[key as keyof typeof counted]]),
    );
    console.log(JSON.stringify({ step, failure, ...grown, history, calls, errors }));
  }
  await tap("step?name=close");
  session.close();
  process.exit(0);
}

main().catch((error: Error) => {
  console.error(error);
  process.exit(1);
});
