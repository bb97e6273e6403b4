import type { RateSetting } from "../src";

/** What the page remembers of one visit for the next. */
export interface Preferences {
  input: RateSetting;
  output: RateSetting;
  turns: "open" | "high" | "medium" | "low" | "push";
  instructions: string;
  microphone: string;
  speaker: string;
  volume: number;
  voice: string;
  theme: "" | "light" | "dark";
  transport: "auto" | "webrtc" | "websocket";
}

const KEY = "agogic.preferences";
const DEFAULTS: Preferences = {
  input: "auto",
  output: 6.25, // so that what makes agogic special is seen at once
  turns: "open",
  instructions: "",
  microphone: "",
  speaker: "",
  volume: 1,
  voice: "",
  theme: "",
  transport: "auto",
};

/** Remembered where the browser lets the page remember; the address may choose the transport (`?transport=`). */
export function load(): Preferences {
  const asked = new URLSearchParams(location.search).get("transport");
  const transport = asked === "webrtc" || asked === "websocket" ? asked : "auto";
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Preferences>;
    return { ...DEFAULTS, ...kept, transport };
  } catch {
    return { ...DEFAULTS, transport };
  }
}

export function save(preferences: Preferences): void {
  try {
    localStorage.setItem(KEY, JSON.stringify(preferences));
  } catch {
    // a private window: nothing is remembered
  }
}
