import { beforeEach, expect, it, vi } from "vitest";
import { captureWorklet, loadWorklets, playerWorklet, workletSource } from "../src/worklets";

interface Processor {
  port: { onmessage?: (event: { data: unknown }) => void };
  process(inputs: Float32Array[][], outputs: Float32Array[][]): boolean;
}

let posted: unknown[];
const made = new Map<string, new () => Processor>();

beforeEach(() => {
  posted = [];
  vi.stubGlobal("AudioWorkletProcessor", class { port = { postMessage: (data: unknown) => posted.push(data) }; });
  vi.stubGlobal("registerProcessor", (name: string, processor: new () => Processor) => made.set(name, processor));
});

function processor(run: () => void, name: string, rateHz: number): Processor {
  vi.stubGlobal("sampleRate", rateHz);
  run();
  return new (made.get(name)!)();
}

function capture(rateHz: number, ...inputs: (Float32Array | undefined)[]): Float32Array[] {
  const worklet = processor(captureWorklet, "agogic-capture", rateHz);
  const length = inputs.find(Boolean)?.length ?? 128;
  for (let at = 0; at < length; at += 128) {
    worklet.process(inputs.map((input) => (input ? [input.subarray(at, at + 128)] : [])), []);
  }
  return posted as Float32Array[];
}

const ramp = (count: number, scale: number): Float32Array => Float32Array.from({ length: count }, (_, index) => index * scale);

it("halves 48 kHz by averaging, in pieces of 40 ms, and loses nothing", () => {
  const pieces = capture(48_000, ramp(1920 * 3, 1e-4));
  expect(pieces.map((piece) => piece.length)).toEqual([960, 960, 960]);
  expect(pieces[0]![0]).toBeCloseTo(0.5e-4, 9);
  expect(pieces[2]![959]! * 1e4).toBeCloseTo(5758.5, 1);
});

it("keeps a constant and its length at 44.1 kHz", () => {
  const pieces = capture(44_100, new Float32Array(128 * 345).fill(0.25)); // one second and a little
  expect(pieces).toHaveLength(25);
  for (const piece of pieces) for (const value of piece) expect(value).toBeCloseTo(0.25, 5);
});

it("keeps two sides beside each other, and silence where one has nothing to say", () => {
  const pieces = capture(24_000, undefined, new Float32Array(1920).fill(0.5));
  expect(pieces).toHaveLength(2);
  expect([...pieces[1]!.subarray(0, 4)]).toEqual([0, 0.5, 0, 0.5]);
});

function play(rateHz: number) {
  const worklet = processor(playerWorklet, "agogic-player", rateHz);
  const out = new Float32Array(128);
  return { worklet, run: () => (worklet.process([], [[out, new Float32Array(128)]]), [...out]) };
}

it("plays pieces in order, tells what was heard and when it ran dry", () => {
  const { worklet, run } = play(24_000);
  worklet.port.onmessage!({ data: { item: "a", start: 0, samples: new Float32Array(100).fill(0.5) } });
  worklet.port.onmessage!({ data: { item: "a", start: 100, samples: new Float32Array(400).fill(0.25) } });
  const first = run();
  expect([first[0], first[99], first[127]]).toEqual([0.5, 0.5, 0.25]);
  for (let block = 0; block < 3; block += 1) run();
  expect(posted).toContainEqual({ item: "a", heard: 500, dry: true });
  worklet.port.onmessage!({ data: { item: "b", start: 24, samples: new Float32Array(2000) } });
  for (let block = 0; block < 4; block += 1) run();
  expect(posted).toContainEqual({ item: "b", heard: 24 + 4 * 128 });
});

it("interpolates up to the device's rate and falls silent at once when it is cleared", () => {
  const { worklet, run } = play(48_000);
  worklet.port.onmessage!({ data: { item: "a", start: 0, samples: Float32Array.from([0, 1, 0, 1, ...new Array<number>(400).fill(1)]) } });
  expect(run().slice(0, 5)).toEqual([0, 0.5, 1, 0.5, 0]);
  worklet.port.onmessage!({ data: { clear: true } });
  expect(new Set(run())).toEqual(new Set([0]));
});

it("is handed over as text that stands alone", () => {
  new Function(workletSource())();
  expect([...made.keys()]).toEqual(expect.arrayContaining(["agogic-player", "agogic-capture"]));
});

it("is loaded once a context, from a blob or from where the page serves it", async () => {
  const addModule = vi.fn(async (_url: string) => undefined);
  const context = { audioWorklet: { addModule } } as unknown as AudioContext;
  await loadWorklets(context, "/assets/worklets.js");
  await loadWorklets(context, "/assets/worklets.js");
  expect(addModule).toHaveBeenCalledExactlyOnceWith("/assets/worklets.js");
  await loadWorklets({ audioWorklet: { addModule } } as unknown as AudioContext, undefined);
  expect(addModule.mock.lastCall![0]).toMatch(/^blob:/);
});
