import type { Connection, ConnectOptions } from "./connection.js";
import { AgogicError } from "./errors.js";
import { type ClientEvent, parseEvent, type ServerEvent } from "./events.js";
import { Heartbeat } from "./heartbeat.js";
import { decodePcm, encodePcm } from "./pcm.js";
import { WordGate } from "./playhead.js";
import { Sound } from "./sound.js";
import { after } from "./timeout.js";

const CONNECT_TIMEOUT_MS = 8000;
const PROBE_TIMEOUT_MS = 1500;
const TAIL_MS = 40;
const STALE_CODE = 4004;
// Not one that says farewell: the session may go on.
const LOST_CODE = 4001;
const PLAY_OUT_MS = 1000;

/** Speech as base64 PCM in events. The page plays out, so it also says what was heard when it interrupts. */
export async function connectWebSocket(options: ConnectOptions): Promise<Connection> {
  const socket = await open(options);
  const early: ServerEvent[] = [];
  const resumed = options.resume ? resumption(socket, early) : Promise.resolve();
  resumed.catch(() => undefined);
  if (!options.resume) socket.onmessage = ({ data }) => early.push(parseEvent(data as string));
  const sound = await Sound.create(options.workletUrl).catch((error: unknown) => {
    socket.close();
    throw error;
  });
  await resumed.catch((error: unknown) => {
    socket.close();
    sound.close();
    throw error;
  });
  let state: "open" | "lost" | "closed" = "open";
  let microphoneOpen = false;
  const send = (event: ClientEvent): void => {
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event));
  };
  const words = new WordGate(options.onEvent, () => sound.isRunning);
  const close = (): void => {
    if (state === "closed") return;
    heartbeat.stop();
    if (state === "open") socket.close(1000);
    state = "closed";
    sound.close();
  };
  const lost = (error: AgogicError): void => {
    if (state !== "open") return;
    state = "lost";
    microphoneOpen = false;
    heartbeat.stop();
    socket.close(LOST_CODE);
    options.onLost(error);
  };
  const heartbeat = new Heartbeat(
    () => answers(options.url),
    () => lost(new AgogicError("The server does not answer any more.", "lost")),
  );

  const silence = (): void => {
    const { itemId, heardMs } = sound.clear();
    if (itemId === null) return;
    words.drop(itemId);
    send({ type: "conversation.item.truncate", item_id: itemId, content_index: 0, audio_end_ms: heardMs });
  };
  sound.onHeard = (itemId, heardS) => words.heard(itemId, heardS);
  sound.onMicrophone = (samples) => {
    if (microphoneOpen) send({ type: "input_audio_buffer.append", audio: encodePcm(samples) });
  };
  const receive = (event: ServerEvent): void => {
    options.onReceived?.(event);
    if (event.type === "input_audio_buffer.speech_started") silence();
    if (event.type === "response.output_audio.delta") {
      const { delta, ...rest } = event;
      sound.play(event.item_id, decodePcm(delta ?? ""), event.x_agogic?.start_time);
      words.event(rest);
      return;
    }
    words.event(event);
  };
  socket.onmessage = ({ data }) => {
    heartbeat.alive();
    receive(parseEvent(data as string));
  };
  socket.onclose = ({ code }) => lost(farewell(code));
  if (socket.readyState !== WebSocket.OPEN) {
    close();
    throw farewell(1006);
  }
  queueMicrotask(() => early.forEach(receive));

  return {
    kind: "websocket",
    tailMs: TAIL_MS,
    send,
    attachMicrophone: (stream) => sound.attach(stream),
    openMicrophone: (value) => {
      microphoneOpen = value;
    },
    silence,
    setVolume: (volume) => sound.setVolume(volume),
    setSpeaker: (deviceId) => sound.setSpeaker(deviceId),
    levels: () => sound.levels(),
    taps: () => sound.taps(),
    playedOut: async (goesOn) => {
      const until = Date.now() + PLAY_OUT_MS;
      while (state === "lost" && sound.isPlaying && Date.now() < until) await new Promise((done) => setTimeout(done, 20));
      if (goesOn) words.flush();
    },
    close,
  };
}

function farewell(code: number): AgogicError {
  if (code === 1008) return new AgogicError("The session has ended.", "expired");
  if (code === 1001 || code === 1012) return new AgogicError("The server is restarting.", "lost");
  return new AgogicError("The connection to the server was lost.", "lost");
}

/** Whether the server's event loop turns. Asked beside the socket: a question on it would keep idle sessions alive. */
async function answers(url: string): Promise<boolean> {
  const signal = after(PROBE_TIMEOUT_MS);
  await fetch(`${url}/healthz`, { mode: "no-cors", cache: "no-store", signal });
  return true;
}

/** The server takes a lost session up, or says that it knows none; a browser cannot read why a WebSocket is refused. */
function resumption(socket: WebSocket, early: ServerEvent[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (code: number): void =>
      reject(code === STALE_CODE ? new AgogicError("The session is gone.", "stale") : farewell(code));
    socket.onmessage = ({ data }) => {
      const event = parseEvent(data as string);
      if (event.type === "error") return;
      early.push(event);
      resolve();
    };
    socket.onclose = ({ code }) => fail(code);
    if (socket.readyState !== WebSocket.OPEN) fail(1006);
  });
}

function open({ url, model, apiKey, resume }: ConnectOptions): Promise<WebSocket> {
  const address = new URL("/v1/realtime", url);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  address.searchParams.set("model", model);
  if (resume) {
    address.searchParams.set("resume", resume.token);
    address.searchParams.set("after", resume.after);
  }
  const socket = new WebSocket(address, ["realtime", ...(apiKey ? [`openai-insecure-api-key.${apiKey}`] : [])]);
  return new Promise((resolve, reject) => {
    const fail = (): void => {
      clearTimeout(timeout);
      socket.close();
      reject(new AgogicError("The server does not answer, or refused the connection.", "unreachable"));
    };
    const timeout = setTimeout(fail, CONNECT_TIMEOUT_MS);
    socket.onerror = fail;
    socket.onopen = () => {
      clearTimeout(timeout);
      socket.onerror = null;
      resolve(socket);
    };
  });
}
