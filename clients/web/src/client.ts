import type { Connect, Connection, ConnectOptions } from "./connection.js";
import { Conversation } from "./conversation.js";
import { Emitter } from "./emitter.js";
import { AgogicError } from "./errors.js";
import type { ClientEvent, ServerEvent } from "./events.js";
import { type Devices, listDevices, openMicrophone } from "./microphone.js";
import { Recorder } from "./recorder.js";
import { replay } from "./replay.js";
import { Requests } from "./requests.js";
import { type Offer, Resumption } from "./resumption.js";
import { type Rates, sessionOf, type SessionSettings, type TurnDetection, type TurnMode } from "./settings.js";
import { type Tool, ToolRunner } from "./tools.js";
import { connectWebRtc } from "./webrtc.js";
import { connectWebSocket } from "./websocket.js";

export type ClientState = "idle" | "connecting" | "connected" | "reconnecting";

export interface AgogicOptions {
  /** Where the server answers, such as "https://talk.example.org"; the page's own origin if absent. */
  url?: string;
  /** A key, or a function that fetches an ephemeral one; it is asked anew for every connection. */
  apiKey?: string | (() => string | Promise<string>) | undefined;
  model?: string;
  /** "auto" tries WebRTC, then WebSocket. */
  transport?: "auto" | "webrtc" | "websocket";
  /** False for a conversation in writing, until `speak` is called. */
  microphone?: boolean;
  mode?: TurnMode;
  turnDetection?: TurnDetection;
  instructions?: string;
  voice?: string;
  rates?: Partial<Rates>;
  tools?: Record<string, Tool>;
  /** Whether a lost connection is made again: the session goes on, or where the server does not know it any more, the
   * conversation is told to a new one. True if absent. */
  reconnect?: boolean;
  /** Keeps the sound of both sides, up to 15 minutes, for `recording`. */
  record?: boolean;
  /** STUN and TURN servers; if absent, those that the server names, with credentials made for this call. */
  iceServers?: RTCIceServer[];
  /** Sound goes through a TURN server only, so that neither side learns the other's address. */
  relayOnly?: boolean;
  /** Where `workletSource()` is served, for pages whose content security policy forbids blob: scripts. */
  workletUrl?: string;
}

/** What an app brings that has no browser around it. */
export interface Surroundings {
  webrtc?: Connect;
  websocket?: Connect;
  openMicrophone?: (constraints: MediaTrackConstraints) => Promise<MediaStream>;
}

export interface AgogicEvents {
  state: ClientState;
  /** The conversation changed. */
  change: Conversation;
  /** Any server event, as it came. */
  event: ServerEvent;
  /** Any event that was sent, sound excepted. */
  sent: ClientEvent;
  /** The call is over, and not because you closed it. */
  error: AgogicError;
  /** Something that could not be done; the conversation goes on. */
  warning: AgogicError;
}

/** Errors that are only a race between two people talking, and nothing to show. */
const HARMLESS_CODES = new Set(["response_cancel_not_active", "input_audio_buffer_commit_empty"]);
/** Answers to a resumption after which a new session may still be had. */
const REFUSALS = new Set(["stale", "unauthorised", "refused"]);
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 1000;
const PATIENCE_MS = 10 * 60_000;

/** A spoken or written conversation with an agogic server. */
export class AgogicClient extends Emitter<AgogicEvents> {
  readonly conversation = new Conversation();
  #state: ClientState = "idle";
  #connection: Connection | undefined;
  #left: Connection | undefined;
  readonly #resumption = new Resumption();
  #changed = false;
  #microphone: MediaStream | undefined;
  #settings: SessionSettings;
  #talking = false;
  #muted = false;
  #volume = 1;
  #speaker: string | undefined;
  #device: string | undefined;
  #attempt = 0;
  #farewell: AgogicError | undefined;
  #recorder: Recorder | undefined;
  readonly #requests = new Requests((event) => this.send(event), () => this.interrupt());
  readonly #tools: ToolRunner;

  constructor(
    readonly options: AgogicOptions = {},
    private readonly surroundings: Surroundings = {},
  ) {
    super();
    this.#settings = {
      mode: options.mode ?? "open",
      turnDetection: options.turnDetection ?? { type: "server_vad" },
      instructions: options.instructions,
      voice: options.voice,
      rates: { input: "auto", output: "auto", ...options.rates },
    };
    if (options.record) {
      const full = "The recording is full; the call goes on without it.";
      this.#recorder = new Recorder(() => this.emit("warning", new AgogicError(full, "microphone")));
    }
    this.#tools = new ToolRunner(
      options.tools ?? {},
      (event) => this.send(event),
      () => this.#requests.ask(false),
      (result) => this.conversation.called(result),
      (error) => this.emit("warning", error),
    );
  }

  get state(): ClientState {
    return this.#state;
  }

  get settings(): Readonly<SessionSettings> {
    return this.#settings;
  }

  get transport(): Connection["kind"] | undefined {
    return this.#connection?.kind;
  }

  /** Whether the button of push to talk is down. */
  get talking(): boolean {
    return this.#talking;
  }

  get muted(): boolean {
    return this.#muted;
  }

  /** Whether there is a microphone, muted or not. */
  get hasMicrophone(): boolean {
    return this.#microphone !== undefined;
  }

  /** Asks for the microphone where one is wanted, and connects. Throws `AgogicError`. */
  async connect({ microphone: wanted = this.options.microphone ?? true } = {}): Promise<void> {
    if (this.#state !== "idle") return;
    const attempt = ++this.#attempt;
    this.#setState("connecting");
    try {
      if (wanted) {
        const microphone = await this.#openMicrophone();
        if (attempt !== this.#attempt) return stop(microphone);
        this.#microphone = microphone;
      }
      await this.#establish(attempt);
    } catch (error) {
      if (attempt === this.#attempt) this.close();
      throw error;
    }
  }

  /** Ends the call. The conversation stays readable, and a later `connect` goes on with it. */
  close(): void {
    this.#attempt += 1;
    this.#connection?.close();
    this.#connection = undefined;
    this.#leave();
    this.#resumption.forget();
    this.#recorder?.detach();
    stop(this.#microphone);
    this.#microphone = undefined;
    this.#talking = false;
    this.#farewell = undefined;
    this.conversation.cutOff();
    this.#setState("idle");
  }

  /** Any event of the protocol. */
  send(event: ClientEvent): void {
    const named = this.#resumption.sending(event);
    this.#connection?.send(named);
    this.emit("sent", named);
  }

  /** Changes settings of the running call, or of the next. */
  configure(changes: Partial<SessionSettings>): void {
    this.#settings = { ...this.#settings, ...changes };
    if (changes.mode !== undefined) this.#talking = false;
    if (this.#connection) this.#configure();
    else this.#changed = true;
  }

  /** Frame rates in Hz (4 to 12.5) or "auto", from the next turn on. */
  setRates(rates: Partial<Rates>): void {
    this.configure({ rates: { ...this.#settings.rates, ...rates } });
  }

  /** Brings a microphone into a call that began without one, or another one. Throws `AgogicError`. */
  async speak(deviceId?: string): Promise<void> {
    const microphone = await this.#openMicrophone(deviceId);
    if (this.#connection === undefined) return stop(microphone);
    stop(this.#microphone);
    this.#microphone = microphone;
    this.#connection.attachMicrophone(microphone);
    this.#openOrShut();
    await this.#record();
  }

  setMuted(muted: boolean): void {
    this.#muted = muted;
    this.#openOrShut();
  }

  /** 0 to 1. */
  setVolume(volume: number): void {
    this.#volume = volume;
    this.#connection?.setVolume(volume);
  }

  devices(): Promise<Devices> {
    return listDevices();
  }

  async setSpeaker(deviceId: string): Promise<void> {
    this.#speaker = deviceId;
    await this.#connection?.setSpeaker(deviceId);
  }

  /** Push to talk: the button went down. Whoever was speaking falls silent. */
  startTalking(): void {
    if (this.#connection === undefined || this.#settings.mode !== "push" || this.#talking) return;
    this.#talking = true;
    this.interrupt();
    this.send({ type: "input_audio_buffer.clear" });
    this.#openOrShut();
  }

  /** Push to talk: the button came up; the answer follows. */
  stopTalking(): void {
    const connection = this.#connection;
    if (connection === undefined || !this.#talking) return;
    this.#talking = false;
    setTimeout(() => {
      if (this.#talking || this.#settings.mode !== "push" || connection !== this.#connection) return;
      this.#openOrShut();
      this.send({ type: "input_audio_buffer.commit" });
      this.#requests.ask(true);
    }, connection.tailMs);
  }

  /** Stops the answer being given. */
  interrupt(): void {
    if (this.conversation.responding) this.send({ type: "response.cancel" });
    this.#connection?.silence();
  }

  /** Says something in writing; the answer is spoken all the same. */
  write(text: string): void {
    this.interrupt();
    const content = [{ type: "input_text", text }];
    this.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
    this.#requests.ask(true);
  }

  /** For meters, 0 to 1. */
  levels(): { microphone: number; voice: number } {
    return this.#connection?.levels() ?? { microphone: 0, voice: 0 };
  }

  /** The call so far as a WAV file, the person left, the answers right; undefined without `record`. */
  recording(): Blob | undefined {
    return this.#recorder && this.#recorder.seconds > 0 ? this.#recorder.wav() : undefined;
  }

  /** Forgets what was said, here; the next session begins anew. */
  forget(): void {
    this.conversation.clear();
    this.#recorder?.clear();
    this.emit("change", this.conversation);
  }

  async #establish(attempt: number, offer?: Offer): Promise<void> {
    const connection = await this.#reach(offer);
    if (attempt !== this.#attempt) return connection.close();
    this.#connection = connection;
    connection.attachMicrophone(this.#microphone);
    connection.setVolume(this.#volume);
    if (this.#speaker !== undefined) await connection.setSpeaker(this.#speaker).catch(() => undefined);
    this.#leave();
    if (offer === undefined) {
      this.#requests.forget();
      this.#configure();
      for (const event of replay(this.conversation)) this.send(event);
    } else {
      this.#sendAgain();
      if (this.#changed) this.#configure();
      this.#openOrShut();
    }
    this.#changed = false;
    await this.#record();
    if (attempt === this.#attempt) this.#setState("connected");
  }

  async #record(): Promise<void> {
    const taps = this.#connection?.taps();
    if (taps) await this.#recorder?.attach(taps, this.options.workletUrl).catch(() => undefined);
  }

  /** What was sent into the connection that was lost, or since, and did not arrive. */
  #sendAgain(): void {
    if (this.#connection === undefined) return;
    for (const event of this.#resumption.unsent()) this.#connection.send(this.#resumption.sending(event));
  }

  /** Nothing holds on to the connection that was lost any more. */
  #leave(): void {
    this.#left?.close();
    this.#left = undefined;
  }

  async #reach(offer: Offer | undefined): Promise<Connection> {
    const { apiKey } = this.options;
    const attempt = this.#attempt;
    const key = offer !== undefined ? offer.apiKey : typeof apiKey === "function" ? await apiKey() : apiKey;
    if (offer === undefined) this.#resumption.begin(key);
    const options: ConnectOptions = {
      url: (this.options.url ?? location.origin).replace(/\/+$/, ""),
      model: this.options.model ?? "agogic",
      apiKey: key,
      iceServers: this.options.iceServers,
      relayOnly: this.options.relayOnly ?? false,
      workletUrl: this.options.workletUrl,
      resume: offer && { token: offer.token, after: offer.after },
      onReceived: (event) => this.#resumption.received(event),
      onEvent: (event) => this.#receive(event),
      onLost: (error) => {
        if (attempt === this.#attempt) void this.#lost(this.#farewell ?? error);
      },
    };
    const { webrtc = connectWebRtc, websocket = connectWebSocket } = this.surroundings;
    const wanted = this.options.transport ?? "auto";
    // Browsers offer no path on the same machine to a page without a microphone.
    if (wanted === "websocket" || (wanted === "auto" && this.#microphone === undefined)) return websocket(options);
    try {
      return await webrtc(options);
    } catch (error) {
      const pathless = !(error instanceof AgogicError) || error.code === "unreachable";
      if (wanted === "webrtc" || !pathless) throw error;
      return websocket(options);
    }
  }

  async #lost(error: AgogicError): Promise<void> {
    this.#left = this.#connection;
    this.#connection = undefined;
    this.#recorder?.detach();
    this.#resumption.lost();
    const ends = error.code === "expired" || !(this.options.reconnect ?? true);
    if (ends || this.#resumption.offer() === undefined) this.#cutOff();
    if (ends) return this.#end(error);
    const attempt = ++this.#attempt;
    this.#setState("reconnecting");
    const until = Date.now() + PATIENCE_MS;
    await this.#left?.playedOut(this.#resumption.offer() !== undefined);
    for (let pauseMs = FIRST_PAUSE_MS; Date.now() < until; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
      await new Promise((resolve) => setTimeout(resolve, pauseMs * (0.75 + Math.random() / 4)));
      if (attempt !== this.#attempt) return;
      const offer = this.#resumption.offer();
      if (offer === undefined) this.#cutOff();
      try {
        return await this.#establish(attempt, offer);
      } catch (problem) {
        if (attempt !== this.#attempt) return;
        if (offer !== undefined && problem instanceof AgogicError && REFUSALS.has(problem.code)) {
          this.#resumption.forget();
          pauseMs = FIRST_PAUSE_MS / 2;
          continue;
        }
        const hopeless = problem instanceof AgogicError && ["unauthorised", "refused"].includes(problem.code);
        if (hopeless) return this.#end(problem);
      }
    }
    this.#end(error);
  }

  /** What was being said has ended: the session that said it does not go on. */
  #cutOff(): void {
    this.conversation.cutOff();
    this.emit("change", this.conversation);
  }

  #end(error: AgogicError): void {
    this.close();
    this.emit("error", error);
  }

  async #openMicrophone(deviceId = this.#device): Promise<MediaStream> {
    const open = this.surroundings.openMicrophone ?? openMicrophone;
    const microphone = await open(deviceId ? { deviceId: { exact: deviceId } } : {});
    this.#device = deviceId;
    microphone.getAudioTracks()[0]?.addEventListener("ended", () => {
      if (microphone !== this.#microphone) return;
      this.#device = undefined;
      this.emit("warning", new AgogicError("The microphone was unplugged; trying another one.", "microphone"));
      this.speak().catch((error: AgogicError) => this.emit("warning", error));
    });
    return microphone;
  }

  #configure(): void {
    this.send({ type: "session.update", session: sessionOf(this.#settings, this.options.tools ?? {}) });
    this.#openOrShut();
  }

  #openOrShut(): void {
    for (const track of this.#microphone?.getAudioTracks() ?? []) track.enabled = !this.#muted;
    const wanted = this.#settings.mode === "open" || this.#talking;
    // Muted in the middle of a turn: its silence is sent until the server has noticed the end.
    const heard = !this.#muted || this.conversation.userSpeaking;
    this.#connection?.openMicrophone(wanted && heard && this.#microphone !== undefined);
  }

  #receive(event: ServerEvent): void {
    this.emit("event", event);
    // The button is up: whatever the server hears in the meantime will be cleared when it goes down.
    const unheard = this.#settings.mode === "push" && !this.#talking;
    if (unheard && event.type === "x_agogic.input_transcript") return;
    if (event.type === "error") this.#complain(event);
    if (event.type === "x_agogic.session_resumed") this.#sendAgain();
    if (this.conversation.apply(event)) this.emit("change", this.conversation);
    if (this.#muted && event.type.startsWith("input_audio_buffer.")) this.#openOrShut();
    if (event.type === "response.done") this.#requests.done();
    void this.#tools.event(event);
  }

  #complain({ error }: Extract<ServerEvent, { type: "error" }>): void {
    const expired = error.code === "session_expired";
    if (this.conversation.responding && this.#requests.refused(error)) return;
    const complaint = new AgogicError(error.message, expired ? "expired" : "server", {
      ...(error.code ? { serverCode: error.code } : {}),
      ...(error.event_id ? { eventId: error.event_id } : {}),
      ...(error.param ? { param: error.param } : {}),
    });
    if (expired) this.#farewell = complaint;
    else if (!HARMLESS_CODES.has(error.code ?? "")) this.emit("warning", complaint);
  }

  #setState(state: ClientState): void {
    if (state === this.#state) return;
    this.#state = state;
    this.emit("state", state);
  }
}

function stop(stream: MediaStream | undefined): void {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
