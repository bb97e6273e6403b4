"""What happens to a server without any client's doing: workers that die or hang, descriptors that run out, a temporary
folder that is swept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from pathlib import Path

from benchmarks.attacks.server import children

_HUNG_S = 4.0
_SHORTAGE_S = 3.0


async def worker_killed(pid: int) -> None:
    """As the kernel does it when memory runs out."""
    _signal(_newest_worker(pid), signal.SIGKILL)
    await asyncio.sleep(2.0)


async def worker_hung(pid: int) -> None:
    """It holds its socket and says nothing, for good."""
    _signal(_newest_worker(pid), signal.SIGSTOP)
    await asyncio.sleep(_HUNG_S)


async def descriptors_gone(pid: int) -> None:
    """Not one more file may be opened, just when a worker has to be replaced."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_now = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now, hard))
    try:
        _signal(_newest_worker(pid), signal.SIGKILL)
        await asyncio.sleep(_SHORTAGE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


async def socket_folder_swept(pid: int) -> None:
    """By whoever tidies temporary folders, before a worker has to be replaced."""
    worker = _newest_worker(pid)
    shutil.rmtree(_socket(worker).parent, ignore_errors=True)
    _signal(worker, signal.SIGKILL)
    await asyncio.sleep(2.0)


KINDS = {
    "worker_killed": worker_killed,
    "worker_hung": worker_hung,
    "descriptors_gone": descriptors_gone,
    "socket_folder_swept": socket_folder_swept,
}


def _newest_worker(pid: int) -> int:
    """The one that was started last: callers that came before any harm are with the others.

    Raises `ProcessLookupError` where there is none.
    """
    workers = children(pid)
    if not workers:
        raise ProcessLookupError(f"process {pid} has no workers")
    return max(workers)


def _socket(worker: int) -> Path:
    command = Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")
    return Path(command[command.index(b"--socket") + 1].decode())


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
