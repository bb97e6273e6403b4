/** The part of the OpenAI Realtime (GA) protocol that an agogic server speaks, with its extra fields. */

export type JsonValue = string | number | boolean | null | JsonValue[] | { [key: string]: JsonValue };

/** Hz (4 to 12.5), or "auto": the server chooses. */
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

export interface MessageItem {
  id: string;
  type: "message";
  role: "user" | "assistant" | "system";
  status?: string;
  content?: ContentPart[];
}

export interface FunctionCallItem {
  id: string;
  type: "function_call";
  call_id: string;
  name: string;
  arguments: string;
  status?: string;
}

export interface FunctionOutputItem {
  id: string;
  type: "function_call_output";
  call_id: string;
  output: string;
}

export type Item = MessageItem | FunctionCallItem | FunctionOutputItem;

export interface Usage {
  input_tokens?: number;
  output_tokens?: number;
  total_tokens?: number;
  input_token_details?: { audio_tokens?: number; text_tokens?: number };
  output_token_details?: { audio_tokens?: number; text_tokens?: number };
}

export interface ResponseObject {
  id: string;
  status: "in_progress" | "completed" | "cancelled" | "failed" | "incomplete";
  status_details?: { type?: string; reason?: string; error?: { message?: string } } | null;
  output?: Item[];
  usage?: Usage | null;
  x_agogic?: ResponseExtras;
}

export interface SessionObject {
  id: string;
  model: string;
  instructions?: string;
  expires_at?: number;
  audio?: { output?: { voice?: string } };
  /** `notes` say what of the settings has no effect with the server's model. */
  x_agogic?: {
    input_frame_rate?: RateSetting;
    output_frame_rate?: RateSetting;
    events?: string[];
    joined_turns?: boolean;
    notes?: string[];
  };
}

/** The object of an `error` event. */
export interface ServerProblem {
  type: string;
  code?: string | null;
  message: string;
  param?: string | null;
  event_id?: string | null;
}

/** What a session tells about itself when a connection begins. */
export interface SessionExtras {
  resume?: { token: string; within_s: number };
  recording?: boolean;
}

interface Kind<Type extends string> {
  type: Type;
  event_id?: string;
}
interface About<Type extends string> extends Kind<Type> {
  item_id: string;
}
interface Spoken<Type extends string> extends About<Type> {
  response_id?: string;
  output_index?: number;
  content_index?: number;
}

export type ServerEvent =
  | (Kind<"session.created"> & { session: SessionObject; x_agogic?: SessionExtras })
  | (Kind<"session.updated"> & { session: SessionObject })
  | (Kind<"x_agogic.session_resumed"> & {
      session: SessionObject;
      last_client_event_id: string | null;
      x_agogic?: SessionExtras;
    })
  | (Kind<"error"> & { error: ServerProblem })
  | (Kind<"rate_limits.updated"> & { rate_limits?: unknown[] })
  | (About<"input_audio_buffer.speech_started"> & { audio_start_ms?: number; x_agogic?: { continues?: string } })
  | (About<"input_audio_buffer.speech_stopped"> & { audio_end_ms?: number })
  | (About<"input_audio_buffer.timeout_triggered"> & { audio_start_ms?: number; audio_end_ms?: number })
  | (About<"input_audio_buffer.committed"> & { previous_item_id?: string | null })
  | Kind<"input_audio_buffer.cleared">
  | (Kind<"conversation.item.added" | "conversation.item.done"> & { item: Item; previous_item_id?: string | null })
  | (Kind<"conversation.item.retrieved"> & { item: Item })
  | (About<"conversation.item.truncated"> & { audio_end_ms: number; content_index?: number })
  | About<"conversation.item.deleted">
  | (About<"conversation.item.input_audio_transcription.delta"> & { delta: string })
  | (About<"conversation.item.input_audio_transcription.completed"> & { transcript: string })
  | (About<"conversation.item.input_audio_transcription.failed"> & { error?: { message?: string } })
  | (Kind<"response.created" | "response.done"> & { response: ResponseObject })
  | (Kind<"response.output_item.added" | "response.output_item.done"> & {
      response_id?: string;
      output_index?: number;
      item: Item;
    })
  | (Spoken<"response.content_part.added" | "response.content_part.done"> & { part?: ContentPart })
  | (Spoken<"response.output_audio.delta"> & {
      /** Base64 of 16-bit samples; listeners get the event without it, because the SDK plays the sound. */
      delta?: string;
      x_agogic?: { tokens?: TokenPair[]; start_time?: number };
    })
  | Spoken<"response.output_audio.done">
  | (Spoken<"response.output_audio_transcript.delta"> & {
      delta: string;
      start_time?: number;
      end_time?: number;
      x_agogic?: { tokens?: TokenPair[] };
    })
  | (Spoken<"response.output_audio_transcript.done"> & { transcript?: string })
  | (Spoken<"response.output_text.delta"> & { delta: string })
  | (Spoken<"response.output_text.done"> & { text?: string })
  | (Spoken<"response.function_call_arguments.delta"> & { call_id?: string; delta: string })
  | (Spoken<"response.function_call_arguments.done"> & { call_id?: string; name?: string; arguments: string })
  | (Kind<"output_audio_buffer.started" | "output_audio_buffer.stopped" | "output_audio_buffer.cleared"> & {
      response_id?: string;
    })
  | (About<"x_agogic.input_transcript"> & { transcript: string })
  | (About<"x_agogic.input_tokens"> & { durations_ms: number[] });

export type ClientEvent = { type: string; event_id?: string } & Record<string, unknown>;

/** What the connection brought. Events that this version does not know pass through all the same. */
export function parseEvent(text: string): ServerEvent {
  return JSON.parse(text) as ServerEvent;
}
