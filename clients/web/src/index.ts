export type { CallAudio } from "./browser-audio.js";
export {
  AgogicClient,
  type AgogicEvents,
  type AgogicOptions,
  type ClientState,
  type Surroundings,
} from "./client.js";
export type { Connect, Connection, ConnectOptions, Taps } from "./connection.js";
export { Conversation, type ToolEntry, type Turn, type TurnReport, type Word } from "./conversation.js";
export { AgogicError, type ErrorCode } from "./errors.js";
export type {
  ClientEvent,
  Item,
  JsonValue,
  RateReport,
  RateSetting,
  ResponseObject,
  ServerEvent,
  SessionObject,
  Timing,
  TokenPair,
} from "./events.js";
export { type Bar, FRAME_RATE_HZ, layOut, layOutHeard, type TimelineLayout, waterfall, type WaterfallStep } from "./layout.js";
export { meterLevel } from "./pcm.js";
export { type Devices, listDevices, openMicrophone } from "./microphone.js";
export type { Rates, SessionSettings, ToolDescription, TurnDetection, TurnMode } from "./settings.js";
export type { Tool, ToolResult } from "./tools.js";
export { connectWebRtc, type RtcPlatform, webRtcOn } from "./webrtc.js";
export { connectWebSocket } from "./websocket.js";
export { workletSource } from "./worklets.js";
