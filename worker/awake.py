"""Keeps a virtual machine's processor from falling asleep between units of work, while many callers are served.

A virtual processor that has nothing to do is taken away by the machine that it runs on, and others use its caches: it
comes back late and cold. With a load of 60 % on two of them, work then took up to a fifth longer (docs/decisions.md).
So from half a load on a process of the lowest kind of priority does nothing, busily; whatever else there is goes first.

It would only cost where the processor is our own, and would harm where its time is rationed: there it is not done.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Literal

BUSY, CALM = 0.5, 0.35
"""Shares of a worker's time: from the one on it keeps awake, below the other no more."""
Choice = Literal["auto", "on", "off"]
_NOTHING = "while kill -0 $0 2>/dev/null; do i=0; while [ $i -lt 9999 ]; do i=$((i+1)); done; done"
"""Ends a few milliseconds after the process that it is told of, however that ended."""


class Awake:
    """At most one such process at a time, whose number is `pid`; `close` ends it."""

    def __init__(self, choice: Choice = "auto") -> None:
        self._wanted = _can() and (choice == "on" or (choice == "auto" and pays()))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def heed(self, busy: float) -> None:
        """The worker is busy for this share of its time. Never raises: without help it serves as well as it can."""
        helped = self.pid is not None
        if not self._wanted or helped == (busy >= (CALM if helped else BUSY)):
            return
        self.close()
        if helped:
            return
        try:
            self._process = subprocess.Popen(
                ["sh", "-c", _NOTHING, str(os.getpid())], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))
        except OSError:
            # Without the lowest priority it would be in everybody's way.
            self._wanted = False
            self.close()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def pays(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether this is a virtual machine whose processor time nobody rations."""
    try:
        flags = next(line for line in (proc / "cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "hypervisor" in flags.split() and not _rationed(proc, groups)


def _rationed(proc: Path, groups: Path) -> bool:
    """Whether one of the control groups that this process is in, of either version, has a quota."""
    own = {"": "/", "cpu": "/"}
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= {name: path for name in controllers.split(",") if name in own}
    for controller, name in (("", "cpu.max"), ("cpu", "cpu.cfs_quota_us")):
        root = groups / controller
        inner = root / own[controller].strip("/")
        for folder in (inner, *inner.parents):
            with contextlib.suppress(OSError):
                if (folder / name).read_text().split()[0] not in ("max", "-1"):
                    return True
            if folder == root:
                break
    return False


def _can() -> bool:
    return hasattr(os, "SCHED_IDLE") and hasattr(os, "sched_setscheduler")
