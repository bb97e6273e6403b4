"""`agogic bench bargein`: how soon a caller in Chromium hears the agent no more when he speaks over it, over WebRTC.

A running service with its model, a real browser, real time. The browser's own audio clock counts both: the first
sample of the caller's voice as it leaves the graph that is his microphone, and the last sample of the agent's as it
comes out of the browser's jitter buffer. What sound cards add on either side is not in it.

`silent_after_onset_ms` is until the agent is not heard any more. It is silent before anybody knows whether it has to
stop; `decided_after_onset_ms` is when it knew, `silent_after_decision_ms` what was heard of it after that.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from benchmarks.attacks.server import attacked
from benchmarks.progress import Progress

SAMPLE_RATE_HZ = 16_000
SAYING = (
    "Okay, one sixteen ounce triple shot medium roast cappuccino with a lot of whole milk and lots of sweetener. "
    "Anything else?"
)
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",
)
_ROUND_S = 30.0


class BrowserError(Exception):
    """Chromium or playwright is missing; the message says what to do."""


class Heard(msgspec.Struct, frozen=True):
    """Of one interruption, in s of the browser's audio clock; loud: [at, peak] of what came of the agent's voice."""

    onset_s: float
    decided_s: float | None
    loud: list[tuple[float, float]]


@dataclass(frozen=True)
class Voice:
    """float32 [N] at 16 kHz, from its first loud sample on."""

    sound: np.ndarray


_CALL = """async () => {
  const context = new AudioContext({ sampleRate: 48000 });
  await context.resume();
  const meter = `registerProcessor('meter', class extends AudioWorkletProcessor {
    process(inputs) {
      const sound = inputs[0][0];
      if (sound) this.port.postMessage([currentTime, sound.reduce((most, x) => Math.max(most, Math.abs(x)), 0)]);
      return true;
    }
  })`;
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([meter], { type: 'text/javascript' })));
  const microphone = context.createMediaStreamDestination();
  const floor = context.createConstantSource();
  floor.offset.value = 0;
  floor.connect(microphone);
  floor.start();
  const peer = new RTCPeerConnection();
  peer.addTrack(microphone.stream.getAudioTracks()[0], microphone.stream);
  const call = (window.call = { context, microphone, levels: [], events: [] });
  peer.ontrack = ({ streams }) => {
    const element = (call.element = new Audio());  // Chromium gives a graph nothing that no element plays
    element.srcObject = streams[0];
    element.muted = true;
    element.play();
    const node = new AudioWorkletNode(context, 'meter');
    node.port.onmessage = ({ data }) => call.levels.push(data);
    context.createMediaStreamSource(streams[0]).connect(node);
    const muted = context.createGain();  // nor does it work off what leads to no destination
    muted.gain.value = 0;
    node.connect(muted).connect(context.destination);
  };
  call.channel = peer.createDataChannel('oai-events');
  call.channel.onmessage = ({ data }) => call.events.push([context.currentTime, JSON.parse(data)]);
  const opened = new Promise((resolve) => (call.channel.onopen = resolve));
  await peer.setLocalDescription(await peer.createOffer());
  const answer = await fetch('/v1/realtime/calls', {
    method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body: peer.localDescription.sdp });
  await peer.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
  await opened;
}"""
_INTERRUPT = """async ({ pcm, rate, after, saying }) => {
  const { context, microphone, channel } = window.call;
  const until = async (wanted) => {
    while (!wanted()) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  const events = (window.call.events = []);
  window.call.levels = [];
  channel.send(JSON.stringify({ type: 'response.create', response: { x_agogic: { say: saying } } }));
  await until(() => window.call.levels.some(([, peak]) => peak > 0.01));
  const began = context.currentTime;
  await until(() => context.currentTime > began + after);
  const samples = new Float32Array(Uint8Array.from(atob(pcm), (letter) => letter.charCodeAt(0)).buffer);
  const buffer = context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(microphone);
  const onset = context.currentTime + 0.02;
  source.start(onset);
  await until(() => events.some(([, event]) => event.type === 'response.done'));
  await until(() => context.currentTime > onset + 1.5);
  const decided = events.find(([, event]) => event.type === 'input_audio_buffer.speech_started');
  const ended = context.currentTime;
  const levels = window.call.levels.filter(([at, peak]) => peak > 0.003 && at > onset - 1 && at < onset + 1.5);
  // Whatever is answered to that is cut off before the next round.
  await until(() => context.currentTime > Math.max(ended, onset + buffer.duration) + 1.0);
  channel.send(JSON.stringify({ type: 'response.cancel' }));
  await until(() => context.currentTime > ended + 2.0);
  return { onset_s: onset, decided_s: decided ? decided[0] : null, loud: levels };
}"""


def run(
    model: str, voices: Sequence[Voice], rounds: int, progress: Progress | None = None, seed: int = 3
) -> dict[str, object]:
    """Raises BrowserError and ServerError."""
    server = attacked(model, None, 1)
    server.start()
    try:
        heard = asyncio.run(_call(server.url, voices, rounds, seed, progress))
    finally:
        server.stop()
    return report(heard)


def report(heard: Sequence[Heard]) -> dict[str, object]:
    """Of the rounds in which the agent was heard when the voice began."""
    audible = [one for one in heard if any(one.onset_s - 0.15 < at <= one.onset_s + 0.1 for at, _ in one.loud)]
    silent = [_ms(max(at for at, _ in one.loud) - one.onset_s) for one in audible]
    stopped = [(one, last) for one, last in zip(audible, silent, strict=True) if one.decided_s is not None]
    decided = [_ms((one.decided_s or 0.0) - one.onset_s) for one, _ in stopped]
    after = [max(0.0, last - at) for (_, last), at in zip(stopped, decided, strict=True)]
    return {
        "interruptions": len(heard),
        "audible": len(audible),
        "stopped": len(stopped),
        **_spread("silent_after_onset_ms", silent),
        **_spread("decided_after_onset_ms", decided),
        **{f"{name}_gap": value for name, value in _spread("silent_after_decision_ms", after).items()},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _ms(seconds: float) -> float:
    return max(0.0, seconds * 1000)


def _spread(name: str, values: Sequence[float]) -> dict[str, object]:
    if not values:
        return {}
    return {f"{name}_p50": round(statistics.median(values)), f"{name}_p95": round(float(np.percentile(values, 95)))}


async def _call(url: str, voices: Sequence[Voice], rounds: int, seed: int, progress: Progress | None) -> list[Heard]:
    try:
        from playwright.async_api import async_playwright
    except ImportError as error:
        raise BrowserError('playwright is not installed; run pip install -e ".[dev]"') from error
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        raise BrowserError("Chromium is not installed; install the Debian package chromium")
    rng, heard = random.Random(seed), []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        page = await browser.new_page()
        await page.goto(f"{url}/healthz")
        await page.evaluate(_CALL)
        for number in range(rounds):
            sound = voices[number % len(voices)].sound.astype("<f4")
            given = {
                "pcm": base64.b64encode(sound.tobytes()).decode(),
                "rate": SAMPLE_RATE_HZ,
                "after": rng.uniform(0.5, 3.0),
                "saying": SAYING,
            }
            async with asyncio.timeout(_ROUND_S):
                heard.append(msgspec.convert(await page.evaluate(_INTERRUPT, given), Heard))
            if progress is not None:
                progress(number + 1, rounds)
        await browser.close()
    return heard
