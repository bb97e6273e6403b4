"""Under load a virtual processor is kept from falling asleep, by a process that is in nobody's way and ends in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.awake import BUSY, CALM, Awake, pays

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no such priority")


@pytest.fixture
def awake() -> Iterator[Awake]:
    awake = Awake("on")
    yield awake
    awake.close()


def until(met: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20.0
    while not met():
        assert time.monotonic() < ends
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_it_begins_with_half_a_load_and_ends_well_below(awake: Awake) -> None:
    awake.heed(BUSY - 0.01)
    assert awake.pid is None
    awake.heed(BUSY)
    pid = awake.pid
    assert pid is not None and os.sched_getscheduler(pid) == os.SCHED_IDLE
    awake.heed(CALM)
    assert awake.pid == pid
    awake.heed(CALM - 0.01)
    assert awake.pid is None and not alive(pid)


def test_one_that_was_ended_by_somebody_is_begun_again(awake: Awake) -> None:
    awake.heed(1.0)
    assert awake.pid is not None
    os.kill(awake.pid, signal.SIGKILL)
    until(lambda: awake.pid is None)
    awake.heed(1.0)
    assert awake.pid is not None


def test_it_does_not_outlive_a_worker_that_is_killed() -> None:
    code = "from worker.awake import Awake; a = Awake('on'); a.heed(1.0); print(a.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        assert alive(pid)
        worker.kill()
    until(lambda: not alive(pid))


def test_off_is_off() -> None:
    awake = Awake("off")
    awake.heed(1.0)
    assert awake.pid is None


@pytest.mark.parametrize(
    ("flags", "quotas", "expected"),
    [
        ("fpu hypervisor avx2", {}, True),
        ("fpu avx2", {}, False),
        ("fpu hypervisor", {"cpu.max": "max 100000"}, True),
        ("fpu hypervisor", {"cpu.max": "150000 100000"}, False),
        ("fpu hypervisor", {"system.slice/cpu.max": "max 100000"}, True),
        ("fpu hypervisor", {"system.slice/cpu.max": "50000 100000"}, False),
        ("fpu hypervisor", {"system.slice/agogic.service/cpu.max": "50000 100000"}, False),
        ("fpu hypervisor", {"cpu/cpu.cfs_quota_us": "-1"}, True),
        ("fpu hypervisor", {"cpu/old/cpu.cfs_quota_us": "200000"}, False),
        ("fpu hypervisor", {"other.slice/cpu.max": "50000 100000"}, True),
    ],
)
def test_it_pays_on_virtual_machines_whose_time_nobody_rations(
    tmp_path: Path, flags: str, quotas: dict[str, str], expected: bool
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    (proc / "self" / "cgroup").write_text("4:cpu,cpuacct:/old\n0::/system.slice/agogic.service\n")
    for name, text in quotas.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert pays(proc, groups) is expected


def test_it_does_not_pay_where_the_system_tells_nothing(tmp_path: Path) -> None:
    assert pays(tmp_path, tmp_path) is False
