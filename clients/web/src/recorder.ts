import type { Taps } from "./connection.js";
import { loadWorklets } from "./worklets.js";

const RATE_HZ = 24_000;
const LONGEST_S = 15 * 60;

/** The whole call as sound: the person on the left, the answers on the right, 16 bit at 24 kHz. */
export class Recorder {
  #pieces: Int16Array[] = [];
  #frames = 0;
  #node: AudioWorkletNode | undefined;

  /** `onFull` is called when `longestS` are recorded; nothing is added after that. */
  constructor(
    private readonly onFull: () => void = () => undefined,
    private readonly longestS = LONGEST_S,
  ) {}

  get seconds(): number {
    return this.#frames / RATE_HZ;
  }

  /** Records what these taps bring from now on, after what was recorded before. */
  async attach(taps: Taps, workletUrl: string | undefined): Promise<void> {
    await loadWorklets(taps.context, workletUrl);
    this.detach();
    const node = new AudioWorkletNode(taps.context, "agogic-capture", { numberOfInputs: 2, numberOfOutputs: 0 });
    taps.microphone?.connect(node, 0, 0);
    taps.voice?.connect(node, 0, 1);
    node.port.onmessage = ({ data }: MessageEvent<Float32Array>) => this.add(data);
    this.#node = node;
  }

  detach(): void {
    if (this.#node) this.#node.port.onmessage = null;
    this.#node?.disconnect();
    this.#node = undefined;
  }

  /** Interleaved samples of both sides. */
  add(samples: Float32Array): void {
    if (this.seconds >= this.longestS) return;
    const piece = new Int16Array(samples.length);
    samples.forEach((value, index) => {
      piece[index] = Math.round(Math.max(-1, Math.min(1, value)) * 32767);
    });
    this.#pieces.push(piece);
    this.#frames += samples.length / 2;
    if (this.seconds >= this.longestS) this.onFull();
  }

  clear(): void {
    this.#pieces = [];
    this.#frames = 0;
  }

  /** A WAV file. */
  wav(): Blob {
    const bytes = this.#frames * 4;
    const header = new DataView(new ArrayBuffer(44));
    const word = (at: number, text: string): void =>
      [...text].forEach((letter, index) => header.setUint8(at + index, letter.charCodeAt(0)));
    word(0, "RIFF");
    header.setUint32(4, 36 + bytes, true);
    word(8, "WAVEfmt ");
    header.setUint32(16, 16, true);
    header.setUint16(20, 1, true);
    header.setUint16(22, 2, true);
    header.setUint32(24, RATE_HZ, true);
    header.setUint32(28, RATE_HZ * 4, true);
    header.setUint16(32, 4, true);
    header.setUint16(34, 16, true);
    word(36, "data");
    header.setUint32(40, bytes, true);
    return new Blob([header, ...(this.#pieces as BlobPart[])], { type: "audio/wav" });
  }
}
