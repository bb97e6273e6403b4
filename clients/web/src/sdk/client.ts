import { type Connection, ConnectionError, type ConnectOptions } from "./connection";
import { Conversation } from "./conversation";
import { Emitter } from "./emitter";
import type { ClientEvent, RateSetting, ServerEvent } from "./events";
import { connectWebRtc } from "./webrtc";
import { connectWebSocket } from "./websocket";

export type TurnMode = "open" | "push" | "text";
export type ClientState = "idle" | "connecting" | "connected";

export interface AgogicOptions {
  origin: string;
  model?: string;
  apiKey?: string;
  /** "auto" tries WebRTC, then WebSocket. */
  transport?: "auto" | "webrtc" | "websocket";
  /** Who decides that a turn has ended: the server ("open" microphone), or the person ("push" to talk). */
  mode?: TurnMode;
}

interface ClientEvents {
  state: ClientState;
  /** The conversation changed. */
  change: Conversation;
  /** Any server event, as it came. */
  event: ServerEvent;
  error: ConnectionError;
  /** Something the server could not do; the conversation goes on. */
  warning: string;
}

type Connect = (options: ConnectOptions) => Promise<Connection>;

/** Errors that are only a race between two people talking, and nothing to show. */
const HARMLESS_CODES = new Set(["response_cancel_not_active", "input_audio_buffer_commit_empty"]);

const OPEN_MICROPHONE = { type: "server_vad", create_response: true, interrupt_response: true };

/** A spoken conversation with an agogic server. */
export class AgogicClient extends Emitter<ClientEvents> {
  readonly conversation = new Conversation();
  #state: ClientState = "idle";
  #connection: Connection | undefined;
  #microphone: MediaStream | undefined;
  #mode: TurnMode;
  #rates: { input: RateSetting; output: RateSetting } = { input: "auto", output: "auto" };
  #talking = false;
  #attempt = 0;
  #farewell: string | undefined;

  constructor(
    private readonly options: AgogicOptions,
    private readonly transports: { webrtc: Connect; websocket: Connect } = {
      webrtc: connectWebRtc,
      websocket: connectWebSocket,
    },
  ) {
    super();
    this.#mode = options.mode ?? "open";
  }

  get state(): ClientState {
    return this.#state;
  }

  get mode(): TurnMode {
    return this.#mode;
  }

  get transport(): Connection["kind"] | undefined {
    return this.#connection?.kind;
  }

  get talking(): boolean {
    return this.#talking;
  }

  /** Asks for the microphone where the mode needs one, and connects. Throws `ConnectionError`. */
  async connect(): Promise<void> {
    if (this.#state !== "idle") return;
    const attempt = ++this.#attempt;
    this.#setState("connecting");
    try {
      if (this.#mode !== "text") {
        const microphone = await openMicrophone();
        if (attempt !== this.#attempt) {
          for (const track of microphone.getTracks()) track.stop();
          return;
        }
        this.#microphone = microphone;
      }
      const connection = await this.#reach();
      if (attempt !== this.#attempt) {
        connection.close();
        return;
      }
      this.#connection = connection;
      this.#configure();
      this.#setState("connected");
    } catch (error) {
      if (attempt === this.#attempt) this.close();
      throw error;
    }
  }

  close(): void {
    this.#attempt += 1;
    this.#connection?.close();
    this.#connection = undefined;
    for (const track of this.#microphone?.getTracks() ?? []) track.stop();
    this.#microphone = undefined;
    this.#talking = false;
    this.#farewell = undefined;
    this.#setState("idle");
  }

  send(event: ClientEvent): void {
    this.#connection?.send(event);
  }

  setMode(mode: "open" | "push"): void {
    this.#mode = mode;
    this.#talking = false;
    if (this.#connection) this.#configure();
  }

  /** Frame rates in Hz (4 to 12.5) or "auto", from the next turn on. */
  setRates(rates: { input: RateSetting; output: RateSetting }): void {
    this.#rates = rates;
    this.send({ type: "session.update", session: { type: "realtime", x_agogic: this.#extensions() } });
  }

  /** Push to talk: the button went down. Whoever was speaking falls silent. */
  startTalking(): void {
    if (this.#connection === undefined || this.#mode !== "push" || this.#talking) return;
    this.#talking = true;
    this.interrupt();
    this.send({ type: "input_audio_buffer.clear" });
    this.#connection.setMicrophone(true);
  }

  /** Push to talk: the button came up; the answer follows. */
  stopTalking(): void {
    const connection = this.#connection;
    if (connection === undefined || !this.#talking) return;
    this.#talking = false;
    setTimeout(() => {
      if (this.#talking || this.#mode !== "push" || connection !== this.#connection) return;
      connection.setMicrophone(false);
      this.send({ type: "input_audio_buffer.commit" });
      this.send({ type: "response.create" });
    }, connection.tailMs);
  }

  /** Stops the answer being given. */
  interrupt(): void {
    if (this.conversation.responding) this.send({ type: "response.cancel" });
    this.#connection?.silence();
  }

  /** Says something in writing. */
  write(text: string): void {
    this.interrupt();
    this.send({
      type: "conversation.item.create",
      item: { type: "message", role: "user", content: [{ type: "input_text", text }] },
    });
    this.send({ type: "response.create" });
  }

  levels(): { microphone: number; voice: number } {
    return this.#connection?.levels() ?? { microphone: 0, voice: 0 };
  }

  async #reach(): Promise<Connection> {
    const options: ConnectOptions = {
      origin: this.options.origin,
      model: this.options.model ?? "agogic",
      apiKey: this.options.apiKey,
      microphone: this.#microphone,
      onEvent: (event) => this.#receive(event),
      onLost: (error) => {
        const why = this.#farewell;
        this.close();
        this.emit("error", why === undefined ? error : new ConnectionError(why, "lost"));
      },
    };
    const wanted = this.options.transport ?? "auto";
    if (wanted === "websocket") return this.transports.websocket(options);
    try {
      return await this.transports.webrtc(options);
    } catch (error) {
      const pathless = !(error instanceof ConnectionError) || error.code === "unreachable";
      if (wanted === "webrtc" || !pathless) throw error;
      return this.transports.websocket(options);
    }
  }

  #configure(): void {
    const turnDetection = this.#mode === "open" ? OPEN_MICROPHONE : null;
    this.send({
      type: "session.update",
      session: {
        type: "realtime",
        audio: { input: { turn_detection: turnDetection } },
        x_agogic: this.#extensions(),
      },
    });
    this.#connection?.setMicrophone(this.#mode === "open");
  }

  #extensions(): Record<string, unknown> {
    return {
      input_frame_rate: this.#rates.input,
      output_frame_rate: this.#rates.output,
      events: ["input_transcript"],
    };
  }

  #receive(event: ServerEvent): void {
    this.emit("event", event);
    // The button is up: whatever the server hears in the meantime will be cleared when it goes down.
    if (this.#mode === "push" && !this.#talking && event.type === "x_agogic.input_transcript") return;
    if (event.type === "error" && event.error?.code === "session_expired") this.#farewell = event.error.message;
    if (event.type === "error" && !HARMLESS_CODES.has(event.error?.code ?? "")) {
      this.emit("warning", event.error?.message ?? "The server reported an error.");
    }
    if (this.conversation.apply(event)) this.emit("change", this.conversation);
  }

  #setState(state: ClientState): void {
    if (state === this.#state) return;
    this.#state = state;
    this.emit("state", state);
  }
}

async function openMicrophone(): Promise<MediaStream> {
  if (!navigator.mediaDevices) {
    throw new ConnectionError(
      "This browser gives pages a microphone only over HTTPS or on localhost. Open the page there, or type.",
      "microphone",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    const why =
      name === "NotAllowedError"
        ? "The microphone was refused. Allow it for this page in the browser's address bar, or type."
        : name === "NotFoundError"
          ? "No microphone was found. Plug one in, or type."
          : "The microphone cannot be used; another program may hold it.";
    throw new ConnectionError(why, "microphone");
  }
}
