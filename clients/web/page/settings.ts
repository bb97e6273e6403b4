import { type AgogicClient, listDevices, type SessionSettings } from "../src";
import { byId, option } from "./dom";
import { type Preferences, save } from "./preferences";

const RATES = ["auto", "12.5", "8", "6.25", "5", "4"];

/** What a call is to be like. */
export function sessionSettings(preferences: Preferences): SessionSettings {
  const { turns } = preferences;
  return {
    mode: turns === "push" ? "push" : "open",
    turnDetection: turns === "open" || turns === "push" ? { type: "server_vad" } : { type: "semantic_vad", eagerness: turns },
    instructions: preferences.instructions || undefined,
    voice: preferences.voice || undefined,
    rates: { input: preferences.input, output: preferences.output },
  };
}

/** The settings' dialog and the two rates. Changes are remembered, and take effect in the running call. */
export class Settings {
  readonly #dialog = byId<HTMLDialogElement>("settings");

  constructor(
    private readonly preferences: Preferences,
    private readonly client: AgogicClient,
    private readonly complain: (text: string) => void,
  ) {
    for (const id of ["input-rate", "output-rate"]) {
      byId(id).append(...RATES.map((rate) => option(rate, rate === "auto" ? "auto" : `${rate} Hz`)));
    }
    this.#bind("input-rate", "input", rateOf, () => this.#configure());
    this.#bind("output-rate", "output", rateOf, () => this.#configure());
    this.#bind("turns", "turns", (value) => value as Preferences["turns"], () => this.#configure());
    this.#bind("instructions", "instructions", (value) => value, () => this.#configure());
    this.#bind("voice", "voice", (value) => value, () => this.#configure());
    this.#bind("volume", "volume", Number, () => client.setVolume(preferences.volume));
    this.#bind("speaker", "speaker", (value) => value, () => client.setSpeaker(preferences.speaker));
    this.#bind("microphone", "microphone", (value) => value, () => {
      if (client.hasMicrophone) return client.speak(preferences.microphone);
    });
    this.#bind("theme", "theme", (value) => value as Preferences["theme"], showTheme);
    byId("settings-button").addEventListener("click", () => {
      void this.#listDevices();
      this.#dialog.showModal();
    });
    showTheme(preferences);
    this.#configure();
    client.setVolume(preferences.volume);
    if (preferences.speaker) void client.setSpeaker(preferences.speaker);
  }

  /** The names of voices are known once a session is. */
  voiceInEffect(name: string): void {
    const voices = byId<HTMLSelectElement>("voice");
    if (![...voices.options].some((choice) => choice.value === name)) voices.append(option(name, name));
  }

  #configure(): void {
    this.client.configure(sessionSettings(this.preferences));
  }

  #bind<Name extends keyof Preferences>(
    id: string,
    name: Name,
    read: (value: string) => Preferences[Name],
    changed: (preferences: Preferences) => unknown,
  ): void {
    const field = byId<HTMLInputElement | HTMLSelectElement>(id);
    field.value = String(this.preferences[name]);
    const remember = (): void => {
      this.preferences[name] = read(field.value);
      save(this.preferences);
    };
    // What is typed is remembered as it is typed: nobody must leave the field before they leave the page.
    field.addEventListener("input", remember);
    field.addEventListener("change", () => {
      remember();
      Promise.resolve(changed(this.preferences)).catch((error: Error) => this.complain(error.message));
    });
  }

  async #listDevices(): Promise<void> {
    const devices = await listDevices();
    byId("speaker-block").hidden = devices.speakers.length === 0;
    for (const [id, kind] of [["microphone", "microphones"], ["speaker", "speakers"]] as const) {
      const field = byId<HTMLSelectElement>(id);
      const choices = devices[kind].map((device) => option(device.id, device.label));
      field.replaceChildren(option("", "The browser's choice"), ...choices);
      field.value = this.preferences[id];
      if (field.selectedIndex < 0) field.value = "";
    }
  }
}

function rateOf(value: string): "auto" | number {
  return value === "auto" ? "auto" : Number(value);
}

function showTheme(preferences: Preferences): void {
  if (preferences.theme) document.documentElement.dataset.theme = preferences.theme;
  else delete document.documentElement.dataset.theme;
}
