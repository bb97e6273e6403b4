import { meterLevel } from "./pcm.js";

/** Measures how loud a node is, when asked. */
export class LevelMeter {
  readonly #analyser: AnalyserNode;
  readonly #samples: Float32Array<ArrayBuffer>;

  constructor(
    context: AudioContext,
    readonly source: AudioNode,
  ) {
    this.#analyser = context.createAnalyser();
    this.#analyser.fftSize = 1024;
    this.#samples = new Float32Array(this.#analyser.fftSize);
    source.connect(this.#analyser);
  }

  level(): number {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    return meterLevel(this.#samples);
  }

  close(): void {
    this.source.disconnect();
  }
}
