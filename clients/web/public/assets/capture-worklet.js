// Microphone to 24 kHz: hands over pieces of 40 ms, resampled by averaging over each output sample's span.
const OUTPUT_RATE_HZ = 24000;
const PIECE_SAMPLES = 960;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / OUTPUT_RATE_HZ;
    this.piece = new Float32Array(PIECE_SAMPLES);
    this.filled = 0;
    this.need = this.step;
    this.sum = 0;
  }

  push(value) {
    this.piece[this.filled] = value;
    this.filled += 1;
    if (this.filled === PIECE_SAMPLES) {
      this.port.postMessage(this.piece, [this.piece.buffer]);
      this.piece = new Float32Array(PIECE_SAMPLES);
      this.filled = 0;
    }
  }

  process(inputs) {
    const input = inputs[0]?.[0];
    if (input === undefined) return true;
    for (const sample of input) {
      let left = 1;
      while (left >= this.need) {
        this.sum += sample * this.need;
        left -= this.need;
        this.push(this.sum / this.step);
        this.sum = 0;
        this.need = this.step;
      }
      this.sum += sample * left;
      this.need -= left;
    }
    return true;
  }
}

registerProcessor("agogic-capture", Capture);
