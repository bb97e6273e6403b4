import "./style.css";
import { AgogicClient, ConnectionError, type Turn, type TurnMode } from "../sdk";
import { Captions } from "./captions";
import { byId } from "./dom";
import { rateChoices, showReport } from "./panels";
import { Timeline } from "./timeline";

const asked = new URLSearchParams(location.search).get("transport");
const transport = asked === "webrtc" || asked === "websocket" ? asked : "auto";
const mainButton = byId<HTMLButtonElement>("main-button");
const endButton = byId<HTMLButtonElement>("end-button");
const timeline = new Timeline();
const captions = new Captions((turn) => {
  picked = turn.tokens.length > 0 ? turn : undefined;
  timeline.show(picked);
});
let client: AgogicClient | undefined;
let picked: Turn | undefined; // an earlier answer, shown until the next one begins
let apiKey: string | undefined;
let mode: "open" | "push" = "open";
let rates: Parameters<AgogicClient["setRates"]>[0] = { input: "auto", output: "auto" };

function notice(text: string | undefined): void {
  byId("notice").hidden = text === undefined;
  byId("notice-text").textContent = text ?? "";
}

function showState(): void {
  const state = client?.state ?? "idle";
  const way = client?.transport === "webrtc" ? "WebRTC" : "WebSocket";
  const words = { idle: "Not connected", connecting: "Connecting", connected: `Connected, ${way}` };
  byId("state").dataset.state = state;
  byId("state-text").textContent = words[state];
  endButton.hidden = state === "idle";
  const inWriting = client?.mode === "text" && state === "connected";
  const answering = client?.conversation.responding || client?.conversation.playing;
  mainButton.disabled = state === "connecting" || (state === "connected" && (mode === "open" || inWriting) && !answering);
  mainButton.textContent =
    state === "idle" ? "Start talking"
    : state === "connecting" ? "Connecting …"
    : mode === "push" && !inWriting ? (client?.talking ? "Let go to send" : "Hold to talk")
    : answering ? "Interrupt"
    : inWriting ? "In writing"
    : "Listening";
  mainButton.toggleAttribute("data-active", client?.talking || client?.conversation.userSpeaking || false);
}

/** A client that is connected, or undefined with the reason on the page. */
async function connected(wanted: TurnMode): Promise<AgogicClient | undefined> {
  if (client?.state === "connected") return client;
  notice(undefined);
  const fresh = new AgogicClient({
    origin: location.origin, transport: wanted === "text" ? "websocket" : transport, mode: wanted,
    ...(apiKey ? { apiKey } : {}),
  });
  client?.close();
  client = fresh;
  fresh.on("state", showState);
  fresh.on("warning", notice);
  fresh.on("error", (error) => notice(error.message));
  fresh.on("change", (conversation) => {
    captions.show(conversation);
    if (conversation.lastSpoken?.status === "open") picked = undefined;
    timeline.show(picked ?? conversation.lastSpoken);
    showReport(conversation.report);
    showState();
  });
  fresh.setRates(rates);
  try {
    await fresh.connect();
    showState();
    return fresh;
  } catch (error) {
    notice(error instanceof Error ? error.message : String(error));
    byId("key-form").hidden = !(error instanceof ConnectionError && error.code === "unauthorised");
    showState();
    return undefined;
  }
}

mainButton.addEventListener("click", () => {
  if ((client?.state ?? "idle") === "idle") void connected(mode);
  else if (mode === "open" || client?.mode === "text") client?.interrupt();
});
mainButton.addEventListener("pointerdown", (event) => {
  if (client?.state !== "connected" || mode !== "push") return;
  mainButton.setPointerCapture(event.pointerId);
  client.startTalking();
  showState();
});
for (const name of ["pointerup", "pointercancel"] as const) {
  mainButton.addEventListener(name, () => {
    client?.stopTalking();
    showState();
  });
}
// The space bar talks from anywhere on the page where it would not type or press something else.
const isSpace = (event: KeyboardEvent): boolean => {
  const target = event.target as HTMLElement;
  return event.code === "Space" && (target === mainButton || !target.closest("input, button, textarea"));
};
document.addEventListener("keydown", (event) => {
  if (event.code === "Escape") client?.interrupt();
  if (!isSpace(event) || mode !== "push" || client?.state !== "connected") return;
  event.preventDefault();
  if (!event.repeat) client.startTalking();
  showState();
});
document.addEventListener("keyup", (event) => {
  if (!isSpace(event) || mode !== "push" || client?.state !== "connected") return;
  event.preventDefault();
  client.stopTalking();
  showState();
});

endButton.addEventListener("click", () => client?.close());
byId("notice-close").addEventListener("click", () => notice(undefined));
byId<HTMLFormElement>("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = byId<HTMLInputElement>("key").value.trim();
  byId("key-form").hidden = true;
  void connected(mode);
});
for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=mode]")) {
  radio.addEventListener("change", () => {
    mode = radio.value === "push" ? "push" : "open";
    if (client?.mode !== "text") client?.setMode(mode);
    showState();
  });
}
byId<HTMLFormElement>("write").addEventListener("submit", (event) => {
  event.preventDefault();
  const line = byId<HTMLInputElement>("line");
  const text = line.value.trim();
  if (!text) return;
  void connected("text").then((ready) => {
    if (ready === undefined) return;
    ready.write(text);
    line.value = "";
  });
});
rateChoices((chosen) => {
  rates = chosen;
  client?.setRates(chosen);
});

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme === "dark" || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
});

const meters = [byId("meter-you"), byId("meter-voice")];
setInterval(() => {
  const { microphone, voice } = client?.levels() ?? { microphone: 0, voice: 0 };
  [microphone, voice].forEach((level, index) => {
    const meter = meters[index]!;
    meter.style.setProperty("--level", level.toFixed(3));
    meter.setAttribute("aria-valuenow", level.toFixed(2));
  });
}, 50);
showState();
