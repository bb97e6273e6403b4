import { useAgogic } from "@agogic/client/react";
import { createRoot } from "react-dom/client";

function Counter() {
  const { state, turns, answering, error, connect, close } = useAgogic({ rates: { output: 6.25 } });
  return (
    <main>
      <button onClick={state === "idle" ? connect : close}>{state === "idle" ? "Talk" : "End"}</button>
      <p id="said">{turns.map((turn) => `${turn.role}: ${turn.text}`).join("\n")}</p>
      <p>{error?.message ?? (answering ? "answering" : state)}</p>
    </main>
  );
}

createRoot(document.body).render(<Counter />);
