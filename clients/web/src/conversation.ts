import type { Item, RateReport, ResponseObject, ServerEvent, Timing, TokenPair, Usage } from "./events.js";
import type { ToolResult } from "./tools.js";

export interface Word {
  text: string;
  startS: number;
  endS: number;
}

export interface Turn {
  id: string;
  role: "user" | "assistant";
  /** "open" while it is being spoken, "interrupted" when its end was never heard. */
  status: "open" | "done" | "interrupted" | "failed";
  text: string;
  words: Word[];
  /** Of an answer: what was spoken. */
  tokens: TokenPair[];
  /** Of a spoken question: how long each token is that it was merged to. */
  heardDurationsMs?: number[];
  /** Of a spoken question, pauses at its edges included. */
  durationS?: number;
  /** The user's words as deltas brought them: they begin anew when the turn is committed. */
  recognised?: string;
  /** What it said before a pause that looked like its end. */
  continued?: string;
  /** Seconds of it that were heard, where an interruption fixed them. */
  heardS?: number;
  responseId?: string;
}

/** What one answer cost, and at which rates. */
export interface TurnReport {
  responseId: string;
  input: RateReport;
  output: RateReport;
  timing: Timing;
  usage?: Usage;
}

/** A function that was called, and where in the conversation. */
export interface ToolEntry extends ToolResult {
  afterTurnId: string | undefined;
}

/** The conversation as it is heard: server events in, turns out. Knows no socket and no clock. */
export class Conversation {
  readonly turns: Turn[] = [];
  readonly tools: ToolEntry[] = [];
  report: TurnReport | undefined;
  userSpeaking = false;
  responding = false;
  playing = false;
  #startedMs: number | undefined;
  #speakingId: string | undefined;

  /** True if the event changed something. */
  apply(event: ServerEvent): boolean {
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.userSpeaking = true;
        this.#startedMs = event.audio_start_ms;
        this.#speakingId = event.item_id;
        this.#goOn(event.x_agogic?.continues, event.item_id);
        this.#turn(event.item_id, "user");
        return true;
      case "input_audio_buffer.speech_stopped":
        this.userSpeaking = false;
        this.#ended(event.item_id, event.audio_end_ms);
        return true;
      case "input_audio_buffer.cleared":
        return this.#unheard();
      case "input_audio_buffer.committed":
        this.#turn(event.item_id, "user");
        return true;
      case "conversation.item.added":
        return this.#added(event.item);
      case "x_agogic.input_transcript":
        return this.#heardFromUser(event.item_id, event.transcript, "open");
      case "x_agogic.input_tokens": {
        const turn = this.#turn(event.item_id, "user");
        if (turn) turn.heardDurationsMs = [...event.durations_ms];
        return true;
      }
      case "conversation.item.input_audio_transcription.delta": {
        const turn = this.#turn(event.item_id, "user");
        if (turn) turn.text = turn.recognised = (turn.recognised ?? "") + event.delta;
        return true;
      }
      case "conversation.item.input_audio_transcription.completed":
        return this.#heardFromUser(event.item_id, event.transcript, "done");
      case "conversation.item.input_audio_transcription.failed":
        return this.#heardFromUser(event.item_id, "", "failed");
      case "conversation.item.truncated":
        return this.#truncated(event.item_id, event.audio_end_ms / 1000);
      case "conversation.item.deleted":
        return this.#remove(event.item_id);
      case "response.created":
        this.responding = true;
        return true;
      case "response.output_item.added":
        return this.#answerBegins(event.item, event.response_id);
      case "response.output_audio.delta":
        return this.#tokens(event.item_id, event.x_agogic?.tokens);
      case "response.output_audio_transcript.delta":
        return this.#word(event);
      case "response.output_text.delta": {
        const turn = this.#turn(event.item_id, "assistant");
        if (turn) turn.text += event.delta;
        return true;
      }
      case "output_audio_buffer.started":
        this.playing = true;
        return true;
      case "output_audio_buffer.stopped":
      case "output_audio_buffer.cleared":
        this.playing = false;
        return true;
      case "response.done":
        return this.#responseDone(event.response);
      default:
        return false;
    }
  }

  /** What a function was called with and what it said. */
  called(result: ToolResult): void {
    this.tools.push({ ...result, afterTurnId: this.turns.at(-1)?.id });
  }

  /** The connection is gone: whatever was being said ends here. What nothing is known of is forgotten. */
  cutOff(): void {
    this.userSpeaking = this.responding = this.playing = false;
    for (const turn of this.turns.filter((candidate) => candidate.status === "open")) {
      if (turn.text === "") this.#remove(turn.id);
      else turn.status = "interrupted";
    }
  }

  clear(): void {
    this.turns.length = this.tools.length = 0;
    this.report = undefined;
    this.userSpeaking = this.responding = this.playing = false;
  }

  find(id: string | undefined): Turn | undefined {
    return this.turns.findLast((turn) => turn.id === id);
  }

  /** The newest question whose merged groups are known. */
  get lastHeard(): Turn | undefined {
    return this.turns.findLast((turn) => turn.heardDurationsMs !== undefined);
  }

  /** The newest answer that has sound: what the timeline shows. */
  get lastSpoken(): Turn | undefined {
    return this.turns.findLast((turn) => turn.role === "assistant" && turn.tokens.length > 0);
  }

  #turn(id: string | undefined, role: Turn["role"]): Turn | undefined {
    if (id === undefined) return undefined;
    let turn = this.find(id);
    if (turn === undefined) {
      turn = { id, role, status: "open", text: "", words: [], tokens: [] };
      this.turns.push(turn);
    }
    return turn;
  }

  /** What looked like the end of a turn was a pause: its line goes on under the new turn's id. */
  #goOn(earlierId: string | undefined, id: string | undefined): void {
    const turn = this.find(earlierId);
    if (turn === undefined || id === undefined) return;
    turn.id = id;
    turn.status = "open";
    turn.continued = turn.text;
  }

  #added(item: Item | undefined): boolean {
    if (item?.type !== "message" || (item.role !== "user" && item.role !== "assistant")) return false;
    const turn = this.#turn(item.id, item.role);
    const typed = item.content?.find((part) => part.type === "input_text");
    if (turn && typed) {
      turn.text = typed.text ?? "";
      turn.status = "done";
    }
    return true;
  }

  #heardFromUser(id: string | undefined, transcript: string, status: Turn["status"]): boolean {
    const turn = this.#turn(id, "user");
    if (turn === undefined || turn.status === "done") return false;
    // The first half is heard once more from its beginning; what is known of it stays on the screen.
    if (status === "open" && turn.continued?.startsWith(transcript)) return false;
    turn.text = transcript;
    turn.status = status;
    return true;
  }

  /** What was being said will never be a turn. */
  #unheard(): boolean {
    if (!this.userSpeaking) return false;
    this.userSpeaking = false;
    this.#startedMs = undefined;
    return this.#remove(this.#speakingId) || true;
  }

  #ended(id: string, endMs: number | undefined): void {
    const turn = this.find(id);
    if (turn && endMs !== undefined && this.#startedMs !== undefined) {
      turn.durationS = (turn.durationS ?? 0) + (endMs - this.#startedMs) / 1000;
    }
    this.#startedMs = undefined;
  }

  #answerBegins(item: Item, responseId: string | undefined): boolean {
    if (item.type !== "message") return false;
    const turn = this.#turn(item.id, "assistant");
    if (turn && responseId !== undefined) turn.responseId = responseId;
    return true;
  }

  #tokens(id: string, tokens: TokenPair[] | undefined): boolean {
    const turn = this.find(id);
    if (turn === undefined || tokens === undefined) return false;
    turn.tokens.push(...tokens);
    return true;
  }

  #word(event: Extract<ServerEvent, { type: "response.output_audio_transcript.delta" }>): boolean {
    const turn = this.#turn(event.item_id, "assistant");
    if (turn === undefined) return false;
    const text = event.delta;
    turn.text += text;
    if (event.start_time !== undefined) {
      turn.words.push({ text: text.trim(), startS: event.start_time, endS: event.end_time ?? event.start_time });
    }
    turn.tokens.push(...(event.x_agogic?.tokens ?? []));
    return true;
  }

  #truncated(id: string | undefined, heardS: number): boolean {
    const turn = this.find(id);
    if (turn === undefined) return false;
    turn.heardS = heardS;
    turn.status = "interrupted";
    if (turn.words.length > 0) {
      turn.words = turn.words.filter((word) => word.startS < heardS);
      turn.text = turn.words.map((word) => word.text).join(" ");
    }
    return true;
  }

  #remove(id: string | undefined): boolean {
    const index = this.turns.findIndex((turn) => turn.id === id);
    if (index >= 0) this.turns.splice(index, 1);
    return index >= 0;
  }

  #responseDone(response: ResponseObject): boolean {
    this.responding = false;
    const extras = response.x_agogic;
    const turn = this.turns.findLast((candidate) => candidate.responseId === response.id);
    if (turn !== undefined && turn.status === "open") {
      turn.status =
        response.status === "cancelled" ? "interrupted" : response.status === "failed" ? "failed" : "done";
      if (turn.status === "done" && extras?.tokens) turn.tokens = [...extras.tokens];
    }
    if (extras?.timing && response.status !== "cancelled") {
      this.report = {
        responseId: response.id,
        input: extras.input_frame_rate ?? {},
        output: extras.output_frame_rate ?? {},
        timing: extras.timing,
        ...(response.usage ? { usage: response.usage } : {}),
      };
    }
    return true;
  }
}
