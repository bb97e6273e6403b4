import type { ClientEvent, ServerEvent } from "./events";

/** Why a connection could not be made or ended, in words for the person in front of the screen. */
export class ConnectionError extends Error {
  constructor(
    message: string,
    readonly code: "microphone" | "unauthorised" | "overloaded" | "unreachable" | "refused" | "lost",
  ) {
    super(message);
  }
}

export interface ConnectOptions {
  /** Where the server answers, such as "http://127.0.0.1:8790". */
  origin: string;
  model: string;
  apiKey: string | undefined;
  /** None for a conversation in writing. */
  microphone: MediaStream | undefined;
  onEvent: (event: ServerEvent) => void;
  /** Called once when an established connection ends without `close`. */
  onLost: (error: ConnectionError) => void;
}

/** One way to reach the server. Sound in both directions is the connection's own business. */
export interface Connection {
  readonly kind: "webrtc" | "websocket";
  send(event: ClientEvent): void;
  /** Lets the microphone through, or not. */
  setMicrophone(open: boolean): void;
  /** Silences the answer being heard at once. */
  silence(): void;
  /** Levels for meters, 0 to 1. */
  levels(): { microphone: number; voice: number };
  /** How long sound already spoken may still be on its way to the server, in ms. */
  readonly tailMs: number;
  close(): void;
}

/** The sentence for a refused signalling request, from the server's JSON error where there is one. */
export async function refusal(response: Response): Promise<ConnectionError> {
  const body = (await response.json().catch(() => undefined)) as { error?: { message?: string } } | undefined;
  const said = body?.error?.message ?? `The server answered with status ${response.status}.`;
  if (response.status === 401) return new ConnectionError(said, "unauthorised");
  if (response.status === 503 || response.status === 429) return new ConnectionError(said, "overloaded");
  return new ConnectionError(said, "refused");
}
