import { AgogicError } from "./errors.js";
import type { ClientEvent, ServerEvent } from "./events.js";

export interface ConnectOptions {
  /** Where the server answers, such as "http://127.0.0.1:8790". */
  url: string;
  model: string;
  apiKey: string | undefined;
  /** Those that the server names where undefined. */
  iceServers: RTCIceServer[] | undefined;
  relayOnly: boolean;
  /** Where the worklets lie for pages whose policy forbids blob: scripts. */
  workletUrl: string | undefined;
  /** Takes up a lost session; the connection is refused with code "stale" where the server does not know it. */
  resume?: { token: string; after: string } | undefined;
  /** Every event when it comes, before `onEvent`, for which words wait until they are heard. */
  onReceived?: (event: ServerEvent) => void;
  onEvent: (event: ServerEvent) => void;
  /** Called once when an established connection ends without `close`. */
  onLost: (error: AgogicError) => void;
}

/** Nodes to listen in on, both of the same context. */
export interface Taps {
  context: AudioContext;
  microphone: AudioNode | undefined;
  voice: AudioNode | undefined;
}

/** One way to reach the server. Sound in both directions is the connection's own business. */
export interface Connection {
  readonly kind: "webrtc" | "websocket";
  send(event: ClientEvent): void;
  /** Which microphone there is; undefined takes it away. Nothing is sent until `openMicrophone(true)`. */
  attachMicrophone(stream: MediaStream | undefined): void;
  /** Lets the microphone through, or not. */
  openMicrophone(open: boolean): void;
  /** Silences the answer being heard at once. */
  silence(): void;
  /** 0 to 1. */
  setVolume(volume: number): void;
  /** Plays through this device, where the browser can choose. */
  setSpeaker(deviceId: string): Promise<void>;
  /** Levels for meters, 0 to 1. */
  levels(): { microphone: number; voice: number };
  taps(): Taps | undefined;
  /** How long sound already spoken may still be on its way to the server, in ms. */
  readonly tailMs: number;
  /** After a loss: returns when all that had come of the answer has been heard. Where the session `goesOn`, its words are
   * shown then, whatever became of their sound. */
  playedOut(goesOn: boolean): Promise<void>;
  /** Also owed after a loss: until then the other side is told nothing, because the session may go on. */
  close(): void;
}

export type Connect = (options: ConnectOptions) => Promise<Connection>;

/** The sentence for a refused signalling request, from the server's JSON error where there is one. */
export async function refusal(response: Response): Promise<AgogicError> {
  const body = (await response.json().catch(() => undefined)) as { error?: { message?: string; code?: string } } | undefined;
  const said = body?.error?.message ?? `The server answered with status ${response.status}.`;
  const details = body?.error?.code ? { serverCode: body.error.code } : {};
  if (body?.error?.code?.startsWith("resume_")) return new AgogicError(said, "stale", details);
  if (response.status === 401) return new AgogicError(said, "unauthorised", details);
  if (response.status === 503 || response.status === 429) return new AgogicError(said, "overloaded", details);
  return new AgogicError(said, "refused", details);
}
