import { describe, expect, it } from "vitest";
import type { Turn } from "../src/conversation";
import { layOut, layOutHeard, waterfall } from "../src/layout";

const turn = (more: Partial<Turn> = {}): Turn => ({
  id: "a", role: "assistant", status: "done", text: "", tokens: [[10, 2], [11, 8], [12, 1]],
  words: [{ text: "One", startS: 0.16, endS: 0.8 }], ...more,
});

describe("layOut", () => {
  it("puts bars end to end, as long as they last, and words where they begin", () => {
    const layout = layOut(turn());
    expect(layout.bars.map((bar) => [bar.startFrame, bar.durationFrames])).toEqual([[0, 2], [2, 8], [10, 1]]);
    expect(layout.words).toEqual([{ text: "One", startFrame: 2 }]);
    expect(layout.totalFrames).toBe(11);
    expect(layout.secondsShown).toBeCloseTo(0.88);
    expect(layout.realisedHz).toBeCloseTo(3 / 0.88);
  });

  it("marks bars that begin after the interruption as unheard", () => {
    expect(layOut(turn({ heardS: 0.5 })).bars.map((bar) => bar.heard)).toEqual([true, true, false]);
  });

  it("has no rate while there is nothing", () => {
    expect(layOut(turn({ tokens: [] })).realisedHz).toBe(0);
  });
});

describe("layOutHeard", () => {
  it("puts what was heard end to end too", () => {
    const layout = layOutHeard([80, 320, 240]);
    expect(layout.bars.map((bar) => bar.startFrame)).toEqual([0, 1, 5]);
    expect(layout.realisedHz).toBeCloseTo(3 / 0.64);
  });
});

describe("waterfall", () => {
  it("lays whole milliseconds end to end, the wait for the end of the turn first", () => {
    const steps = waterfall({
      turn_detection_ms: 500, first_text_ms: 40.4, first_token_ms: 60, first_audio_ms: 160.2, first_audio_out_ms: 161.4,
    });
    expect(steps).toEqual([
      { name: "waiting for the end of your turn", startMs: 0, durationMs: 500 },
      { name: "to the first word", startMs: 500, durationMs: 40 },
      { name: "to the first token", startMs: 540, durationMs: 20 },
      { name: "to the first sound", startMs: 560, durationMs: 100 },
      { name: "sent", startMs: 660, durationMs: 1 },
    ]);
    expect(steps.reduce((sum, step) => sum + step.durationMs, 0)).toBe(661);
  });

  it("leaves out what did not happen", () => {
    expect(waterfall({ first_audio_ms: 90 })).toEqual([{ name: "to the first sound", startMs: 0, durationMs: 90 }]);
    expect(waterfall({})).toEqual([]);
  });
});
