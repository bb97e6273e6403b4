import { expect, it } from "vitest";
import type { ServerEvent } from "../src/events";
import { WordGate } from "../src/playhead";

const word = (delta: string, startS: number, item = "a"): ServerEvent => ({
  type: "response.output_audio_transcript.delta", item_id: item, delta, start_time: startS, end_time: startS + 0.4,
});

function gate(hasSound = true): { gate: WordGate; heard: string[] } {
  const heard: string[] = [];
  return { gate: new WordGate((event) => heard.push("delta" in event && event.delta ? event.delta : event.type), () => hasSound), heard };
}

it("holds words back until the loudspeaker reaches them", () => {
  const { gate: words, heard } = gate();
  for (const [text, at] of [["One", 0], ["large", 0.4], ["latte", 0.8]] as const) words.event(word(text, at));
  expect(heard).toEqual([]);
  words.heard("a", 0.0);
  words.heard("a", 0.5);
  expect(heard).toEqual(["One", "large"]);
});

it("lets everything else pass at once", () => {
  const { gate: words, heard } = gate();
  words.event({ type: "input_audio_buffer.cleared" });
  expect(heard).toEqual(["input_audio_buffer.cleared"]);
});

it("drops the words of a truncated item, and keeps those of the next", () => {
  const { gate: words, heard } = gate();
  words.event(word("never", 1));
  words.event({ type: "conversation.item.truncated", item_id: "a", audio_end_ms: 900 });
  words.event(word("next", 0, "b"));
  words.heard("b", 0);
  expect(heard).toEqual(["conversation.item.truncated", "next"]);
});

it("holds nothing back where no sound is played", () => {
  const { gate: words, heard } = gate(false);
  words.event(word("One", 5));
  expect(heard).toEqual(["One"]);
});
