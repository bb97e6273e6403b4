import type { ServerEvent } from "./events.js";

type WordEvent = Extract<ServerEvent, { type: "response.output_audio_transcript.delta" }>;

/**
 * Holds words back until they are heard.
 *
 * Over WebSocket the server runs a little ahead of the loudspeaker; captions that run ahead too would show words that an
 * interruption then takes back. Everything but transcript deltas passes at once.
 */
export class WordGate {
  #waiting: WordEvent[] = [];
  #itemId: string | null = null;
  #heardS = 0;

  constructor(
    private readonly deliver: (event: ServerEvent) => void,
    private readonly hasSound: () => boolean,
  ) {}

  event(event: ServerEvent): void {
    if (event.type !== "response.output_audio_transcript.delta" || event.start_time === undefined || !this.hasSound()) {
      if (event.type === "conversation.item.truncated") this.drop(event.item_id);
      this.deliver(event);
      return;
    }
    this.#waiting.push(event);
    this.#release();
  }

  /** The loudspeaker has reached `heardS` of the item's sound. */
  heard(itemId: string | null, heardS: number): void {
    if (itemId === null) return;
    this.#itemId = itemId;
    this.#heardS = heardS;
    this.#release();
  }

  /** Words of an item that will not be heard any more. */
  drop(itemId: string): void {
    this.#waiting = this.#waiting.filter((event) => event.item_id !== itemId);
  }

  /** Words that came over a connection that was lost do not come again, though their sound may. */
  flush(): void {
    for (const event of this.#waiting.splice(0)) this.deliver(event);
  }

  #release(): void {
    while (this.#waiting.length > 0) {
      const next = this.#waiting[0]!;
      const due = next.item_id === this.#itemId && (next.start_time ?? 0) <= this.#heardS;
      if (!due) return;
      this.#waiting.shift();
      this.deliver(next);
    }
  }
}
