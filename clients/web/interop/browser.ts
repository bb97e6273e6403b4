// A conversation of the stock `@openai/agents-realtime` over WebRTC, as a page runs it. Only the address is ours.
import { OpenAIRealtimeWebRTC, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";

interface Report {
  events: string[];
  raw: object[];
  calls: unknown[];
  errors: string[];
  history: { role?: string; status?: string; text: string }[];
  callId: string | undefined;
}

declare global {
  interface Window {
    report: Report;
    connectAgent: () => Promise<void>;
    interruptAgent: () => void;
    writeAgent: (text: string) => void;
    reconnectAgent: () => Promise<void>;
  }
}

const report: Report = { events: [], raw: [], calls: [], errors: [], history: [], callId: undefined };
window.report = report;

const player = document.createElement("audio");
player.autoplay = true;
player.dataset.role = "voice";
document.body.append(player);

const submitOrder = tool({
  name: "submit_order",
  description: "Sends a confirmed order off",
  strict: false,
  parameters: { type: "object", properties: { coffeeDrink: { type: "string" } }, required: [], additionalProperties: true },
  execute: async (order: unknown) => {
    report.calls.push(order);
    return { order_number: 7 };
  },
});
const agent = new RealtimeAgent({ name: "barista", instructions: "Take the order.", tools: [submitOrder] });
let session: RealtimeSession;
let transport: OpenAIRealtimeWebRTC;

function prepare(): void {
  transport = new OpenAIRealtimeWebRTC({ baseUrl: `${location.origin}/v1/realtime/calls`, audioElement: player });
  session = new RealtimeSession(agent, { transport });
  session.on("transport_event", (event) => {
    report.events.push(event.type);
    report.raw.push(event);
  });
  session.on("error", ({ error }) => report.errors.push(JSON.stringify(error)));
  session.on("history_updated", (history) => {
    report.history = history.flatMap((item) =>
    item.type !== "message"
      ? []
      : [{
          role: item.role,
          status: "status" in item ? item.status : "",
          text: item.content
            .map((part) => ("transcript" in part ? part.transcript : "text" in part ? part.text : "") ?? "")
            .join(" "),
        }],
  );
  });
}

window.connectAgent = async () => {
  prepare();
  await session.connect({ apiKey: "ek_local" });
  report.callId = transport.callId;
};
window.interruptAgent = () => session.interrupt();
window.writeAgent = (text) => session.sendMessage(text);
window.reconnectAgent = async () => {
  session.close();
  report.events = [];
  report.raw = [];
  await window.connectAgent();
};
