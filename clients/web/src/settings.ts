import type { JsonValue, RateSetting } from "./events.js";

/** Who decides that a turn has ended: the server ("open" microphone), or the person ("push" to talk). */
export type TurnMode = "open" | "push";

/** How the server finds the end of a turn where the microphone is open. */
export type TurnDetection =
  | { type: "server_vad"; threshold?: number; prefix_padding_ms?: number; silence_duration_ms?: number; idle_timeout_ms?: number }
  | { type: "semantic_vad"; eagerness?: "low" | "medium" | "high" | "auto" };

export interface Rates {
  input: RateSetting;
  output: RateSetting;
}

/** What may be changed while a call is running. */
export interface SessionSettings {
  mode: TurnMode;
  turnDetection: TurnDetection;
  instructions: string | undefined;
  voice: string | undefined;
  rates: Rates;
}

export interface ToolDescription {
  description: string;
  /** JSON Schema of the arguments. */
  parameters: Record<string, JsonValue>;
}

/** The `session.update` that brings `settings` into effect. */
export function sessionOf(settings: SessionSettings, tools: Record<string, ToolDescription>): Record<string, unknown> {
  const detection = { ...settings.turnDetection, create_response: true, interrupt_response: true };
  return {
    type: "realtime",
    ...(settings.instructions === undefined ? {} : { instructions: settings.instructions }),
    audio: {
      input: { turn_detection: settings.mode === "open" ? detection : null },
      ...(settings.voice === undefined ? {} : { output: { voice: settings.voice } }),
    },
    tools: Object.entries(tools).map(([name, { description, parameters }]) => ({
      type: "function",
      name,
      description,
      parameters,
    })),
    x_agogic: {
      input_frame_rate: settings.rates.input,
      output_frame_rate: settings.rates.output,
      events: ["input_transcript", "input_tokens"],
      joined_turns: true,
    },
  };
}
