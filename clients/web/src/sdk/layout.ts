import type { Turn } from "./conversation";
import type { Timing } from "./events";

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

const SHORTEST_STEP_MS = 0.5; // less than that would be shown as 0 ms

export interface WaterfallStep {
  name: string;
  startMs: number;
  durationMs: number;
}

/** The way from the last word spoken to the first sound heard, as steps that follow each other. */
export function waterfall(timing: Timing): WaterfallStep[] {
  const marks: [string, number | undefined][] = [
    ["first word", timing.first_text_ms],
    ["first token", timing.first_token_ms],
    ["first sound", timing.first_audio_ms],
    ["sent", timing.first_audio_out_ms],
  ];
  const wait = timing.turn_detection_ms ?? 0;
  const steps: WaterfallStep[] = wait > 0 ? [{ name: "end of turn", startMs: 0, durationMs: wait }] : [];
  let reached = 0;
  for (const [name, atMs] of marks) {
    if (atMs === undefined || atMs - reached < SHORTEST_STEP_MS) continue;
    steps.push({ name, startMs: wait + reached, durationMs: atMs - reached });
    reached = atMs;
  }
  return steps;
}
