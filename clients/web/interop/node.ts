// A spoken turn of the stock `@openai/agents-realtime` over WebSocket: `node node.js URL FILE.pcm`, s16 mono at 24 kHz.
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";

declare const process: { argv: string[]; stdout: { write(text: string, then: () => void): void }; exit(code: number): never };
declare function require(name: "node:fs"): { readFileSync(path: string): Uint8Array };

const PIECE_BYTES = 4800; // 100 ms
const [url, file] = process.argv.slice(2) as [string, string];

async function main(): Promise<void> {
  const sound = require("node:fs").readFileSync(file);
  const transport = new OpenAIRealtimeWebSocket({ url, useInsecureApiKey: true });
  const session = new RealtimeSession(new RealtimeAgent({ name: "barista", instructions: "Take the order." }), {
    transport,
  });
  const report = { events: [] as string[], errors: [] as string[], audioBytes: 0, reply: "" };
  const done = new Promise<void>((resolve) => {
    session.on("transport_event", (event) => {
      report.events.push(event.type);
      if (event.type === "response.done") resolve();
    });
  });
  session.on("error", ({ error }) => report.errors.push(JSON.stringify(error)));
  session.on("audio", ({ data }) => (report.audioBytes += data.byteLength));
  session.on("history_updated", (history) => {
    for (const item of history) {
      if (item.type !== "message" || item.role !== "assistant") continue;
      report.reply = item.content.map((part) => ("transcript" in part ? (part.transcript ?? "") : "")).join(" ");
    }
  });
  await session.connect({ apiKey: "local" });
  for (let at = 0; at < sound.length; at += PIECE_BYTES) {
    session.sendAudio(new Uint8Array(sound.subarray(at, at + PIECE_BYTES)).buffer);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await done;
  session.close();
  process.stdout.write(JSON.stringify(report), () => process.exit(0));
}

void main();
