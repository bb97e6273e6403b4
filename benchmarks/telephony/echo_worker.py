"""A worker without a model, so that the protocol can be measured alone: it gives back what it heard, or a tone.

python -m benchmarks.telephony.echo_worker --socket PATH [--tone-s SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np

from agent import wire

SAMPLE_RATE_HZ = 24_000
SLOTS = 256
_PIECE_S = 0.4
_LONGEST_S = 4.0


class Connection:
    def __init__(self, writer: asyncio.StreamWriter, tone_s: float) -> None:
        self._writer = writer
        self._tone_s = tone_s
        self._heard: dict[int, np.ndarray] = {}

    async def run(self, reader: asyncio.StreamReader) -> None:
        self._send(wire.Ready(wire.WIRE_VERSION, "echo", SLOTS, SAMPLE_RATE_HZ, codec_frame_rate_hz=12.5))
        while (payload := await wire.read_frame(reader)) is not None:
            self._handle(wire.to_worker_decoder.decode(payload))

    def _send(self, message: wire.Message) -> None:
        self._writer.write(wire.encode(message))

    def _handle(self, message: wire.ToWorker) -> None:
        match message:
            case wire.Ping():
                self._send(wire.Pong(message.number))
            case wire.OpenSession():
                self._send(wire.SessionOpened(message.session))
            case wire.StartUtterance():
                self._heard[message.session] = np.zeros(0, np.int16)
            case wire.AudioIn():
                heard = self._heard.get(message.session, np.zeros(0, np.int16))
                self._heard[message.session] = np.concatenate([heard, np.frombuffer(message.pcm, "<i2")])
            case wire.EndUtterance():
                self._send(wire.Transcript(message.session, message.utterance, "something", final=True))
            case wire.Respond():
                self._answer(message)
            case _:
                pass

    def _answer(self, message: wire.Respond) -> None:
        sound = self._tone() if self._tone_s else _faster(self._heard.get(message.session, np.zeros(0, np.int16)))
        size = int(_PIECE_S * SAMPLE_RATE_HZ)
        for first in range(0, sound.size, size):
            piece = sound[first : first + size]
            words = [wire.WordSpan("la", first, first + piece.size)]
            token = [wire.TokenSpan(code=1, duration_frames=max(1, piece.size * 25 // (2 * SAMPLE_RATE_HZ)))]
            pcm = piece.astype("<i2").tobytes()
            self._send(wire.AudioOut(message.session, message.generation, first, pcm, token, words))
        text = " ".join(["la"] * -(-sound.size // size)) or "la"
        done = wire.ResponseStats(text_tokens=1, speech_tokens=1, speech_frames=1)
        self._send(wire.ResponseDone(message.session, message.generation, "completed", text, done))

    def _tone(self) -> np.ndarray:
        times = np.arange(int(self._tone_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tone: np.ndarray = (6000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
        return tone


def _faster(sound: np.ndarray) -> np.ndarray:
    """16 to 24 kHz; how it sounds does not matter here."""
    sound = sound[: int(_LONGEST_S * 16_000)]
    places = np.arange(sound.size * 3 // 2) * 2 / 3
    echoed: np.ndarray = np.interp(places, np.arange(sound.size), sound).astype(np.int16) if sound.size else sound
    return echoed


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--tone-s", type=float, default=0.0)
    args = parser.parse_args()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await Connection(writer, args.tone_s).run(reader)
        finally:
            writer.close()

    # Bound beside its final name: whoever waits for the socket must find it listening.
    hidden = args.socket.with_suffix(".new")
    server = await asyncio.start_unix_server(serve, str(hidden))
    hidden.rename(args.socket)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
