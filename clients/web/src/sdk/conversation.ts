import type { Item, RateReport, ServerEvent, Timing, TokenPair } from "./events";

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
  tokens: TokenPair[];
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
}

/** The conversation as it is heard: server events in, turns out. Knows no socket and no clock. */
export class Conversation {
  readonly turns: Turn[] = [];
  report: TurnReport | undefined;
  userSpeaking = false;
  responding = false;
  playing = false;

  /** True if the event changed something. */
  apply(event: ServerEvent): boolean {
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.userSpeaking = true;
        this.#goOn(event.x_agogic?.continues, event.item_id);
        this.#turn(event.item_id, "user");
        return true;
      case "input_audio_buffer.speech_stopped":
        this.userSpeaking = false;
        return true;
      case "input_audio_buffer.committed":
        this.#turn(event.item_id, "user");
        return true;
      case "conversation.item.added":
        return this.#added(event.item);
      case "x_agogic.input_transcript":
        return this.#heardFromUser(event.item_id, event.transcript ?? "", "open");
      case "conversation.item.input_audio_transcription.delta": {
        const turn = this.#turn(event.item_id, "user");
        if (turn) turn.text = turn.recognised = (turn.recognised ?? "") + (event.delta ?? "");
        return true;
      }
      case "conversation.item.input_audio_transcription.completed":
        return this.#heardFromUser(event.item_id, event.transcript ?? "", "done");
      case "conversation.item.input_audio_transcription.failed":
        return this.#heardFromUser(event.item_id, "", "failed");
      case "conversation.item.truncated":
        return this.#truncated(event.item_id, (event.audio_end_ms ?? 0) / 1000);
      case "conversation.item.deleted":
        return this.#remove(event.item_id);
      case "response.created":
        this.responding = true;
        return true;
      case "response.output_item.added":
        return this.#answerBegins(event);
      case "response.output_audio.delta":
        return this.#tokens(event);
      case "response.output_audio_transcript.delta":
        return this.#word(event);
      case "response.output_text.delta": {
        const turn = this.#turn(event.item_id, "assistant");
        if (turn) turn.text += event.delta ?? "";
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
        return this.#responseDone(event);
      default:
        return false;
    }
  }

  find(id: string | undefined): Turn | undefined {
    return this.turns.findLast((turn) => turn.id === id);
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

  #answerBegins(event: ServerEvent): boolean {
    if (event.item?.type !== "message") return false;
    const turn = this.#turn(event.item.id, "assistant");
    if (turn && event.response_id !== undefined) turn.responseId = event.response_id;
    return true;
  }

  #tokens(event: ServerEvent): boolean {
    const turn = this.find(event.item_id);
    const tokens = event.x_agogic?.tokens;
    if (turn === undefined || tokens === undefined) return false;
    turn.tokens.push(...tokens);
    return true;
  }

  #word(event: ServerEvent): boolean {
    const turn = this.#turn(event.item_id, "assistant");
    if (turn === undefined) return false;
    const text = event.delta ?? "";
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

  #responseDone(event: ServerEvent): boolean {
    this.responding = false;
    const response = event.response;
    if (response === undefined) return true;
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
      };
    }
    return true;
  }
}
