// pipecat's client and its SmallWebRTC transport as they come. Only the addresses are ours.
import { PipecatClient, RTVIEvent } from "@pipecat-ai/client-js";
import { SmallWebRTCTransport, WavMediaManager } from "@pipecat-ai/small-webrtc-transport";

interface Report {
  ready: unknown;
  events: string[];
  heard: string[];
  said: string[];
  words: string[];
  errors: string[];
}

declare global {
  interface Window {
    rtviReport: Report;
    connectPipecat: () => Promise<void>;
    writePipecat: (text: string, audio: boolean) => Promise<void>;
    requestPipecat: () => Promise<unknown>;
    leavePipecat: () => Promise<void>;
  }
}

const report: Report = { ready: null, events: [], heard: [], said: [], words: [], errors: [] };
window.rtviReport = report;
const player = document.createElement("audio");
player.autoplay = true;
player.dataset.role = "voice";
document.body.append(player);

// Its other media manager loads the camera's code from the network.
const transport = new SmallWebRTCTransport({ mediaManager: new WavMediaManager() });
const client = new PipecatClient({ transport, enableMic: true, enableCam: false });
for (const event of [
  RTVIEvent.Connected,
  RTVIEvent.BotConnected,
  RTVIEvent.BotReady,
  RTVIEvent.UserStartedSpeaking,
  RTVIEvent.UserStoppedSpeaking,
  RTVIEvent.BotLlmStarted,
  RTVIEvent.BotLlmStopped,
  RTVIEvent.BotTtsStarted,
  RTVIEvent.BotTtsStopped,
  RTVIEvent.BotStartedSpeaking,
  RTVIEvent.BotStoppedSpeaking,
  RTVIEvent.BotDisconnected,
  RTVIEvent.Disconnected,
]) {
  client.on(event, () => report.events.push(event));
}
client.on(RTVIEvent.UserTranscript, ({ text, final }) => final && report.heard.push(text));
client.on(RTVIEvent.BotOutput, ({ text }) => report.said.push(text));
client.on(RTVIEvent.BotTtsText, ({ text }) => report.words.push(text));
client.on(RTVIEvent.Error, ({ data }) => report.errors.push(JSON.stringify(data)));
client.on(RTVIEvent.TrackStarted, (track, participant) => {
  if (track.kind === "audio" && !participant?.local) player.srcObject = new MediaStream([track]);
});

window.connectPipecat = async () => {
  report.ready = await client.startBotAndConnect({ endpoint: `${location.origin}/start`, requestData: {} });
};
window.writePipecat = (text, audio) => client.sendText(text, { audio_response: audio });
window.requestPipecat = () => client.sendClientRequest("weather", {}).catch((refused: { data: unknown }) => refused.data);
window.leavePipecat = () => client.disconnect();
