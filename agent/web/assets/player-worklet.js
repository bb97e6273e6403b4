// Plays 24 kHz pieces in order and tells, every 20 ms, how many samples of the current item were heard.
const INPUT_RATE_HZ = 24000;

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = INPUT_RATE_HZ / sampleRate;
    this.queue = [];
    this.position = 0; // within the first piece, in input samples
    this.sinceReport = 0;
    this.port.onmessage = ({ data }) => {
      if (data.clear) {
        this.queue = [];
        this.position = 0;
      } else {
        this.queue.push(data);
      }
    };
  }

  process(_inputs, outputs) {
    const channels = outputs[0];
    const output = channels[0];
    for (let index = 0; index < output.length; index += 1) {
      output[index] = this.next();
    }
    for (const other of channels.slice(1)) other.set(output);
    this.sinceReport += output.length;
    if (this.sinceReport >= sampleRate / 50) {
      this.sinceReport = 0;
      const first = this.queue[0];
      this.port.postMessage(
        first ? { item: first.item, heard: first.start + Math.floor(this.position) } : { item: null, heard: 0 },
      );
    }
    return true;
  }

  next() {
    const first = this.queue[0];
    if (first === undefined) return 0;
    const whole = Math.floor(this.position);
    const here = first.samples[whole];
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
