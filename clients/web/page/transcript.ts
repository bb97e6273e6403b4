import type { AgogicClient, Turn } from "../src";
import { byId } from "./dom";

/** Copies, downloads and forgets what was said. `say` tells the reader what happened. */
export function offerTranscript(client: AgogicClient, say: (text: string) => void): void {
  const menu = byId<HTMLDetailsElement>("save");
  const actions: Record<string, () => unknown> = {
    copy: async () => {
      await navigator.clipboard.writeText(asText(client.conversation.turns));
      say("The text is in the clipboard.");
    },
    text: () => download("agogic.txt", new Blob([asText(client.conversation.turns)], { type: "text/plain" })),
    json: () => download("agogic.json", new Blob([asJson(client.conversation.turns)], { type: "application/json" })),
    wav: () => {
      const sound = client.recording();
      if (sound === undefined) say("No sound has been recorded yet.");
      else download("agogic.wav", sound);
    },
    forget: () => {
      client.close();
      client.forget();
    },
  };
  for (const button of menu.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      menu.open = false;
      const action = actions[button.dataset.save ?? ""];
      if (client.conversation.turns.length === 0) return say("Nothing has been said yet.");
      Promise.resolve(action?.()).catch(() => say("The browser did not allow that."));
    });
  }
  document.addEventListener("click", (event) => {
    if (!menu.contains(event.target as Node)) menu.open = false;
  });
}

function asText(turns: readonly Turn[]): string {
  return turns.map((turn) => `${turn.role === "user" ? "You" : "agogic"}: ${turn.text.trim()}\n`).join("");
}

function asJson(turns: readonly Turn[]): string {
  const rows = turns.map(({ id, role, status, text, words, tokens, heardDurationsMs, heardS }) => ({
    id,
    role,
    status,
    text: text.trim(),
    words: words.map((word) => ({ text: word.text, start_s: word.startS, end_s: word.endS })),
    tokens: tokens.map(([code, frames]) => ({ code, duration_ms: frames * 80 })),
    ...(heardDurationsMs ? { heard_durations_ms: heardDurationsMs } : {}),
    ...(heardS === undefined ? {} : { heard_s: heardS }),
  }));
  return `${JSON.stringify({ turns: rows }, null, 2)}\n`;
}

function download(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
