import type { Conversation } from "./conversation.js";
import type { ClientEvent } from "./events.js";

/**
 * The events that tell a fresh session what was said in an earlier one, oldest first.
 *
 * Turns keep their ids, so that the session's own reports about them change no line of the transcript. A question that
 * was not understood yet is left out; of an interrupted answer only what was heard is told.
 */
export function replay(conversation: Conversation): ClientEvent[] {
  const events: ClientEvent[] = [];
  const create = (item: Record<string, unknown>): void => {
    events.push({ type: "conversation.item.create", item });
  };
  const calledAfter = (turnId: string | undefined): void => {
    for (const tool of conversation.tools.filter((entry) => entry.afterTurnId === turnId)) {
      create({ type: "function_call", call_id: tool.callId, name: tool.name, arguments: tool.arguments });
      create({ type: "function_call_output", call_id: tool.callId, output: tool.output });
    }
  };
  calledAfter(undefined);
  for (const turn of conversation.turns) {
    const text = turn.text.trim();
    if (text !== "" && turn.status !== "open") {
      const kind = turn.role === "user" ? "input_text" : "output_text";
      create({ type: "message", id: turn.id, role: turn.role, content: [{ type: kind, text }] });
    }
    calledAfter(turn.id);
  }
  return events;
}
