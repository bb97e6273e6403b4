import { describe, expect, it } from "vitest";
import { Conversation } from "../src/conversation";
import type { ServerEvent } from "../src/events";

function apply(...events: ServerEvent[]): Conversation {
  const conversation = new Conversation();
  for (const event of events) conversation.apply(event);
  return conversation;
}

const answer = (...words: string[]): ServerEvent[] => [
  { type: "response.created", response: { id: "r", status: "in_progress" } },
  { type: "response.output_item.added", response_id: "r", item: { id: "a", type: "message", role: "assistant" } },
  ...words.map((word, index) => ({
    type: "response.output_audio_transcript.delta" as const,
    item_id: "a",
    delta: index === 0 ? word : ` ${word}`,
    start_time: index * 0.4,
    end_time: index * 0.4 + 0.4,
    x_agogic: { tokens: [[index, 5]] as [number, number][] },
  })),
];

describe("Conversation", () => {
  it("forgets what was being said where the client clears the buffer", () => {
    const conversation = apply(
      { type: "input_audio_buffer.speech_started", item_id: "u" },
      { type: "x_agogic.input_transcript", item_id: "u", transcript: "a lard" },
      { type: "input_audio_buffer.cleared" },
    );
    expect([conversation.turns, conversation.userSpeaking]).toEqual([[], false]);
    conversation.apply({ type: "conversation.item.added", item: { id: "t", type: "message", role: "user", content: [{ type: "input_text", text: "hi" }] } });
    expect(conversation.apply({ type: "input_audio_buffer.cleared" })).toBe(false);
    expect(conversation.turns).toHaveLength(1);
  });

  it("shows the user's words as they are recognised, revised, and then as they stand", () => {
    const conversation = apply(
      { type: "input_audio_buffer.speech_started", item_id: "u" },
      { type: "x_agogic.input_transcript", item_id: "u", transcript: "a lard" },
      { type: "x_agogic.input_transcript", item_id: "u", transcript: "a large latte" },
    );
    expect(conversation.turns).toMatchObject([{ role: "user", text: "a large latte", status: "open" }]);
    expect(conversation.userSpeaking).toBe(true);
    conversation.apply({
      type: "conversation.item.input_audio_transcription.completed", item_id: "u", transcript: "a large latte please",
    });
    expect(conversation.turns[0]).toMatchObject({ text: "a large latte please", status: "done" });
  });

  it("keeps a turn that goes on after a pause in one line, without unsaying its beginning", () => {
    const conversation = apply(
      { type: "input_audio_buffer.speech_started", item_id: "u1" },
      { type: "input_audio_buffer.committed", item_id: "u1" },
      {
        type: "conversation.item.input_audio_transcription.completed", item_id: "u1", transcript: "a large latte",
      },
      { type: "input_audio_buffer.speech_started", item_id: "u2", x_agogic: { continues: "u1" } },
      { type: "x_agogic.input_transcript", item_id: "u2", transcript: "a large" },
    );
    expect(conversation.turns).toMatchObject([{ id: "u2", text: "a large latte", status: "open" }]);
    for (const event of [
      { type: "x_agogic.input_transcript", item_id: "u2", transcript: "a large latte with milk" },
      { type: "conversation.item.deleted", item_id: "u1" },
      { type: "input_audio_buffer.committed", item_id: "u2" },
    ] satisfies ServerEvent[]) conversation.apply(event);
    expect(conversation.turns).toMatchObject([{ id: "u2", text: "a large latte with milk", status: "open" }]);
  });

  it("does not say twice what was already on the screen when the turn is committed", () => {
    const conversation = apply(
      { type: "x_agogic.input_transcript", item_id: "u", transcript: "a large" },
      { type: "conversation.item.input_audio_transcription.delta", item_id: "u", delta: "a large" },
      { type: "conversation.item.input_audio_transcription.delta", item_id: "u", delta: " latte" },
    );
    expect(conversation.turns[0]!.text).toBe("a large latte");
  });

  it("does not let a late partial transcript undo the final one", () => {
    const conversation = apply(
      { type: "conversation.item.input_audio_transcription.completed", item_id: "u", transcript: "final" },
      { type: "x_agogic.input_transcript", item_id: "u", transcript: "fin" },
    );
    expect(conversation.turns[0]?.text).toBe("final");
  });

  it("collects words and tokens of the answer as they are heard", () => {
    const turn = apply(...answer("One", "large", "latte.")).lastSpoken;
    expect(turn).toMatchObject({ text: "One large latte.", status: "open", tokens: [[0, 5], [1, 5], [2, 5]] });
    expect(turn?.words[1]).toEqual({ text: "large", startS: 0.4, endS: 0.8 });
  });

  it("takes tokens from the sound where it travels in events", () => {
    const conversation = apply(...answer(), {
      type: "response.output_audio_transcript.delta", item_id: "a", delta: "One", start_time: 0, end_time: 0.4,
    }, { type: "response.output_audio.delta", item_id: "a", x_agogic: { tokens: [[7, 3], [9, 2]] } });
    expect(conversation.lastSpoken?.tokens).toEqual([[7, 3], [9, 2]]);
  });

  it("keeps only what was heard of an interrupted answer", () => {
    const conversation = apply(
      ...answer("One", "large", "latte."),
      { type: "response.done", response: { id: "r", status: "cancelled" } },
      { type: "conversation.item.truncated", item_id: "a", audio_end_ms: 700 },
    );
    expect(conversation.turns[0]).toMatchObject({ text: "One large", status: "interrupted", heardS: 0.7 });
    expect(conversation.responding).toBe(false);
    expect(conversation.report).toBeUndefined();
  });

  it("reports rates and times of a finished answer, and its tokens whole", () => {
    const conversation = apply(...answer("One"), {
      type: "response.done",
      response: {
        id: "r", status: "completed",
        x_agogic: {
          tokens: [[1, 2], [2, 3], [3, 1]],
          output_frame_rate: { requested_hz: 6.25, realised_hz: 6.4 },
          timing: { first_audio_ms: 120 },
        },
      },
    });
    expect(conversation.turns[0]).toMatchObject({ status: "done", tokens: [[1, 2], [2, 3], [3, 1]] });
    expect(conversation.report).toMatchObject({ output: { realised_hz: 6.4 }, timing: { first_audio_ms: 120 } });
  });

  it("shows typed text at once and forgets deleted items", () => {
    const conversation = apply({
      type: "conversation.item.added",
      item: { id: "t", type: "message", role: "user", content: [{ type: "input_text", text: "A latte." }] },
    });
    expect(conversation.turns).toMatchObject([{ text: "A latte.", status: "done" }]);
    conversation.apply({ type: "conversation.item.deleted", item_id: "t" });
    expect(conversation.turns).toEqual([]);
  });

  it("keeps how what was heard was merged, beside how long it was", () => {
    const conversation = apply(
      { type: "input_audio_buffer.speech_started", item_id: "u", audio_start_ms: 1000 },
      { type: "input_audio_buffer.speech_stopped", item_id: "u", audio_end_ms: 2500 },
      { type: "x_agogic.input_tokens", item_id: "u", durations_ms: [160, 640, 240] },
    );
    expect(conversation.lastHeard).toMatchObject({ id: "u", durationS: 1.5, heardDurationsMs: [160, 640, 240] });
  });

  it("says whether an event changed anything, and survives events it does not know", () => {
    const conversation = new Conversation();
    expect(conversation.apply({ type: "rate_limits.updated" })).toBe(false);
    expect(conversation.apply({ type: "conversation.item.truncated", item_id: "nobody", audio_end_ms: 5 })).toBe(false);
  });
});
