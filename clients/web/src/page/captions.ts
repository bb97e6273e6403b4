import type { Conversation, Turn } from "../sdk";
import { byId, make } from "./dom";

/** Both sides in writing, as it is heard. Keeps one element a turn and changes only what changed. */
export class Captions {
  readonly #place = byId("captions");
  readonly #shown = new Map<string, { row: HTMLElement; said: HTMLElement }>();

  /** `pick` is called with an answer that the reader wants to see the tokens of. */
  constructor(private readonly pick: (turn: Turn) => void) {}

  show(conversation: Conversation): void {
    const atEnd = this.#place.scrollHeight - this.#place.scrollTop - this.#place.clientHeight < 40;
    const ids = new Set(conversation.turns.map((turn) => turn.id));
    for (const [id, { row }] of this.#shown) {
      if (ids.has(id)) continue;
      row.remove();
      this.#shown.delete(id);
    }
    for (const turn of conversation.turns) this.#turn(turn);
    byId("captions-hint").hidden = conversation.turns.length > 0;
    if (atEnd) this.#place.scrollTop = this.#place.scrollHeight;
  }

  #turn(turn: Turn): void {
    const { row, said } = this.#shown.get(turn.id) ?? this.#add(turn);
    if (row.dataset.status !== turn.status) row.dataset.status = turn.status;
    const text = turn.text || (turn.status === "open" ? "" : "…");
    if (said.textContent !== text) said.textContent = text;
  }

  #add(turn: Turn): { row: HTMLElement; said: HTMLElement } {
    const row = make("div");
    row.className = "turn";
    row.dataset.role = turn.role;
    const who = make("span", turn.role === "user" ? "You" : "agogic");
    who.className = "who";
    const said = turn.role === "assistant" ? make("button") : make("span");
    said.className = "said";
    if (said instanceof HTMLButtonElement) {
      said.type = "button";
      said.title = "Show its tokens";
      said.addEventListener("click", () => this.pick(turn));
    }
    row.append(who, said);
    this.#place.append(row);
    const shown = { row, said };
    this.#shown.set(turn.id, shown);
    return shown;
  }
}
