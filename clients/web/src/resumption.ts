import type { ClientEvent, ServerEvent } from "./events.js";

const MOST_UNCONFIRMED = 64;

/** By what a lost session is taken up: its token, and the last event that came. */
export interface Offer {
  token: string;
  after: string;
  /** The key that the session was opened with: no other may resume it. */
  apiKey: string | undefined;
}

/** Remembers what it takes to go on after a lost connection. Knows no socket. */
export class Resumption {
  #token: string | undefined;
  #withinMs = 0;
  #lostMs: number | undefined;
  #after = "";
  #apiKey: string | undefined;
  #unconfirmed: ClientEvent[] = [];
  #count = 0;
  #confirmed: string | null | undefined;

  /** A new session begins. */
  begin(apiKey: string | undefined): void {
    this.forget();
    this.#apiKey = apiKey;
  }

  /** Any event as it comes, before words wait for their sound. */
  received(event: ServerEvent): void {
    if (event.event_id !== undefined) this.#after = event.event_id;
    if (event.type !== "session.created" && event.type !== "x_agogic.session_resumed") return;
    const resume = event.x_agogic?.resume;
    this.#token = resume?.token;
    this.#withinMs = (resume?.within_s ?? 0) * 1000;
    this.#lostMs = undefined;
    if (event.type === "x_agogic.session_resumed") this.#confirmed = event.last_client_event_id;
  }

  /** The event as it is to be sent: with an id by which the server can say that it came. */
  sending(event: ClientEvent): ClientEvent {
    if (this.#token === undefined) return event;
    const named = { ...event, event_id: event.event_id ?? `sdk_${(this.#count += 1)}` };
    this.#unconfirmed = [...this.#unconfirmed, named].slice(-MOST_UNCONFIRMED);
    return named;
  }

  lost(): void {
    this.#lostMs ??= Date.now();
  }

  /** Undefined where there is nothing to resume, or not any more. */
  offer(): Offer | undefined {
    if (this.#token === undefined || Date.now() - (this.#lostMs ?? Date.now()) > this.#withinMs) return undefined;
    return { token: this.#token, after: this.#after, apiKey: this.#apiKey };
  }

  /** After a resumption, once: what was sent and did not arrive. */
  unsent(): ClientEvent[] {
    if (this.#confirmed === undefined) return [];
    const last = this.#unconfirmed.findIndex((event) => event.event_id === this.#confirmed);
    this.#confirmed = undefined;
    const missing = this.#unconfirmed.slice(last + 1);
    this.#unconfirmed = [];
    return missing;
  }

  forget(): void {
    this.#token = this.#confirmed = this.#lostMs = undefined;
    this.#unconfirmed = [];
  }
}
