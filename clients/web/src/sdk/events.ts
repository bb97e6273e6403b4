/** The part of the OpenAI Realtime (GA) protocol this SDK reads and writes, with agogic's extra fields. */

export type RateSetting = "auto" | number;

/** A speech token: its code, and how many 12.5 Hz frames (80 ms) it lasts. */
export type TokenPair = [code: number, durationFrames: number];

export interface RateReport {
  requested_hz?: RateSetting;
  realised_hz?: number;
  reason?: string;
}

export interface Timing {
  turn_detection_ms?: number;
  first_text_ms?: number;
  first_token_ms?: number;
  first_audio_ms?: number;
  first_audio_out_ms?: number;
  total_ms?: number;
  stages?: Record<string, number>;
}

export interface ResponseExtras {
  input_frame_rate?: RateReport;
  output_frame_rate?: RateReport;
  tokens?: TokenPair[];
  words?: [text: string, startS: number, endS: number][];
  timing?: Timing;
}

export interface ContentPart {
  type: string;
  text?: string;
  transcript?: string | null;
}

export interface Item {
  id: string;
  type: string;
  role?: "user" | "assistant" | "system";
  status?: string;
  content?: ContentPart[];
}

export interface ResponseObject {
  id: string;
  status: string;
  status_details?: { reason?: string; error?: { message?: string } } | null;
  x_agogic?: ResponseExtras;
}

export interface SessionObject {
  id: string;
  model: string;
  x_agogic?: { input_frame_rate?: RateSetting; output_frame_rate?: RateSetting };
}

/** Any server event; fields are present as the protocol gives them to each type. */
export interface ServerEvent {
  type: string;
  event_id?: string;
  item_id?: string;
  response_id?: string;
  delta?: string;
  transcript?: string;
  text?: string;
  start_time?: number;
  end_time?: number;
  audio_end_ms?: number;
  item?: Item;
  response?: ResponseObject;
  session?: SessionObject;
  error?: { type: string; code?: string; message: string };
  x_agogic?: { tokens?: TokenPair[]; start_time?: number; continues?: string };
}

export type ClientEvent = { type: string } & Record<string, unknown>;
