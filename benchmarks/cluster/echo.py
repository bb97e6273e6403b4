"""A worker's sockets without a model: sound comes back as it came, so that what remains is the way.

python -m benchmarks.cluster.echo --socket PATH --direct HOST:PORT --door FILE
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from agent import wire
from worker.door import WorkerDoor

READY = wire.Ready(wire.WIRE_VERSION, "echo", 64, 24_000, 12.5)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(wire.encode(READY))
    while (payload := await wire.read_frame(reader)) is not None:
        match wire.to_worker_decoder.decode(payload):
            case wire.Ping(number):
                writer.write(wire.encode(wire.Pong(number)))
            case wire.OpenSession(session):
                writer.write(wire.encode(wire.SessionOpened(session)))
            case wire.AudioIn(session, utterance, pcm):
                writer.write(wire.encode(wire.AudioOut(session, utterance, 0, pcm, [], [])))
            case _:
                pass
    writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--direct", required=True)
    parser.add_argument("--door", type=Path, required=True)
    arguments = parser.parse_args()
    await WorkerDoor(arguments.direct, arguments.door).open(serve)
    await asyncio.start_unix_server(serve, arguments.socket)
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing announces the death of a parent
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(main())
