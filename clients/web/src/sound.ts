import type { Taps } from "./connection.js";
import { LevelMeter } from "./levels.js";
import { keepAudible } from "./microphone.js";
import { loadWorklets } from "./worklets.js";

const RATE_HZ = 24_000;

interface PlayerReport {
  item: string | null;
  heard: number;
  dry?: boolean;
}

/** Microphone and loudspeaker of a WebSocket connection, as two audio worklets. */
export class Sound {
  onHeard: (itemId: string | null, heardS: number) => void = () => undefined;
  onMicrophone: (samples: Float32Array) => void = () => undefined;
  #item: string | null = null;
  #first = 0;
  #sent = 0;
  #heard: PlayerReport = { item: null, heard: 0 };
  #playing = false;
  #microphone: LevelMeter | undefined;
  #capture: AudioWorkletNode | undefined;

  private constructor(
    private readonly context: AudioContext,
    private readonly player: AudioWorkletNode,
    private readonly volume: GainNode,
    private readonly voice: LevelMeter,
    private readonly letSleep: () => void,
  ) {
    player.port.onmessage = ({ data }: MessageEvent<PlayerReport>) => {
      if (data.item !== null) this.#heard = data;
      if (data.dry) this.#playing = false;
      this.onHeard(data.item, data.heard / RATE_HZ);
    };
  }

  static async create(workletUrl: string | undefined): Promise<Sound> {
    const context = new AudioContext();
    try {
      await loadWorklets(context, workletUrl);
    } catch (error) {
      void context.close();
      throw error;
    }
    const player = new AudioWorkletNode(context, "agogic-player", { numberOfInputs: 0, outputChannelCount: [1] });
    const volume = context.createGain();
    player.connect(volume).connect(context.destination);
    return new Sound(context, player, volume, new LevelMeter(context, player), keepAudible(context));
  }

  /** False until the browser lets the page make a sound. */
  get isRunning(): boolean {
    return this.context.state === "running";
  }

  /** Whether something of what was given to `play` is still to be heard. */
  get isPlaying(): boolean {
    return this.#playing && this.isRunning;
  }

  attach(stream: MediaStream | undefined): void {
    this.#microphone?.close();
    this.#capture?.disconnect();
    this.#microphone = this.#capture = undefined;
    if (stream === undefined) return;
    const source = this.context.createMediaStreamSource(stream);
    const capture = new AudioWorkletNode(this.context, "agogic-capture", { numberOfOutputs: 0 });
    this.#microphone = new LevelMeter(this.context, source);
    source.connect(capture);
    capture.port.onmessage = ({ data }: MessageEvent<Float32Array>) => this.onMicrophone(data);
    this.#capture = capture;
  }

  /** `startS`: where it stands in its item; an answer may have begun over a connection that was lost. */
  play(itemId: string, samples: Float32Array, startS = 0): void {
    if (itemId !== this.#item) {
      this.#item = itemId;
      this.#sent = this.#first = Math.round(startS * RATE_HZ);
    }
    const start = this.#sent;
    this.#sent += samples.length; // before the buffer is handed over, which leaves nothing behind
    this.player.port.postMessage({ item: itemId, start, samples }, [samples.buffer]);
    this.#playing = true;
  }

  /** Drops what is queued; says which item was playing, if any, and how much of it was heard. */
  clear(): { itemId: string | null; heardMs: number } {
    this.player.port.postMessage({ clear: true });
    if (!this.#playing || this.#item === null) return { itemId: null, heardMs: 0 };
    this.#playing = false;
    const heard = this.#heard.item === this.#item ? this.#heard.heard : this.#first;
    return { itemId: this.#item, heardMs: Math.round((heard / RATE_HZ) * 1000) };
  }

  setVolume(volume: number): void {
    this.volume.gain.value = Math.max(0, Math.min(1, volume));
  }

  async setSpeaker(deviceId: string): Promise<void> {
    const context = this.context as AudioContext & { setSinkId?: (id: string) => Promise<void> };
    await context.setSinkId?.(deviceId);
  }

  levels(): { microphone: number; voice: number } {
    return { microphone: this.#microphone?.level() ?? 0, voice: this.voice.level() };
  }

  taps(): Taps {
    return { context: this.context, microphone: this.#microphone?.source, voice: this.player };
  }

  close(): void {
    this.letSleep();
    void this.context.close();
  }
}
