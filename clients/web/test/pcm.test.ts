import { describe, expect, it } from "vitest";
import { decodePcm, encodePcm, meterLevel } from "../src/pcm";

describe("PCM in base64", () => {
  it("survives the round trip to within one step, and clips what is too loud", () => {
    const samples = Float32Array.from({ length: 20_000 }, (_, index) => Math.sin(index / 7));
    const back = decodePcm(encodePcm(samples));
    expect(back.length).toBe(samples.length);
    expect(Math.max(...back.map((value, index) => Math.abs(value - samples[index]!)))).toBeLessThan(1 / 16_000);
    expect(decodePcm(encodePcm(Float32Array.of(3, -3)))[1]).toBeCloseTo(-1, 3);
  });

  it("is little-endian", () => {
    expect(atob(encodePcm(Float32Array.of(1 / 32767)))).toBe("\x01\x00");
  });

  it("refuses half a sample", () => {
    expect(() => decodePcm(btoa("abc"))).toThrow(RangeError);
  });
});

describe("meterLevel", () => {
  it("is 1 at full scale, 0 in silence, and linear in decibels between", () => {
    expect(meterLevel(new Float32Array(100))).toBe(0);
    expect(meterLevel(new Float32Array(100).fill(1))).toBe(1);
    expect(meterLevel(new Float32Array(100).fill(10 ** (-30 / 20)))).toBeCloseTo(0.5, 3);
  });
});
