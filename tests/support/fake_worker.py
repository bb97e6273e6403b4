"""A worker without a model: it speaks the wire, hears a fixed transcript and answers with a tone, at a given speed.

    python -m tests.support.fake_worker --socket PATH [--reply TEXT] [--pace FACTOR] [--slots N] [--die-after N]
        [--stall-after N] [--model NAME] [--recite] [--direct HOST:PORT --door FILE]

The word at position i sounds for 0.4 s at (300 + 20 i) Hz, one token of 5 codec frames each. `--die-after N` ends the
process after the first chunk of the N-th response, as a crash would; `--stall-after N` never gets on with the N-th.
`--recite` answers with all that the user has said or written so far, as the worker was told. `--direct` lets services
on other machines in, as the real worker does. SIGTERM lets its sessions leave, the second ends it, as with a real one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agent import wire
from worker.door import WorkerDoor

SAMPLE_RATE_HZ = 24_000
WORD_FRAMES = 5
WORD_SAMPLES = WORD_FRAMES * SAMPLE_RATE_HZ * 2 // 25
TRANSCRIPT = "a large latte please"
REPLY = "One large latte. That is four fifty."


@dataclass
class Behaviour:
    reply: str = REPLY
    transcript: str = TRANSCRIPT
    pace: float = 0.0
    slots: int = 4
    die_after: int = 0
    stall_after: int = 0
    first_delay_s: float = 0.0
    recite: bool = False
    model: str = "fake"


@dataclass
class _Utterance:
    samples: int = 0
    ended: bool = False


@dataclass
class _Slot:
    utterances: dict[int, _Utterance] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class FakeWorker:
    """Serves one socket. `received` keeps every message but audio and pings, `heard_samples` counts audio per
    utterance."""

    def __init__(self, socket: Path, behaviour: Behaviour | None = None, door: WorkerDoor | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.received: list[wire.Message] = []
        self.heard_samples: dict[tuple[int, int], int] = {}
        self._socket = socket
        self._server: asyncio.Server | None = None
        self._door = door
        self._connections: set[_Connection] = set()
        self._responses = 0
        self.draining = self.stopped = False

    async def __aenter__(self) -> FakeWorker:
        # Bound beside its final name: whoever waits for the socket must find it listening.
        if self._door is not None:
            await self._door.open(self._serve)
        hidden = self._socket.with_suffix(".new")
        self._server = await asyncio.start_unix_server(self._serve, str(hidden))
        hidden.rename(self._socket)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def drain(self) -> None:
        """It was told to go; the second time, at once."""
        self.stopped = self.draining
        self.draining = True
        for connection in self._connections:
            connection.send(wire.Draining())

    @property
    def open_sessions(self) -> int:
        return sum(len(connection._slots) for connection in self._connections)

    def responses_begun(self) -> int:
        return self._responses

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, writer)
        self._connections.add(connection)
        try:
            with contextlib.suppress(ConnectionError):
                await connection.run(reader)
        finally:
            self._connections.discard(connection)
            connection.abort()


class _Connection:
    def __init__(self, worker: FakeWorker, writer: asyncio.StreamWriter) -> None:
        self._worker = worker
        self._writer = writer
        self._slots: dict[int, _Slot] = {}

    def abort(self) -> None:
        for slot in self._slots.values():
            if slot.task is not None:
                slot.task.cancel()
        self._writer.transport.abort()

    def send(self, message: wire.Message) -> None:
        self._writer.write(wire.encode(message))

    async def run(self, reader: asyncio.StreamReader) -> None:
        self.send(
            wire.Ready(
                wire.WIRE_VERSION,
                self._worker.behaviour.model,
                self._worker.behaviour.slots,
                SAMPLE_RATE_HZ,
                codec_frame_rate_hz=12.5,
            )
        )
        while (payload := await wire.read_frame(reader)) is not None:
            message = wire.to_worker_decoder.decode(payload)
            if isinstance(message, wire.AudioIn):
                key = (message.session, message.utterance)
                self._worker.heard_samples[key] = self._worker.heard_samples.get(key, 0) + len(message.pcm) // 2
            elif not isinstance(message, wire.Ping):
                self._worker.received.append(message)
            self._handle(message)

    def _handle(self, message: wire.ToWorker) -> None:
        if isinstance(message, wire.Ping):
            self.send(wire.Pong(message.number))
        elif isinstance(message, wire.OpenSession):
            self._open(message.session)
        elif message.session in self._slots:
            self._in_session(self._slots[message.session], message)

    def _open(self, session: int) -> None:
        if self._worker.draining:
            self.send(wire.Refused(session, "draining", "this worker is about to go"))
            return
        if len(self._slots) >= self._worker.behaviour.slots:
            self.send(wire.Refused(session, "capacity", "all slots are taken"))
            return
        self._slots[session] = _Slot()
        self.send(wire.SessionOpened(session))

    def _in_session(self, slot: _Slot, message: wire.ToWorker) -> None:
        match message:
            case wire.CloseSession():
                if slot.task is not None:
                    slot.task.cancel()
                del self._slots[message.session]
            case wire.StartUtterance():
                slot.utterances[message.utterance] = _Utterance()
            case wire.AudioIn():
                self._listen(slot.utterances[message.utterance], message)
            case wire.EndUtterance():
                self._end(slot.utterances[message.utterance], message)
            case wire.DropUtterance():
                slot.utterances.pop(message.utterance, None)
            case wire.Respond():
                if slot.task is not None:
                    slot.task.cancel()
                slot.task = asyncio.get_running_loop().create_task(self._respond(message))
            case wire.Cancel():
                if slot.task is not None:
                    slot.task.cancel()
            case _:
                pass

    def _listen(self, utterance: _Utterance, message: wire.AudioIn) -> None:
        """One more word of the transcript for each 300 ms heard, but never the last one."""
        before = utterance.samples // 4800
        utterance.samples += len(message.pcm) // 2
        words = self._worker.behaviour.transcript.split()
        count = min(utterance.samples // 4800, len(words) - 1)
        if utterance.samples // 4800 > before and count:
            self.send(wire.Transcript(message.session, message.utterance, " ".join(words[:count]), final=False))

    def _end(self, utterance: _Utterance, message: wire.EndUtterance) -> None:
        utterance.ended = True
        frames = utterance.samples // 640
        self.send(wire.Transcript(message.session, message.utterance, self._worker.behaviour.transcript, final=True))
        self.send(
            wire.UtteranceEncoded(
                message.session,
                message.utterance,
                utterance.samples,
                frames,
                frames // 2,
                12.5,
                encode_ms=1.0,
                group_ms=[80] * (frames // 2),
            )
        )

    async def _respond(self, message: wire.Respond) -> None:
        worker = self._worker
        worker._responses += 1
        behaviour = worker.behaviour
        dies = worker._responses == behaviour.die_after
        if worker._responses == behaviour.stall_after:
            return
        await asyncio.sleep(behaviour.first_delay_s)
        reply = behaviour.reply
        if behaviour.recite:
            reply = " ".join(entry.text for entry in message.context if entry.role == "user")
        words = reply.split()
        for index, word in enumerate(words):
            text = word if index == 0 else " " + word
            self.send(wire.TextDelta(message.session, message.generation, text))
            if message.speech:
                self.send(_sound(message, index, word))
                await asyncio.sleep(behaviour.pace * WORD_SAMPLES / SAMPLE_RATE_HZ)
            if dies:
                await self._writer.drain()
                os.kill(os.getpid(), signal.SIGKILL)
        spoken = len(words) if message.speech else 0
        stats = wire.ResponseStats(
            first_text_ms=1.0,
            first_audio_ms=2.0,
            thinker_ms=3.0,
            text_tokens=len(words),
            speech_tokens=spoken,
            speech_frames=spoken * WORD_FRAMES,
            prompt_positions=20,
            input_groups=10,
            realised_input_hz=message.input_hz,
            realised_output_hz=message.output_hz if spoken else 0.0,
            requested_output_hz=message.output_hz,
        )
        self.send(wire.ResponseDone(message.session, message.generation, "completed", reply, stats))


def _sound(message: wire.Respond, index: int, word: str) -> wire.AudioOut:
    first = index * WORD_SAMPLES
    phase = 2 * np.pi * (300 + 20 * index) * np.arange(WORD_SAMPLES) / SAMPLE_RATE_HZ
    pcm = (8000 * np.sin(phase)).astype("<i2").tobytes()
    tokens = [wire.TokenSpan(code=100 + index, duration_frames=WORD_FRAMES)]
    words = [wire.WordSpan(word, first, first + WORD_SAMPLES)]
    return wire.AudioOut(message.session, message.generation, first, pcm, tokens, words)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--reply", default=REPLY)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--stall-after", type=int, default=0)
    parser.add_argument("--first-delay-s", type=float, default=0.0)
    parser.add_argument("--recite", action="store_true")
    parser.add_argument("--direct")
    parser.add_argument("--door", type=Path)
    parser.add_argument("--model", default="fake")
    args = parser.parse_args()
    behaviour = Behaviour(
        reply=args.reply,
        pace=args.pace,
        slots=args.slots,
        die_after=args.die_after,
        stall_after=args.stall_after,
        first_delay_s=args.first_delay_s,
        recite=args.recite,
        model=args.model,
    )
    door = WorkerDoor(args.direct, args.door) if args.direct else None
    parent = os.getppid()
    async with FakeWorker(args.socket, behaviour, door) as worker:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.drain)
        while os.getppid() == parent:  # nothing announces the death of a parent
            await asyncio.sleep(0.05)
            if worker.stopped or (worker.draining and not worker.open_sessions):
                return


if __name__ == "__main__":
    asyncio.run(_main())
