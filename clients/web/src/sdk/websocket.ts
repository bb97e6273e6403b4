import { type Connection, ConnectionError, type ConnectOptions } from "./connection";
import type { ClientEvent, ServerEvent } from "./events";
import { LevelMeter } from "./levels";
import { decodePcm, encodePcm } from "./pcm";
import { WordGate } from "./playhead";

const RATE_HZ = 24_000;
const CONNECT_TIMEOUT_MS = 8000;

interface PlayerReport {
  item: string | null;
  heard: number;
}

/** Speech as base64 PCM in events. The page plays out, so it also says what was heard when it interrupts. */
export async function connectWebSocket(options: ConnectOptions): Promise<Connection> {
  const socket = await open(options);
  const context = new AudioContext();
  void context.resume();
  const sound = await Sound.create(context, options.microphone).catch((error: unknown) => {
    socket.close();
    void context.close();
    throw error;
  });
  let closed = false;
  let microphoneOpen = false;
  const send = (event: ClientEvent): void => {
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event));
  };
  const words = new WordGate(options.onEvent, () => context.state === "running");

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
    if (event.type === "input_audio_buffer.speech_started") silence();
    if (event.type === "response.output_audio.delta" && event.item_id !== undefined) {
      sound.play(event.item_id, decodePcm(event.delta ?? ""));
      const { delta: _sound, ...rest } = event;
      words.event(rest);
      return;
    }
    words.event(event);
  };
  socket.onmessage = ({ data }) => receive(JSON.parse(data as string) as ServerEvent);
  const close = (): void => {
    if (closed) return;
    closed = true;
    socket.close(1000);
    void context.close();
  };
  socket.onclose = ({ code }) => {
    if (closed) return;
    close();
    const why = code === 1001 || code === 1012 ? "The server is restarting." : "The connection to the server was lost.";
    options.onLost(new ConnectionError(why, "lost"));
  };

  return {
    kind: "websocket",
    tailMs: 40,
    send,
    setMicrophone: (value: boolean) => {
      microphoneOpen = value;
    },
    silence,
    levels: () => sound.levels(),
    close,
  };
}

function open({ origin, model, apiKey }: ConnectOptions): Promise<WebSocket> {
  const url = new URL("/v1/realtime", origin);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.searchParams.set("model", model);
  const protocols = ["realtime", ...(apiKey ? [`openai-insecure-api-key.${apiKey}`] : [])];
  const socket = new WebSocket(url, protocols);
  return new Promise((resolve, reject) => {
    const fail = (): void => {
      clearTimeout(timeout);
      socket.close();
      reject(new ConnectionError("The server does not answer, or refused the connection.", "unreachable"));
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

/** Microphone and loudspeaker as two audio worklets. */
class Sound {
  onHeard: (itemId: string | null, heardS: number) => void = () => undefined;
  onMicrophone: (samples: Float32Array) => void = () => undefined;
  #item: string | null = null;
  #sent = 0;
  #heard: PlayerReport = { item: null, heard: 0 };
  #playing = false;

  private constructor(
    private readonly player: AudioWorkletNode,
    private readonly voice: LevelMeter,
    private readonly microphone: LevelMeter | undefined,
    capture: AudioWorkletNode | undefined,
  ) {
    player.port.onmessage = ({ data }: MessageEvent<PlayerReport & { dry?: boolean }>) => {
      if (data.item !== null) this.#heard = data;
      if (data.dry) this.#playing = false;
      this.onHeard(data.item, data.heard / RATE_HZ);
    };
    if (capture) capture.port.onmessage = ({ data }: MessageEvent<Float32Array>) => this.onMicrophone(data);
  }

  static async create(context: AudioContext, stream: MediaStream | undefined): Promise<Sound> {
    await Promise.all(
      ["/assets/player-worklet.js", "/assets/capture-worklet.js"].map((path) => context.audioWorklet.addModule(path)),
    );
    const player = new AudioWorkletNode(context, "agogic-player", { numberOfInputs: 0, outputChannelCount: [1] });
    player.connect(context.destination);
    if (!stream) return new Sound(player, new LevelMeter(context, player), undefined, undefined);
    const source = context.createMediaStreamSource(stream);
    const capture = new AudioWorkletNode(context, "agogic-capture", { numberOfOutputs: 0 });
    source.connect(capture);
    return new Sound(player, new LevelMeter(context, player), new LevelMeter(context, source), capture);
  }

  play(itemId: string, samples: Float32Array): void {
    if (itemId !== this.#item) {
      this.#item = itemId;
      this.#sent = 0;
    }
    const start = this.#sent;
    this.#sent += samples.length; // before the buffer is handed over, which leaves nothing behind
    this.player.port.postMessage({ item: itemId, start, samples }, [samples.buffer]);
    this.#playing = true;
  }

  /** Drops what is queued; says which item was playing, if any, and how much of it was heard. */
  clear(): { itemId: string | null; heardMs: number } {
    this.player.port.postMessage({ clear: true });
    if (!this.#playing || this.#item === null) return { itemId: null, heardMs: 0 };
    this.#playing = false;
    const heard = this.#heard.item === this.#item ? this.#heard.heard : 0;
    return { itemId: this.#item, heardMs: Math.round((heard / RATE_HZ) * 1000) };
  }

  levels(): { microphone: number; voice: number } {
    return { microphone: this.microphone?.level() ?? 0, voice: this.voice.level() };
  }
}
