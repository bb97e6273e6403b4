import type { Turn } from "./conversation.js";
import type { Timing } from "./events.js";

export const FRAME_RATE_HZ = 12.5;

export interface Bar {
  code: number;
  startFrame: number;
  durationFrames: number;
  heard: boolean;
}

export interface WordMark {
  text: string;
  startFrame: number;
}

export interface TimelineLayout {
  bars: Bar[];
  words: WordMark[];
  totalFrames: number;
  /** Tokens per second of the stretch shown: the realised rate. 0 while there is none. */
  realisedHz: number;
  secondsShown: number;
}

/** Where each bar and each word of an answer sits, in 12.5 Hz frames from its beginning. */
export function layOut(turn: Turn): TimelineLayout {
  const heardFrames = turn.heardS === undefined ? Infinity : turn.heardS * FRAME_RATE_HZ;
  const bars: Bar[] = [];
  let startFrame = 0;
  for (const [code, durationFrames] of turn.tokens) {
    bars.push({ code, startFrame, durationFrames, heard: startFrame < heardFrames });
    startFrame += durationFrames;
  }
  const words = turn.words.map((word) => ({ text: word.text, startFrame: word.startS * FRAME_RATE_HZ }));
  const secondsShown = startFrame / FRAME_RATE_HZ;
  return {
    bars,
    words,
    totalFrames: startFrame,
    realisedHz: secondsShown > 0 ? bars.length / secondsShown : 0,
    secondsShown,
  };
}

/** What was heard as bars; these tokens carry no codes. */
export function layOutHeard(durationsMs: number[]): TimelineLayout {
  const tokens = durationsMs.map((ms): [number, number] => [-1, (ms * FRAME_RATE_HZ) / 1000]);
  return layOut({ id: "", role: "user", status: "done", text: "", words: [], tokens });
}

export interface WaterfallStep {
  name: "waiting for the end of your turn" | "to the first word" | "to the first token" | "to the first sound" | "sent";
  startMs: number;
  durationMs: number;
}

/** The way from the last word spoken to the first sound sent, as whole milliseconds that follow each other and add up. */
export function waterfall(timing: Timing): WaterfallStep[] {
  const waitMs = timing.turn_detection_ms ?? 0;
  const marks: [WaterfallStep["name"], number | undefined][] = [
    ["waiting for the end of your turn", 0],
    ["to the first word", timing.first_text_ms],
    ["to the first token", timing.first_token_ms],
    ["to the first sound", timing.first_audio_ms],
    ["sent", timing.first_audio_out_ms],
  ];
  const steps: WaterfallStep[] = [];
  let reached = 0;
  for (const [name, afterMs] of marks) {
    const until = afterMs === undefined ? 0 : Math.round(waitMs + afterMs);
    if (until <= reached) continue;
    steps.push({ name, startMs: reached, durationMs: until - reached });
    reached = until;
  }
  return steps;
}
