import type { Taps } from "./connection.js";
import { LevelMeter } from "./levels.js";
import { keepAudible } from "./microphone.js";

/** The loudspeaker of a call, and meters for both sides. */
export interface CallAudio {
  play(track: MediaStreamTrack): void;
  /** Which microphone to measure. */
  listen(stream: MediaStream | undefined): void;
  setVolume(volume: number): void;
  setSpeaker(deviceId: string): Promise<void>;
  levels(): { microphone: number; voice: number };
  taps(): Taps | undefined;
  close(): void;
}

/** An audio element in the document: Safari plays no other. */
export function browserAudio(): CallAudio {
  const player = new Audio();
  player.autoplay = true;
  player.hidden = true;
  player.dataset.role = "voice";
  const context = new AudioContext();
  const letSleep = keepAudible(context, player);
  let voice: LevelMeter | undefined;
  let microphone: LevelMeter | undefined;

  return {
    play: (track) => {
      const stream = new MediaStream([track]);
      player.srcObject = stream;
      document.body.append(player);
      voice = new LevelMeter(context, context.createMediaStreamSource(stream));
    },
    listen: (stream) => {
      microphone?.close();
      microphone = stream && new LevelMeter(context, context.createMediaStreamSource(stream));
    },
    setVolume: (volume) => {
      player.volume = Math.max(0, Math.min(1, volume));
    },
    setSpeaker: async (deviceId) => {
      if ("setSinkId" in player) await player.setSinkId(deviceId);
    },
    levels: () => ({ microphone: microphone?.level() ?? 0, voice: voice?.level() ?? 0 }),
    taps: () => ({ context, microphone: microphone?.source, voice: voice?.source }),
    close: () => {
      letSleep();
      player.srcObject = null;
      player.remove();
      void context.close();
    },
  };
}
