import { vi } from "vitest";
import type { Connection, ConnectOptions } from "../src/connection";
import type { ClientEvent } from "../src/events";

export class FakeConnection implements Connection {
  readonly sent: ClientEvent[] = [];
  microphone = false;
  stream: MediaStream | undefined;
  silenced = 0;
  volume = 1;
  speaker = "";
  closed = false;
  readonly tailMs = 100;

  constructor(
    readonly kind: "webrtc" | "websocket",
    readonly options: ConnectOptions,
  ) {}

  send(event: ClientEvent): void { this.sent.push(event); }
  attachMicrophone(stream: MediaStream | undefined): void { this.stream = stream; }
  openMicrophone(open: boolean): void { this.microphone = open; }
  silence(): void { this.silenced += 1; }
  setVolume(volume: number): void { this.volume = volume; }
  async setSpeaker(deviceId: string): Promise<void> { this.speaker = deviceId; }
  levels(): { microphone: number; voice: number } { return { microphone: 0.5, voice: 0.25 }; }
  taps(): undefined { return undefined; }
  async playedOut(): Promise<void> { return undefined; }
  close(): void { this.closed = true; }

  types(): string[] { return this.sent.map((event) => event.type); }
}

export class FakeTrack extends EventTarget {
  kind = "audio";
  enabled = true;
  stopped = false;
  stop(): void { this.stopped = true; }
}

export function fakeStream(track = new FakeTrack()): MediaStream & { track: FakeTrack } {
  return { track, getTracks: () => [track], getAudioTracks: () => [track] } as unknown as MediaStream & { track: FakeTrack };
}

class FakeNode {
  port = { onmessage: undefined as ((event: { data: unknown }) => void) | undefined, posted: [] as unknown[], postMessage(data: unknown) { this.posted.push(data); } };
  gain = { value: 1 };
  fftSize = 0;
  connected: unknown[] = [];
  constructor(readonly context?: unknown, readonly name?: string) { FakeNode.made.push(this); }
  static made: FakeNode[] = [];
  connect(to: FakeNode): FakeNode { this.connected.push(to); return to; }
  disconnect(): void { this.connected = []; }
  getFloatTimeDomainData(samples: Float32Array): void { samples.fill(1); }
}

export class FakeAudioContext extends EventTarget {
  static last: FakeAudioContext;
  state = "running";
  destination = new FakeNode();
  sink = "";
  audioWorklet = { addModule: vi.fn(async (_url: string) => undefined) };
  constructor() { super(); FakeAudioContext.last = this; }
  createAnalyser(): FakeNode { return new FakeNode(this, "analyser"); }
  createGain(): FakeNode { return new FakeNode(this, "gain"); }
  createMediaStreamSource(): FakeNode { return new FakeNode(this, "source"); }
  async setSinkId(id: string): Promise<void> { this.sink = id; }
  async resume(): Promise<void> { this.state = "running"; }
  async close(): Promise<void> { this.state = "closed"; }
}

/** A browser's sound, as far as the SDK touches it. */
export function stubAudio(): { node: (name: string) => FakeNode } {
  FakeNode.made = [];
  vi.stubGlobal("AudioContext", FakeAudioContext);
  vi.stubGlobal("AudioWorkletNode", FakeNode);
  vi.stubGlobal("MediaStream", class { constructor(readonly tracks: unknown[]) {} });
  vi.stubGlobal("document", Object.assign(new EventTarget(), { visibilityState: "visible", body: { append: vi.fn() } }));
  vi.stubGlobal("window", new EventTarget());
  vi.stubGlobal("Audio", class {
    dataset = {}; srcObject: unknown = null; volume = 1; sink = ""; paused = true; played = 0;
    constructor() { FakeAudio.last = this as unknown as FakeAudio; }
    async play() { this.played += 1; }
    async setSinkId(id: string) { this.sink = id; }
    remove() { /* nothing is drawn */ }
  });
  const find = (name: string): FakeNode => {
    const found = FakeNode.made.findLast((node) => node.name === name);
    if (!found) throw new Error(`no node ${name}`);
    return found;
  };
  return { node: find };
}

export class FakeAudio {
  static last: FakeAudio;
  volume = 1;
  sink = "";
  played = 0;
  srcObject: unknown = null;
}
