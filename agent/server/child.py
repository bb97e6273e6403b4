"""A process that is started, and waited for, beside the loop.

uvloop starts one in the loop and stands still until the new process runs its program: the time of copying the page
tables, and of its wait for a processor. On a busy machine that is a tenth of a second of everybody's sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence


class Child:
    """Reads nothing; writes where we do. `returncode` is None as long as it lives."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._watch, name=f"child {process.pid}", daemon=True).start()

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Raises OSError."""
        starting = asyncio.ensure_future(asyncio.to_thread(_start, command, environment))
        try:
            return cls(await asyncio.shield(starting))
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                cls(await starting).kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def _watch(self) -> None:
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._ended.set_result, status)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
