"""A worker's process: the command that starts it, its socket, its end."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from agent.config import ModelConfig
from agent.server.child import Child
from agent.server.link import LinkError, WorkerLink

_CONNECT_RETRY_S = 0.05
_STOP_TIMEOUT_S = 3.0
# What the narrowest system takes as a socket's address, its end included.
_MAX_SOCKET_PATH_BYTES = 104
# The status of a worker that was told something impossible (a missing checkpoint, an unknown option).
_UNUSABLE_STATUS = 2


class WorkerUnusable(Exception):
    """The worker says that its model or its arguments cannot be used; another attempt would end the same way."""


def worker_command(model: ModelConfig, log_level: str, log_format: str = "text") -> list[str]:
    """The command that starts a worker, without its socket."""
    command = [sys.executable, "-m", "worker", "--model", model.spec, "--log-level", log_level, "--exit-with-parent"]
    if log_format != "text":
        command += ["--log-format", log_format]
    if model.voice:
        command += ["--voice", model.voice]
    if model.slots:
        command += ["--slots", str(model.slots)]
    if model.threads:
        command += ["--threads", str(model.threads)]
    command += ["--latency", model.latency, "--keep-awake", model.keep_awake]
    return [*command, "--drain-s", str(model.drain_s)]


async def connect(process: Child, socket: Path, timeout_s: float) -> WorkerLink:
    """Waits until the worker is ready. Raises `LinkError`, or `WorkerUnusable`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not socket.exists():  # noqa: ASYNC240 as above
        if process.returncode is not None:
            raise _ended_early(process.returncode)
        if not socket.parent.is_dir():
            raise LinkError("the folder of the worker's socket was removed")
        if loop.time() > deadline_s:
            raise LinkError(f"the worker process was not ready within {timeout_s:g} s")
        await asyncio.sleep(_CONNECT_RETRY_S)
    ended = asyncio.create_task(process.wait())
    connecting = asyncio.create_task(WorkerLink.connect(socket, deadline_s - loop.time()))
    try:
        await asyncio.wait({ended, connecting}, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            raise _ended_early(ended.result())
        return connecting.result()
    finally:
        ended.cancel()
        connecting.cancel()


def _ended_early(status: int) -> Exception:
    if status == _UNUSABLE_STATUS:
        return WorkerUnusable("the worker refused to start; its message above says why")
    return LinkError(f"the worker process ended with status {status} before it was ready")


def short_folder() -> Path:
    """A new folder of our own whose sockets have addresses that a system takes, also where TMPDIR is a long path."""
    places = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp"]
    longest = len("/agogic-xxxxxxxx/63-9999999")
    problem = OSError(f"no folder for the workers' sockets can be made in any of {', '.join(filter(None, places))}")
    for place in filter(None, places):
        if len(os.fsencode(place)) + longest < _MAX_SOCKET_PATH_BYTES:
            try:
                return Path(tempfile.mkdtemp(prefix="agogic-", dir=place))
            except OSError as error:
                problem = error
    raise problem


async def stop(process: Child, *, at_once: bool) -> None:
    """A process that hangs does not listen to a request either."""
    if process.returncode is not None:
        return
    if at_once:
        process.kill()
    else:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
