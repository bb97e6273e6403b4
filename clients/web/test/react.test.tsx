// @vitest-environment jsdom
import { act } from "react";
import { createRoot } from "react-dom/client";
import { beforeEach, expect, it, vi } from "vitest";
import { type AgogicCall, useAgogic } from "../src/react";

let call: AgogicCall;

function Probe() {
  call = useAgogic({ url: "http://here", microphone: false });
  return <p>{`${call.state}: ${call.turns.map((turn) => turn.text).join(" / ")} ${call.error?.message ?? ""}`}</p>;
}

beforeEach(() => void vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true));

it("draws the call as it changes, keeps errors in the component and closes with it", async () => {
  const place = document.createElement("div");
  const root = createRoot(place);
  await act(async () => root.render(<Probe />));
  expect(place.textContent).toContain("idle");
  await act(async () => {
    call.client.conversation.apply({
      type: "conversation.item.added",
      item: { id: "u", type: "message", role: "user", content: [{ type: "input_text", text: "A latte." }] },
    });
    call.client.forget();
  });
  expect(call.turns).toEqual([]);
  vi.stubGlobal("WebSocket", class { static OPEN = 1; onerror?: () => void; constructor() { queueMicrotask(() => this.onerror?.()); } close() { /* never open */ } });
  await act(async () => call.connect());
  expect(place.textContent).toContain("does not answer");
  call.write("nobody hears this");
  const close = vi.spyOn(call.client, "close");
  await act(async () => root.unmount());
  expect(close).toHaveBeenCalled();
});
