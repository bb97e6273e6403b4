"""Process entry: reads the arguments, loads the model, serves the socket.

Exit code 2 with one sentence on standard error where the model or the arguments cannot be used, which another attempt
would not change; 3 where the machine lacks something now (descriptors, memory, the socket's folder), 1 where the engine
failed. The socket appears only when the model is ready, so that a service that can connect can be answered. SIGTERM
lets its sessions leave first; a second one, and SIGINT, do not.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import sys
from pathlib import Path

from agent import log
from worker.threads import limit_threads

EMBEDDED_SLOTS, OTHER_SLOTS = 32, 4
"""Places of a worker unless told otherwise; it takes no more callers than it expects to answer in time."""
PARENT_POLL_S = 1.0
FAILED, UNUSABLE, SHORTAGE = 1, 2, 3
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EIO}


def main() -> None:
    arguments = _parse()
    limit_threads(arguments.threads)
    level = arguments.log_level.upper()
    if arguments.log_format == "json":
        log.configure(level, log_format="json", process="worker")
    else:
        logging.basicConfig(level=level, format="worker %(levelname)s %(message)s", stream=sys.stderr)
    sys.exit(asyncio.run(_serve(arguments)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Serve a speech model on a socket.")
    parser.add_argument("--socket", required=True, help="path of a Unix socket, or HOST:PORT")
    parser.add_argument("--direct", help="HOST:PORT where services on other machines are let in by tickets")
    parser.add_argument("--door", type=Path, help="with --direct: file that tells how to issue tickets")
    parser.add_argument("--model", default="embedded", help="'embedded', a checkpoint directory, or a hub id")
    parser.add_argument("--voice", type=Path, help="recording that an official model is to sound like, 3 to 10 s")
    parser.add_argument("--latency", choices=["usual", "low"], default="usual", help="how soon an answer is heard")
    parser.add_argument("--slots", type=int, default=0, help="sessions open at once; 0: 32 or, not embedded, 4")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--keep-awake", choices=["auto", "on", "off"], default="auto", help="see model.keep_awake")
    parser.add_argument("--drain-s", type=float, default=60.0, help="how long sessions may take to leave after SIGTERM")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-format", default="text", choices=["text", "json"])
    parser.add_argument("--exit-with-parent", action="store_true", help="end when the starting process is gone")
    arguments = parser.parse_args()
    if (arguments.direct is None) != (arguments.door is None):
        parser.error("--direct and --door belong together")
    return arguments


async def _serve(arguments: argparse.Namespace) -> int:
    # These import torch, whose thread pool has to be settled first.
    from worker.awake import Awake
    from worker.device import best_device
    from worker.door import WorkerDoor
    from worker.engine import Engine
    from worker.loading import ModelError, load_model
    from worker.server import Server

    slots = arguments.slots or (EMBEDDED_SLOTS if arguments.model == "embedded" else OTHER_SLOTS)
    try:
        model = load_model(arguments.model, slots, arguments.voice, latency=arguments.latency)
    except ModelError as error:
        print(f"worker: {error}", file=sys.stderr)
        return SHORTAGE if _is_shortage(error) else UNUSABLE
    except OSError as error:
        print(f"worker: the model cannot be loaded now: {error}", file=sys.stderr)
        return SHORTAGE
    stop, drain = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: stop.set() if drain.is_set() else drain.set())
    loop.add_signal_handler(signal.SIGINT, stop.set)
    watch = asyncio.create_task(_watch_parent(stop)) if arguments.exit_with_parent else None
    door = WorkerDoor(arguments.direct, arguments.door) if arguments.direct is not None else None
    try:
        engine = Engine(model, slots, best_device())
        server = Server(engine, arguments.socket, door, Awake(arguments.keep_awake))
        alive = await server.run(stop, drain, arguments.drain_s)
    except OSError as error:
        print(f"worker: cannot listen on {arguments.socket}: {error.strerror or error}", file=sys.stderr)
        return SHORTAGE
    finally:
        if watch is not None:
            watch.cancel()
    return 0 if alive else FAILED


def _is_shortage(error: BaseException | None) -> bool:
    """Whether the machine lacked something, whatever that was taken for on the way up."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _watch_parent(stop: asyncio.Event) -> None:
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing announces the death of a parent
        await asyncio.sleep(PARENT_POLL_S)
    stop.set()
