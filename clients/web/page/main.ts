import "./style.css";
import { AgogicClient, AgogicError, type Turn } from "../src";
import { Captions } from "./captions";
import { byId, make } from "./dom";
import { Inspector } from "./inspector";
import { load } from "./preferences";
import { showReport } from "./report";
import { Settings } from "./settings";
import { HeardTimeline, SaidTimeline } from "./timeline";
import { offerTranscript } from "./transcript";

/** Each is tried by the tests against the embedded model. */
const EXAMPLES = ["A large latte with two shots, please.", "What do you have?", "Who are you?"];

const preferences = load();
const mainButton = byId<HTMLButtonElement>("main-button");
const endButton = byId<HTMLButtonElement>("end-button");
const muteButton = byId<HTMLButtonElement>("mute-button");
const said = new SaidTimeline();
const heard = new HeardTimeline();
const inspector = new Inspector();
const captions = new Captions((turn) => {
  if (turn.role === "user") heard.show(turn);
  else picked = turn.tokens.length > 0 ? turn : undefined;
  said.show(picked);
  showInside(true);
});
let picked: Turn | undefined; // an earlier answer, shown until the next one begins
let apiKey = "";
const client = new AgogicClient({
  transport: preferences.transport,
  record: true,
  workletUrl: "/assets/worklets.js",
  apiKey: () => apiKey,
});
const settings = new Settings(preferences, client, notice);

function notice(text: string | undefined): void {
  byId("notice").hidden = text === undefined;
  byId("notice-text").textContent = text ?? "";
}

function showState(): void {
  const { state } = client;
  const way = client.transport === "webrtc" ? "WebRTC" : "WebSocket";
  const words = {
    idle: "Not connected", connecting: "Connecting", connected: `Connected, ${way}`, reconnecting: "Connection lost",
  };
  const answering = client.conversation.responding || client.conversation.playing;
  const speaking = client.conversation.userSpeaking || client.talking;
  const push = preferences.turns === "push";
  byId("state").dataset.state = state;
  setText("state-text", words[state]);
  endButton.hidden = state === "idle";
  muteButton.hidden = state !== "connected" || !client.hasMicrophone || push;
  muteButton.setAttribute("aria-pressed", String(client.muted));
  setText("mute-button", client.muted ? "Unmute" : "Mute");
  mainButton.disabled = state === "connecting" || state === "reconnecting";
  const phase =
    state !== "connected" ? state
    : answering && !(push && client.talking) ? "answering"
    : !client.hasMicrophone ? "writing"
    : client.muted ? "muted"
    : speaking ? "hearing"
    : "listening";
  mainButton.dataset.phase = phase;
  const [button, sentence] = {
    idle: ["Talk", client.conversation.turns.length ? "The call has ended. Press to go on." : "Press to talk. Your browser will ask for the microphone."],
    connecting: ["…", "Connecting."],
    reconnecting: ["…", "The server does not answer. Trying again; what was said is kept."],
    answering: [push ? "Hold" : "Stop", push ? "Answering. Hold to break in." : "Answering. Break in by speaking, or press."],
    writing: ["Talk", "You are writing. Press to speak as well."],
    hearing: [push ? "Let go" : "Hearing", push ? "Listening. Let go to send." : "Hearing you."],
    muted: ["Muted", "You are muted. Nothing you say is sent."],
    listening: [push ? "Hold" : "Listening", push ? "Hold the button or the space bar to talk." : "Listening. Just speak."],
  }[phase] as [string, string];
  setText("main-text", button);
  setText("say", sentence);
}

function setText(id: string, text: string): void {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Whether there is a connection now; if not, the reason is on the page. */
async function connected(withMicrophone: boolean): Promise<boolean> {
  if (client.state !== "idle") return client.state === "connected";
  notice(undefined);
  try {
    await client.connect({ microphone: withMicrophone });
  } catch (error) {
    notice(error instanceof Error ? error.message : String(error));
    byId("key-form").hidden = !(error instanceof AgogicError && error.code === "unauthorised");
  }
  showState();
  return client.state !== "idle";
}

client.on("state", (state) => {
  if (state === "reconnecting") notice("The server does not answer any more. Trying again; what was said is kept.");
  if (state === "connected") notice(undefined);
  showState();
});
client.on("warning", (warning) => notice(warning.message));
client.on("error", (error) => notice(`${error.message} What was said is kept; press Talk to go on.`));
client.on("event", (event) => {
  if (event.type !== "session.created" && event.type !== "session.updated") return;
  const voice = event.session.audio?.output?.voice;
  if (voice) settings.voiceInEffect(voice);
});
client.on("change", (conversation) => {
  captions.show(conversation);
  if (conversation.lastSpoken?.status === "open") picked = undefined;
  said.show(picked ?? conversation.lastSpoken);
  heard.show(conversation.lastHeard);
  showReport(conversation.report);
  if (conversation.turns.length === 0) [said, heard].forEach((timeline) => timeline.clear());
  showState();
});
inspector.watch(client);

/** Talk, or bring the microphone into a call that began in writing. */
async function talk(): Promise<void> {
  if (client.state !== "connected") return void (await connected(true));
  await client.speak(preferences.microphone || undefined).catch((error: Error) => notice(error.message));
  showState();
}

async function write(text: string): Promise<void> {
  if (await connected(false)) client.write(text);
}

mainButton.addEventListener("click", () => {
  const phase = mainButton.dataset.phase;
  if (phase === "idle" || phase === "writing") void talk();
  else if (phase === "muted") client.setMuted(false);
  else if (phase === "answering" && preferences.turns !== "push") client.interrupt();
  showState();
});
const holds = (): boolean => preferences.turns === "push" && client.state === "connected" && client.hasMicrophone;
function hold(down: boolean): void {
  if (down) client.startTalking();
  else client.stopTalking();
  showState();
}
mainButton.addEventListener("pointerdown", (event) => {
  if (!holds()) return;
  mainButton.setPointerCapture(event.pointerId);
  hold(true);
});
for (const name of ["pointerup", "pointercancel"] as const) {
  mainButton.addEventListener(name, () => {
    if (holds()) hold(false);
  });
}
// The space bar talks from anywhere on the page where it would not type or press something else.
const isSpace = ({ code, target }: KeyboardEvent): boolean =>
  code === "Space" && (target === mainButton || !(target as HTMLElement).closest("input, button, textarea, select, summary"));
document.addEventListener("keydown", (event) => {
  if (event.code === "Escape") client.interrupt();
  if (event.altKey && event.code === "KeyM" && !muteButton.hidden) muteButton.click();
  if (event.altKey && event.code === "KeyT") {
    event.preventDefault();
    byId("line").focus();
  }
  if (!isSpace(event) || !holds()) return;
  event.preventDefault();
  if (!event.repeat) hold(true);
});
document.addEventListener("keyup", (event) => {
  if (!isSpace(event) || !holds()) return;
  event.preventDefault();
  hold(false);
});

muteButton.addEventListener("click", () => {
  client.setMuted(!client.muted);
  showState();
});
endButton.addEventListener("click", () => client.close());
byId("notice-close").addEventListener("click", () => notice(undefined));
byId<HTMLFormElement>("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = byId<HTMLInputElement>("key").value.trim();
  byId("key-form").hidden = true;
  void connected(true);
});
byId<HTMLFormElement>("write").addEventListener("submit", (event) => {
  event.preventDefault();
  const line = byId<HTMLInputElement>("line");
  const text = line.value.trim();
  if (!text) return;
  line.value = "";
  void write(text);
});
byId("turns").addEventListener("change", () => {
  if (preferences.turns === "push") client.setMuted(false); // its button is not shown there
  showState();
});
offerTranscript(client, notice);

function showInside(shown: boolean): void {
  document.body.toggleAttribute("data-inside", shown);
  byId("inside-button").setAttribute("aria-expanded", String(shown));
  said.lay();
}
byId("inside-button").addEventListener("click", () => showInside(!document.body.hasAttribute("data-inside")));

const meters = [byId("meter-you"), byId("meter-voice")];
setInterval(() => {
  const { microphone, voice } = client.levels();
  [microphone, voice].forEach((level, index) => {
    const meter = meters[index]!;
    meter.style.setProperty("--level", level.toFixed(3));
    meter.setAttribute("aria-valuenow", level.toFixed(2));
  });
  mainButton.style.setProperty("--level", Math.max(microphone, voice).toFixed(3));
}, 50);

byId("examples").append(
  ...EXAMPLES.map((text) => {
    const row = make("li");
    const button = make("button", text);
    button.type = "button";
    button.addEventListener("click", () => void write(text));
    row.append(button);
    return row;
  }),
);
void fetch("/readyz")
  .then((response) => response.json() as Promise<{ model?: string }>)
  .then(({ model }) => {
    byId("examples-block").hidden = model !== "embedded";
    if (model === "embedded") byId("invitation-title").textContent = "Order a coffee. Aloud.";
  })
  .catch(() => undefined);
showState();
