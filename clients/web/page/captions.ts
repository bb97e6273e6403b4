import type { Conversation, Turn } from "../src";
import { byId, make } from "./dom";

const SENTENCE_END = /[.!?…]["”’)]*\s/;

/** Both sides in writing, as it is heard. Keeps one element a turn and changes only what changed. */
export class Captions {
  readonly #place = byId("captions");
  readonly #announcer = byId("announcer");
  readonly #shown = new Map<string, { row: HTMLElement; said: HTMLElement; announced: number }>();

  /** `pick` is called with a turn that the reader wants to see the tokens of. */
  constructor(private readonly pick: (turn: Turn) => void) {}

  show(conversation: Conversation): void {
    const atEnd = this.#place.scrollHeight - this.#place.scrollTop - this.#place.clientHeight < 60;
    const ids = new Set(conversation.turns.map((turn) => turn.id));
    for (const [id, { row }] of this.#shown) {
      if (ids.has(id)) continue;
      row.remove();
      this.#shown.delete(id);
    }
    for (const turn of conversation.turns) this.#turn(turn);
    byId("invitation").hidden = conversation.turns.length > 0;
    if (atEnd) this.#place.scrollTop = this.#place.scrollHeight;
  }

  #turn(turn: Turn): void {
    const shown = this.#shown.get(turn.id) ?? this.#add(turn);
    const { row, said } = shown;
    if (row.dataset.status !== turn.status) row.dataset.status = turn.status;
    const nothing = turn.status === "open" ? "" : turn.status === "failed" ? "(not understood)" : "…";
    const text = turn.text.trim() || nothing;
    if (said.textContent !== text) said.textContent = text;
    shown.announced += this.#announce(turn, text.slice(shown.announced));
  }

  /** Whole sentences of the answer, the whole of a finished turn; says how many letters were announced. */
  #announce(turn: Turn, rest: string): number {
    const end = turn.status === "open" ? (SENTENCE_END.exec(rest)?.index ?? -1) + 1 : rest.length;
    const sentence = rest.slice(0, end).trim();
    if (sentence === "" || (turn.role === "user" && turn.status === "open")) return 0;
    this.#announcer.append(make("span", `${turn.role === "user" ? "You" : "agogic"}: ${sentence}. `));
    while (this.#announcer.childElementCount > 4) this.#announcer.firstElementChild?.remove();
    return end;
  }

  #add(turn: Turn): { row: HTMLElement; said: HTMLElement; announced: number } {
    const row = make("div");
    row.className = "turn";
    row.dataset.role = turn.role;
    const who = make("span", turn.role === "user" ? "You" : "agogic");
    who.className = "who";
    const said = make("button");
    said.className = "said";
    said.type = "button";
    said.title = "Show its tokens";
    said.addEventListener("click", () => this.pick(turn));
    row.append(who, said);
    this.#place.append(row);
    const shown = { row, said, announced: 0 };
    this.#shown.set(turn.id, shown);
    return shown;
  }
}
