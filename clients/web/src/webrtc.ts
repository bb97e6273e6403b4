import { browserAudio, type CallAudio } from "./browser-audio.js";
import { type Connect, type Connection, type ConnectOptions, refusal } from "./connection.js";
import { AgogicError } from "./errors.js";
import { type ClientEvent, parseEvent } from "./events.js";
import { Heartbeat } from "./heartbeat.js";
import { after } from "./timeout.js";

const CONNECT_TIMEOUT_MS = 8000;
const LISTEN_MS = 300;
const TAIL_MS = 160; // encoder, packet and network: what was said just before the button was let go

/** What differs between a browser and an app that brings its own WebRTC. */
export interface RtcPlatform {
  createPeer(configuration: RTCConfiguration): RTCPeerConnection;
  /** Plays the answers and measures both sides. */
  createAudio(workletUrl: string | undefined): CallAudio;
}

const browser: RtcPlatform = {
  createPeer: (configuration) => new RTCPeerConnection(configuration),
  createAudio: browserAudio,
};

/** Speech as RTP, events on the data channel `oai-events`. The server plays out and knows what was heard. */
export function webRtcOn(platform: RtcPlatform): Connect {
  return (options) => connect(platform, options);
}

export const connectWebRtc: Connect = webRtcOn(browser);

async function connect(platform: RtcPlatform, options: ConnectOptions): Promise<Connection> {
  const peer = platform.createPeer({
    iceServers: options.iceServers ?? (await namedServers(options)),
    iceTransportPolicy: options.relayOnly ? "relay" : "all",
  });
  const audio = platform.createAudio(options.workletUrl);
  let state: "opening" | "open" | "lost" | "closed" = "opening";
  let heartbeat: Heartbeat | undefined;

  const close = (): void => {
    if (state === "closed") return;
    if (state !== "lost") audio.close();
    state = "closed";
    heartbeat?.stop();
    peer.close();
  };
  const lost = (message: string): void => {
    if (state !== "open") return;
    // Closing the peer would tell the server farewell, if it can be reached after all.
    state = "lost";
    heartbeat?.stop();
    audio.close();
    options.onLost(new AgogicError(message, "lost"));
  };

  peer.ontrack = ({ track }) => audio.play(track);
  const { sender } = peer.addTransceiver("audio", { direction: "sendrecv" });
  const channel = peer.createDataChannel("oai-events");
  channel.onmessage = ({ data }) => {
    heartbeat?.alive();
    if (state === "lost" || state === "closed") return;
    const event = parseEvent(data as string);
    options.onReceived?.(event);
    options.onEvent(event);
  };
  const opened = new Promise<void>((resolve, reject) => {
    const give_up = (message: string): void => reject(new AgogicError(message, "unreachable"));
    const timeout = setTimeout(() => give_up("The server was found, but no sound path to it."), CONNECT_TIMEOUT_MS);
    channel.onopen = () => {
      clearTimeout(timeout);
      resolve();
    };
    peer.onconnectionstatechange = () => {
      if (peer.connectionState !== "failed") return;
      clearTimeout(timeout);
      give_up("No sound path to the server could be found.");
      lost("The connection to the server was lost.");
    };
  });
  opened.catch(() => undefined); // whoever awaits it below hears of it; a refused offer never does
  channel.onclose = () => lost("The server ended the conversation.");

  try {
    await peer.setLocalDescription(await peer.createOffer());
    const resume = options.resume && { resume: options.resume.token, after: options.resume.after };
    const query = Object.entries({ model: options.model, ...resume })
      .map(([name, value]) => `${name}=${encodeURIComponent(value)}`)
      .join("&");
    const response = await fetch(`${options.url}/v1/realtime/calls?${query}`, {
      method: "POST",
      headers: { "Content-Type": "application/sdp", ...authorization(options) },
      body: peer.localDescription?.sdp ?? "",
      signal: after(CONNECT_TIMEOUT_MS),
    }).catch(() => {
      throw new AgogicError("The server does not answer.", "unreachable");
    });
    if (!response.ok) throw await refusal(response);
    await peer.setRemoteDescription({ type: "answer", sdp: await response.text() });
    await opened;
  } catch (error) {
    close();
    throw error;
  }
  state = "open";
  heartbeat = new Heartbeat(() => arrives(peer), () => lost("The server does not answer any more."));

  let track: MediaStreamTrack | undefined;
  let isOpen = false;
  const show = (): void => {
    // Without a track nothing is sent at all; a muted one would go on sending silence to be listened to.
    void sender.replaceTrack(isOpen ? (track ?? null) : null).catch(() => undefined);
  };
  const send = (event: ClientEvent): void => {
    if (channel.readyState === "open") channel.send(JSON.stringify(event));
  };
  return {
    kind: "webrtc",
    tailMs: TAIL_MS,
    send,
    attachMicrophone: (stream) => {
      track = stream?.getAudioTracks()[0];
      audio.listen(stream);
      show();
    },
    openMicrophone: (open) => {
      isOpen = open;
      show();
    },
    silence: () => send({ type: "output_audio_buffer.clear" }),
    setVolume: (volume) => audio.setVolume(volume),
    setSpeaker: (deviceId) => audio.setSpeaker(deviceId),
    levels: () => audio.levels(),
    taps: () => audio.taps(),
    playedOut: async () => undefined,
    close,
  };
}

function authorization({ apiKey }: ConnectOptions): Record<string, string> {
  return apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
}

/** None where the server does not say: then the call is tried without, and its refusal tells what is wrong. */
async function namedServers(options: ConnectOptions): Promise<RTCIceServer[]> {
  try {
    const headers = authorization(options);
    const response = await fetch(`${options.url}/v1/realtime/ice_servers`, { headers, signal: after(CONNECT_TIMEOUT_MS) });
    if (!response.ok) return [];
    return ((await response.json()) as { ice_servers?: RTCIceServer[] }).ice_servers ?? [];
  } catch {
    return [];
  }
}

/** The server sends sound or silence all the time: whether any of it comes now. */
async function arrives(peer: RTCPeerConnection): Promise<boolean> {
  const before = await received(peer);
  await new Promise((resolve) => setTimeout(resolve, LISTEN_MS));
  return (await received(peer)) > before;
}

async function received(peer: RTCPeerConnection): Promise<number> {
  let bytes = 0;
  (await peer.getStats()).forEach((entry: { type: string; bytesReceived?: number }) => {
    if (entry.type === "transport" || entry.type === "inbound-rtp") bytes += entry.bytesReceived ?? 0;
  });
  return bytes;
}
