import { AgogicClient } from "@agogic/client";

const prices = { small: 4, medium: 4.25, large: 4.5 };
const client = new AgogicClient({
  microphone: false,
  tools: {
    price: {
      description: "What a drink of this size costs, in dollars",
      parameters: { type: "object", properties: { size: { enum: ["small", "medium", "large"] } }, required: ["size"] },
      run: ({ size }) => ({ dollars: prices[size as keyof typeof prices] }),
    },
  },
});
client.on("change", ({ turns, tools }) => {
  document.body.textContent = [...turns.map(({ text }) => text), ...tools.map(({ output }) => output)].join("\n");
});
await client.connect();
client.write("How much is a large one?");
