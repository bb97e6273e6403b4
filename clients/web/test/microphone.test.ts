import { expect, it, vi } from "vitest";
import { keepAudible, listDevices, openMicrophone } from "../src/microphone";
import { FakeAudioContext, stubAudio } from "./fakes";

it("says what to do about each way a microphone can fail", async () => {
  for (const [name, words] of [["NotAllowedError", /Allow it/], ["NotFoundError", /Plug one in/], ["NotReadableError", /another program/]] as const) {
    vi.stubGlobal("navigator", { mediaDevices: { getUserMedia: async () => { throw new DOMException("", name); } } });
    await expect(openMicrophone()).rejects.toMatchObject({ code: "microphone", message: words });
  }
  vi.stubGlobal("navigator", {});
  await expect(openMicrophone()).rejects.toThrow(/HTTPS/);
});

it("lists devices by name, and by number where the browser keeps names to itself", async () => {
  const devices = [
    { kind: "audioinput", deviceId: "m", label: "Headset" }, { kind: "audioinput", deviceId: "n", label: "" },
    { kind: "audiooutput", deviceId: "", label: "" }, { kind: "videoinput", deviceId: "v", label: "Camera" },
  ];
  vi.stubGlobal("navigator", { mediaDevices: { enumerateDevices: async () => devices } });
  expect(await listDevices()).toEqual({
    microphones: [{ id: "m", label: "Headset" }, { id: "n", label: "Microphone 2" }], speakers: [],
  });
  vi.stubGlobal("navigator", {});
  expect(await listDevices()).toEqual({ microphones: [], speakers: [] });
});

it("tells a phone that this is a call, and wakes the sound when the page is seen again", () => {
  stubAudio();
  const audioSession = { type: "auto" };
  vi.stubGlobal("navigator", { audioSession });
  const context = new FakeAudioContext();
  const rest = keepAudible(context as unknown as AudioContext);
  expect(audioSession.type).toBe("play-and-record");
  context.state = "interrupted";
  document.dispatchEvent(new Event("visibilitychange"));
  expect(context.state).toBe("running");
  rest();
  context.state = "interrupted";
  document.dispatchEvent(new Event("visibilitychange"));
  expect(context.state).toBe("interrupted");
  expect(audioSession.type).toBe("auto");
});
