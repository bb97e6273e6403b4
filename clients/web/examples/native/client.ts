import { AgogicClient, type CallAudio, webRtcOn } from "@agogic/client";
import { mediaDevices, RTCPeerConnection } from "react-native-webrtc";

/** The phone plays remote tracks by itself; there is nothing to measure them with. */
const phone: CallAudio = {
  play: () => undefined,
  listen: () => undefined,
  setVolume: () => undefined,
  setSpeaker: async () => undefined,
  levels: () => ({ microphone: 0, voice: 0 }),
  taps: () => undefined,
  close: () => undefined,
};

export const client = new AgogicClient(
  { url: "https://talk.example.org", transport: "webrtc", apiKey: async () => "ek_from_your_server" },
  {
    webrtc: webRtcOn({
      createPeer: ({ iceServers = [] }) =>
        new RTCPeerConnection({ iceServers }) as unknown as globalThis.RTCPeerConnection,
      createAudio: () => phone,
    }),
    openMicrophone: async () => (await mediaDevices.getUserMedia({ audio: true })) as unknown as MediaStream,
  },
);
