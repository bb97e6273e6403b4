import type { ClientEvent, ServerProblem } from "./events.js";

/** What a server says when an answer is asked for while it gives one. */
const BUSY = "conversation_already_has_active_response";

/**
 * Asks for answers. The server may have begun one of its own at the same moment; then it refuses, and is asked again:
 * at once in place of that answer where a person waits ("urgent"), after it where a function's result does.
 */
export class Requests {
  #asked = { id: "", urgent: false };
  #count = 0;
  #waiting = false;

  constructor(
    private readonly send: (event: ClientEvent) => void,
    private readonly interrupt: () => void,
  ) {}

  ask(urgent: boolean): void {
    this.#asked = { id: `ask_${(this.#count += 1)}`, urgent };
    this.#waiting = false;
    this.send({ type: "response.create", event_id: this.#asked.id });
  }

  /** True if the refusal was of our last request, and is taken care of. */
  refused({ code, event_id }: ServerProblem): boolean {
    if (code !== BUSY || event_id !== this.#asked.id) return false;
    if (this.#asked.urgent) {
      this.interrupt();
      this.ask(true);
    } else {
      this.#waiting = true;
    }
    return true;
  }

  /** An answer is over. */
  done(): void {
    if (this.#waiting) this.ask(false);
  }

  /** The connection is gone, and what was asked over it. */
  forget(): void {
    this.#asked = { id: "", urgent: false };
    this.#waiting = false;
  }
}
