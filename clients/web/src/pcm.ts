/** 16-bit little-endian PCM as base64, the way the WebSocket carries sound. */

export function encodePcm(samples: Float32Array): string {
  const bytes = new Uint8Array(samples.length * 2);
  const view = new DataView(bytes.buffer);
  samples.forEach((sample, index) => {
    const clipped = Math.max(-1, Math.min(1, sample));
    view.setInt16(index * 2, Math.round(clipped * 32767), true);
  });
  let text = "";
  for (let start = 0; start < bytes.length; start += 8192) {
    text += String.fromCharCode(...bytes.subarray(start, start + 8192));
  }
  return btoa(text);
}

/** Throws RangeError for an odd number of bytes. */
export function decodePcm(base64: string): Float32Array {
  const text = atob(base64);
  if (text.length % 2 !== 0) throw new RangeError(`16-bit PCM has an even number of bytes, not ${text.length}`);
  const samples = new Float32Array(text.length / 2);
  for (let index = 0; index < samples.length; index += 1) {
    const value = text.charCodeAt(2 * index) | (text.charCodeAt(2 * index + 1) << 8);
    samples[index] = (value < 0x8000 ? value : value - 0x10000) / 32768;
  }
  return samples;
}

/** Root mean square as a meter shows it: 0 at -60 dB and below, 1 at full scale. */
export function meterLevel(samples: Float32Array): number {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  if (sum === 0 || samples.length === 0) return 0;
  const decibels = 10 * Math.log10(sum / samples.length);
  return Math.max(0, Math.min(1, 1 + decibels / 60));
}
