import type { AgogicClient, ClientEvent, ServerEvent } from "../src";
import { byId, make } from "./dom";

const KEPT = 400;

interface Entry {
  sent: boolean;
  atMs: number;
  event: ServerEvent | ClientEvent;
}

/** Every event on the wire, newest first; drawn only while it is open. */
export class Inspector {
  readonly #block = byId<HTMLDetailsElement>("events");
  readonly #list = byId("event-list");
  readonly #filter = byId<HTMLInputElement>("event-filter");
  #entries: Entry[] = [];

  constructor() {
    this.#block.addEventListener("toggle", () => this.#redraw());
    this.#filter.addEventListener("input", () => this.#redraw());
    byId("event-clear").addEventListener("click", () => {
      this.#entries = [];
      this.#redraw();
    });
  }

  watch(client: AgogicClient): void {
    client.on("event", (event) => this.#add({ sent: false, atMs: performance.now(), event }));
    client.on("sent", (event) => {
      if (event.type !== "input_audio_buffer.append") this.#add({ sent: true, atMs: performance.now(), event });
    });
  }

  #add(entry: Entry): void {
    this.#entries.push(entry);
    if (this.#entries.length > KEPT) this.#entries.shift();
    if (!this.#block.open || !this.#matches(entry)) return;
    this.#list.prepend(this.#row(entry));
    while (this.#list.childElementCount > KEPT) this.#list.lastElementChild?.remove();
  }

  #matches({ event }: Entry): boolean {
    return JSON.stringify(event).includes(this.#filter.value.trim());
  }

  #redraw(): void {
    const shown = this.#block.open ? this.#entries.filter((entry) => this.#matches(entry)) : [];
    this.#list.replaceChildren(...shown.toReversed().map((entry) => this.#row(entry)));
  }

  #row({ sent, atMs, event }: Entry): HTMLElement {
    const row = make("li");
    const block = make("details");
    const name = make("summary", `${(atMs / 1000).toFixed(2)} ${sent ? "→" : "←"} ${event.type}`);
    block.append(name);
    block.addEventListener("toggle", () => {
      if (block.open && block.childElementCount === 1) block.append(make("pre", JSON.stringify(event, null, 2)));
    });
    row.append(block);
    return row;
  }
}
