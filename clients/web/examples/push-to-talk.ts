import { AgogicClient } from "@agogic/client";

const button = document.createElement("button");
const said = document.createElement("p");
document.body.append(button, said);

const client = new AgogicClient({ mode: "push" });
client.on("state", (state) => (button.textContent = state === "connected" ? "Hold to talk" : state));
client.on("change", ({ turns }) => (said.textContent = turns.map((turn) => turn.text).join("\n")));
button.onpointerdown = () => client.startTalking();
button.onpointerup = () => client.stopTalking();
button.textContent = "Connect";
button.onclick = () => void client.connect();
