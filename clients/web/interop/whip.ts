// Eyevinn's WHIP client as it comes: it only sends.
import { WHIPClient } from "@eyevinn/whip-web-client";

declare global {
  interface Window {
    publish(): Promise<string>;
    unpublish(): Promise<void>;
  }
}

let client: WHIPClient;

window.publish = async () => {
  client = new WHIPClient({ endpoint: `${location.origin}/whip`, opts: { iceServers: [] } });
  await client.ingest(await navigator.mediaDevices.getUserMedia({ audio: true }));
  return client.getResourceUrl();
};
window.unpublish = () => client.destroy();
