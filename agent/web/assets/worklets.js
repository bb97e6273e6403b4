(function playerWorklet() {
  const inputRateHz = 24e3;
  class Player extends AudioWorkletProcessor {
    step = inputRateHz / sampleRate;
    queue = [];
    position = 0;
    // within the first piece, in input samples
    sinceReport = 0;
    constructor() {
      super();
      this.port.onmessage = ({ data }) => {
        if ("clear" in data) {
          this.queue = [];
          this.position = 0;
        } else {
          this.queue.push(data);
        }
      };
    }
    process(_inputs, outputs) {
      const channels = outputs[0] ?? [];
      const output = channels[0];
      if (output === void 0) return true;
      for (let index = 0; index < output.length; index += 1) output[index] = this.next();
      for (const other of channels.slice(1)) other.set(output);
      this.sinceReport += output.length;
      if (this.sinceReport >= sampleRate / 50) {
        this.sinceReport = 0;
        const first = this.queue[0];
        this.port.postMessage(
          first ? { item: first.item, heard: first.start + Math.floor(this.position) } : { item: null, heard: 0 }
        );
      }
      return true;
    }
    next() {
      const first = this.queue[0];
      if (first === void 0) return 0;
      const whole = Math.floor(this.position);
      const here = first.samples[whole] ?? 0;
      const after = first.samples[whole + 1] ?? this.queue[1]?.samples[0] ?? here;
      const value = here + (after - here) * (this.position - whole);
      this.position += this.step;
      if (this.position >= first.samples.length) {
        this.position -= first.samples.length;
        this.queue.shift();
        if (this.queue.length === 0) {
          this.position = 0;
          this.port.postMessage({ item: first.item, heard: first.start + first.samples.length, dry: true });
        }
      }
      return value;
    }
  }
  registerProcessor("agogic-player", Player);
})();
(function captureWorklet() {
  const outputRateHz = 24e3;
  const pieceFrames = 960;
  class Capture extends AudioWorkletProcessor {
    step = sampleRate / outputRateHz;
    need = sampleRate / outputRateHz;
    filled = 0;
    piece = new Float32Array(0);
    sums = [];
    process(inputs) {
      const sides = inputs.length;
      if (this.sums.length !== sides) {
        this.sums = new Array(sides).fill(0);
        this.piece = new Float32Array(pieceFrames * sides);
      }
      const length = inputs.find((input) => input[0] !== void 0)?.[0]?.length ?? (sides > 1 ? 128 : 0);
      for (let index = 0; index < length; index += 1) {
        let left = 1;
        while (left >= this.need) {
          for (let side = 0; side < sides; side += 1) {
            const value = (this.sums[side] ?? 0) + (inputs[side]?.[0]?.[index] ?? 0) * this.need;
            this.piece[this.filled * sides + side] = value / this.step;
            this.sums[side] = 0;
          }
          left -= this.need;
          this.need = this.step;
          this.advance(sides);
        }
        for (let side = 0; side < sides; side += 1) {
          this.sums[side] = (this.sums[side] ?? 0) + (inputs[side]?.[0]?.[index] ?? 0) * left;
        }
        this.need -= left;
      }
      return true;
    }
    advance(sides) {
      this.filled += 1;
      if (this.filled < pieceFrames) return;
      this.port.postMessage(this.piece, [this.piece.buffer]);
      this.piece = new Float32Array(pieceFrames * sides);
      this.filled = 0;
    }
  }
  registerProcessor("agogic-capture", Capture);
})();
