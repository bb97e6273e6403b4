export { AgogicClient, type AgogicOptions, type ClientState, type TurnMode } from "./client";
export { type Connection, ConnectionError } from "./connection";
export { Conversation, type Turn, type TurnReport, type Word } from "./conversation";
export type { ClientEvent, RateReport, RateSetting, ServerEvent, Timing, TokenPair } from "./events";
export { type Bar, FRAME_RATE_HZ, layOut, type TimelineLayout, waterfall, type WaterfallStep } from "./layout";
