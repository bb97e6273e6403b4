import { type Connection, ConnectionError, type ConnectOptions, refusal } from "./connection";
import type { ClientEvent, ServerEvent } from "./events";
import { LevelMeter } from "./levels";

const CONNECT_TIMEOUT_MS = 8000;
const DISCONNECTED_TOLERANCE_MS = 8000;
const PULSE_MS = 500; // the server sends sound all the time, silence too: a second without any is news
const SILENT_PULSES = 2;
const TAIL_MS = 160; // encoder, packet and network: what was said just before the button was let go

/** Speech as RTP, events on the data channel `oai-events`. The server plays out and knows what was heard. */
export async function connectWebRtc(options: ConnectOptions): Promise<Connection> {
  const peer = new RTCPeerConnection();
  const player = new Audio();
  player.autoplay = true;
  const context = new AudioContext();
  void context.resume();
  let voice: LevelMeter | undefined;
  let closed = false;
  let established = false;
  let patience: ReturnType<typeof setTimeout> | undefined;
  let pulse: ReturnType<typeof setInterval> | undefined;

  const close = (): void => {
    if (closed) return;
    closed = true;
    clearTimeout(patience);
    clearInterval(pulse);
    player.srcObject = null;
    player.remove();
    peer.close();
    void context.close();
  };
  const lost = (message: string): void => {
    if (closed) return;
    const wasEstablished = established;
    close();
    if (wasEstablished) options.onLost(new ConnectionError(message, "lost"));
  };

  peer.ontrack = ({ track }) => {
    const stream = new MediaStream([track]);
    player.srcObject = stream;
    player.dataset.role = "voice";
    player.hidden = true;
    document.body.append(player); // Safari plays only elements in the document
    voice = new LevelMeter(context, context.createMediaStreamSource(stream));
  };
  let microphone: LevelMeter | undefined;
  const track = options.microphone?.getAudioTracks()[0];
  let sender: RTCRtpSender | undefined;
  if (options.microphone && track) {
    sender = peer.addTrack(track, options.microphone);
    microphone = new LevelMeter(context, context.createMediaStreamSource(options.microphone));
  } else {
    peer.addTransceiver("audio", { direction: "recvonly" });
  }
  const channel = peer.createDataChannel("oai-events");
  channel.onmessage = ({ data }) => options.onEvent(JSON.parse(data as string) as ServerEvent);
  const opened = new Promise<void>((resolve, reject) => {
    const timeout = setTimeout(
      () => reject(new ConnectionError("The server was found, but no sound path to it.", "unreachable")),
      CONNECT_TIMEOUT_MS,
    );
    channel.onopen = () => {
      clearTimeout(timeout);
      resolve();
    };
    peer.onconnectionstatechange = () => {
      clearTimeout(patience);
      if (peer.connectionState === "failed") {
        clearTimeout(timeout);
        reject(new ConnectionError("No sound path to the server could be found.", "unreachable"));
        lost("The connection to the server was lost.");
      } else if (peer.connectionState === "disconnected") {
        patience = setTimeout(() => lost("The connection to the server was lost."), DISCONNECTED_TOLERANCE_MS);
      }
    };
  });
  opened.catch(() => undefined); // whoever awaits it below hears of it; a refused offer never does
  channel.onclose = () => lost("The server ended the conversation.");

  try {
    await peer.setLocalDescription(await peer.createOffer());
    const response = await fetch(`${options.origin}/v1/realtime/calls?model=${encodeURIComponent(options.model)}`, {
      method: "POST",
      headers: {
        "Content-Type": "application/sdp",
        ...(options.apiKey ? { Authorization: `Bearer ${options.apiKey}` } : {}),
      },
      body: peer.localDescription?.sdp ?? "",
    }).catch(() => {
      throw new ConnectionError("The server does not answer.", "unreachable");
    });
    if (!response.ok) throw await refusal(response);
    await peer.setRemoteDescription({ type: "answer", sdp: await response.text() });
    await opened;
  } catch (error) {
    close();
    throw error;
  }
  established = true;
  pulse = watch(peer, options.origin, () => lost("The server is gone."));

  const send = (event: ClientEvent): void => {
    if (channel.readyState === "open") channel.send(JSON.stringify(event));
  };
  return {
    kind: "webrtc",
    tailMs: TAIL_MS,
    send,
    setMicrophone: (open: boolean) => {
      // Without a track nothing is sent at all; a muted one would go on sending silence to be listened to.
      void sender?.replaceTrack(open ? (track ?? null) : null);
    },
    silence: () => send({ type: "output_audio_buffer.clear" }),
    levels: () => ({ microphone: microphone?.level() ?? 0, voice: voice?.level() ?? 0 }),
    close,
  };
}

/** Calls `gone` when nothing comes over the connection any more and nobody answers at the server's address either. A bad
 * network alone is given more time: there the question is not refused but gets no answer. */
function watch(peer: RTCPeerConnection, origin: string, gone: () => void): ReturnType<typeof setInterval> {
  let received = -1;
  let silent = 0;
  return setInterval(() => {
    void peer.getStats().then(async (reports) => {
      let bytes = 0;
      reports.forEach((report: { type: string; bytesReceived?: number }) => {
        if (report.type === "transport" || report.type === "inbound-rtp") bytes += report.bytesReceived ?? 0;
      });
      silent = bytes === received ? silent + 1 : 0;
      received = bytes;
      if (silent < SILENT_PULSES) return;
      const signal = AbortSignal.timeout(PULSE_MS);
      await fetch(`${origin}/healthz`, { mode: "no-cors", cache: "no-store", signal }).catch((error: DOMException) => {
        if (error.name !== "TimeoutError" && error.name !== "AbortError" && navigator.onLine) gone();
      });
    });
  }, PULSE_MS);
}
