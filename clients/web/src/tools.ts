import { AgogicError } from "./errors.js";
import type { ClientEvent, FunctionCallItem, JsonValue, ServerEvent } from "./events.js";
import type { ToolDescription } from "./settings.js";

/** A function that the model may call. What `run` returns is told to the model, as JSON unless it is a string. */
export interface Tool extends ToolDescription {
  run(args: Record<string, JsonValue>): unknown;
}

export interface ToolResult {
  callId: string;
  name: string;
  arguments: string;
  output: string;
}

/**
 * Runs the functions that an answer calls, all at once, and asks for the next answer when all of them are done.
 *
 * A function that throws is reported to the model and to `onError`; the conversation goes on.
 */
export class ToolRunner {
  constructor(
    private readonly tools: Record<string, Tool>,
    private readonly send: (event: ClientEvent) => void,
    private readonly ask: () => void,
    private readonly onResult: (result: ToolResult) => void,
    private readonly onError: (error: AgogicError) => void,
  ) {}

  async event(event: ServerEvent): Promise<void> {
    if (event.type !== "response.done" || event.response.status !== "completed") return;
    const calls = (event.response.output ?? []).filter((item): item is FunctionCallItem => item.type === "function_call");
    if (calls.length === 0) return;
    const results = await Promise.all(calls.map((call) => this.#run(call)));
    for (const result of results) {
      const item = { type: "function_call_output", call_id: result.callId, output: result.output };
      this.send({ type: "conversation.item.create", item });
      this.onResult(result);
    }
    this.ask();
  }

  async #run(call: FunctionCallItem): Promise<ToolResult> {
    const result = { callId: call.call_id, name: call.name, arguments: call.arguments };
    try {
      const tool = Object.hasOwn(this.tools, call.name) ? this.tools[call.name] : undefined;
      if (tool === undefined) throw new Error(`there is no function ${call.name}`);
      const output: unknown = await tool.run(JSON.parse(call.arguments || "{}") as Record<string, JsonValue>);
      return { ...result, output: typeof output === "string" ? output : JSON.stringify(output ?? null) };
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      this.onError(new AgogicError(`${call.name}: ${why}`, "tool", {}, { cause }));
      return { ...result, output: JSON.stringify({ error: why }) };
    }
  }
}
