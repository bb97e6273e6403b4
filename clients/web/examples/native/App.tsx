// The smallest app: a button, and what was said. Needs react-native, react-native-webrtc and @agogic/client.
import { type Turn } from "@agogic/client";
import { useEffect, useState } from "react";
import { Button, SafeAreaView, Text } from "react-native";
import { client } from "./client";

export default function App() {
  const [turns, setTurns] = useState<readonly Turn[]>([]);
  const [state, setState] = useState(client.state);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    const offs = [
      client.on("change", (conversation) => setTurns([...conversation.turns])),
      client.on("state", setState),
      client.on("error", (error) => setProblem(error.message)),
    ];
    return () => offs.forEach((off) => off());
  }, []);
  const toggle = (): void => {
    if (state === "idle") client.connect().catch((error: Error) => setProblem(error.message));
    else client.close();
  };
  return (
    <SafeAreaView>
      <Button title={state === "idle" ? "Talk" : state} onPress={toggle} />
      {turns.map((turn) => <Text key={turn.id}>{`${turn.role}: ${turn.text}`}</Text>)}
      <Text>{problem}</Text>
    </SafeAreaView>
  );
}
