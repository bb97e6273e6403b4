import { AgogicError } from "./errors.js";

const FOR_SPEECH: MediaTrackConstraints = {
  echoCancellation: true,
  noiseSuppression: true,
  autoGainControl: true,
  channelCount: 1,
};

export interface Devices {
  microphones: { id: string; label: string }[];
  /** Empty where the browser does not let a page choose. */
  speakers: { id: string; label: string }[];
}

/** Asks the person for the microphone. Throws `AgogicError` with code "microphone" and a sentence that says what to do. */
export async function openMicrophone(wanted: MediaTrackConstraints = {}): Promise<MediaStream> {
  if (!navigator.mediaDevices) {
    throw new AgogicError(
      "This browser gives pages a microphone only over HTTPS or on localhost. Open the page there, or type.",
      "microphone",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: { ...FOR_SPEECH, ...wanted } });
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    const why =
      name === "NotAllowedError"
        ? "The microphone was refused. Allow it for this page in the browser's address bar, or type."
        : name === "NotFoundError" || name === "OverconstrainedError"
          ? "No such microphone was found. Plug one in or choose another, or type."
          : "The microphone cannot be used; another program may hold it.";
    throw new AgogicError(why, "microphone", {}, { cause: error });
  }
}

/** What there is to choose from. Browsers name devices only to pages that have been given a microphone. */
export async function listDevices(): Promise<Devices> {
  const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  const of = (kind: MediaDeviceKind, word: string): { id: string; label: string }[] =>
    all
      .filter((device) => device.kind === kind && device.deviceId !== "")
      .map((device, index) => ({ id: device.deviceId, label: device.label || `${word} ${index + 1}` }));
  return { microphones: of("audioinput", "Microphone"), speakers: of("audiooutput", "Speaker") };
}

/**
 * What phones need: Safari plays through the earpiece and stops in silence mode unless told that this is a call, and every
 * browser may suspend sound while another app rings. Returns what undoes it.
 */
export function keepAudible(context: AudioContext, player?: HTMLMediaElement): () => void {
  const session = (navigator as Navigator & { audioSession?: { type: string } }).audioSession;
  if (session) session.type = "play-and-record";
  const wake = (): void => {
    if (document.visibilityState === "hidden") return;
    if (context.state !== "running" && context.state !== "closed") void context.resume().catch(() => undefined);
    if (player?.paused && player.srcObject) void player.play().catch(() => undefined);
  };
  const signals: [EventTarget, string][] = [
    [document, "visibilitychange"],
    [document, "pointerdown"],
    [window, "focus"],
    [context, "statechange"],
  ];
  for (const [target, name] of signals) target.addEventListener(name, wake);
  wake();
  return () => {
    for (const [target, name] of signals) target.removeEventListener(name, wake);
    if (session) session.type = "auto";
  };
}
