import { beforeEach, expect, it, vi } from "vitest";
import type { Taps } from "../src/connection";
import { Recorder } from "../src/recorder";
import { FakeAudioContext, stubAudio } from "./fakes";

let audio: ReturnType<typeof stubAudio>;
beforeEach(() => {
  audio = stubAudio();
});

it("makes a WAV file of both sides", async () => {
  const recorder = new Recorder();
  recorder.add(Float32Array.from([0.5, -0.5, 2, 0]));
  const bytes = new DataView(await recorder.wav().arrayBuffer());
  expect(bytes.byteLength).toBe(44 + 8);
  expect([bytes.getUint32(4, true), bytes.getUint16(22, true), bytes.getUint32(24, true), bytes.getUint32(40, true)]).toEqual([44, 2, 24_000, 8]);
  expect([0, 1, 2, 3].map((index) => bytes.getInt16(44 + 2 * index, true))).toEqual([16384, -16383, 32767, 0]);
  recorder.clear();
  expect(recorder.seconds).toBe(0);
});

it("goes on from connection to connection, and stops where it was taken off", async () => {
  const recorder = new Recorder();
  const taps = (): Taps => {
    const context = new FakeAudioContext();
    return { context, microphone: context.createMediaStreamSource(), voice: context.createGain() } as unknown as Taps;
  };
  const piece = { data: new Float32Array(48_000) };
  await recorder.attach(taps(), undefined);
  const first = audio.node("agogic-capture").port;
  first.onmessage!(piece);
  await recorder.attach(taps(), undefined);
  expect(first.onmessage).toBeNull();
  audio.node("agogic-capture").port.onmessage!(piece);
  expect(recorder.seconds).toBe(2);
});

it("is full after as long as it may record and says so", () => {
  const full = vi.fn();
  const recorder = new Recorder(full, 2);
  for (let second = 0; second < 5; second += 1) recorder.add(new Float32Array(2 * 24_000));
  expect(recorder.seconds).toBe(2);
  expect(full).toHaveBeenCalledOnce();
});
