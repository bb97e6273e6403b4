import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from "react";
import { AgogicClient, type AgogicOptions, type ClientState } from "./client.js";
import type { Turn, TurnReport } from "./conversation.js";
import { AgogicError } from "./errors.js";

export interface AgogicCall {
  /** For everything that has no short form here. */
  client: AgogicClient;
  state: ClientState;
  turns: readonly Turn[];
  report: TurnReport | undefined;
  /** Why the last call ended or could not begin. */
  error: AgogicError | undefined;
  userSpeaking: boolean;
  answering: boolean;
  /** Never rejects: what goes wrong is in `error`. */
  connect: () => Promise<void>;
  close: () => void;
  write: (text: string) => void;
}

/** One call for as long as the component lives. `options` are read once, when it is first drawn. */
export function useAgogic(options: AgogicOptions = {}): AgogicCall {
  const [client] = useState(() => new AgogicClient(options));
  const [error, setError] = useState<AgogicError>();
  const version = useRef(0);
  const subscribe = useCallback(
    (changed: () => void) => {
      const next = (): void => {
        version.current += 1;
        changed();
      };
      const offs = [client.on("state", next), client.on("change", next), client.on("error", setError)];
      return () => {
        for (const off of offs) off();
      };
    },
    [client],
  );
  useSyncExternalStore(
    subscribe,
    () => version.current,
    () => 0,
  );
  useEffect(() => () => client.close(), [client]);
  const connect = useCallback(async () => {
    setError(undefined);
    await client.connect().catch((problem: unknown) => {
      setError(problem instanceof AgogicError ? problem : new AgogicError(String(problem), "lost"));
    });
  }, [client]);
  const { conversation } = client;
  return {
    client,
    state: client.state,
    turns: [...conversation.turns],
    report: conversation.report,
    error,
    userSpeaking: conversation.userSpeaking,
    answering: conversation.responding || conversation.playing,
    connect,
    close: useCallback(() => client.close(), [client]),
    write: useCallback((text: string) => client.write(text), [client]),
  };
}
