// A conversation of the stock `@openai/agents-realtime` over WebRTC, as a page runs it. Only the address is ours.
import { OpenAIRealtimeWebRTC, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";

interface Report {
  events: string[];
  errors: string[];
  history: { role?: string; status?: string; text: string }[];
  callId: string | undefined;
}

declare global {
  interface Window {
    report: Report;
    connectAgent: () => Promise<void>;
    interruptAgent: () => void;
  }
}

const report: Report = { events: [], errors: [], history: [], callId: undefined };
window.report = report;

const player = document.createElement("audio");
player.autoplay = true;
player.dataset.role = "voice";
document.body.append(player);

const transport = new OpenAIRealtimeWebRTC({ baseUrl: `${location.origin}/v1/realtime/calls`, audioElement: player });
const session = new RealtimeSession(new RealtimeAgent({ name: "barista", instructions: "Take the order." }), {
  transport,
});
session.on("transport_event", (event) => report.events.push(event.type));
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

window.connectAgent = async () => {
  await session.connect({ apiKey: "ek_local" });
  report.callId = transport.callId;
};
window.interruptAgent = () => session.interrupt();
