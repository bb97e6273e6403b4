"""How many workers a cluster has: decided without Ray, on a clock that is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from agent.cluster.messages import Beat, ClusterOrder, ControlError, HostReport, WorkerOrder
from agent.cluster.scaling import AT_ONCE, FULL_S, Bounds, Needs, Scaling, Seen, Steps, needs
from agent.cluster.supervisor import SILENT_S, Supervising

BOUNDS = Bounds(least=1, most=3, idle_s=60.0, patience_s=100.0, start_s=30.0)
ORDER = ClusterOrder(WorkerOrder(["worker"], "", 30.0, 10.0), 1, 3, 60.0, 1.0, None, leave_s=100.0)


def worker(name: str, sessions: int = 0, capacity: int = 10, *, ready: bool = True, going: bool = False) -> Seen:
    return Seen(name, ready, sessions, capacity, going)


def fleet(*sessions: int) -> list[Seen]:
    """Workers a, b, … with so many sessions; -1: not ready."""
    return [
        worker(name, max(0, held), ready=held >= 0)
        for name, held in zip("abcdefghijklmnopqrst", sessions, strict=False)
    ]


@dataclass
class Look:
    """At a moment: what is seen, and what is to come of it. `leaving`: who gets no newcomers afterwards."""

    at_s: float
    seen: list[Seen]
    start: int = 0
    stop: tuple[str, ...] = ()
    leaving: str = ""
    refused: int = 0


@dataclass
class Case:
    looks: list[Look]
    bounds: Bounds = field(default=BOUNDS)


WIDE = Bounds(least=1, most=1000, idle_s=60.0, patience_s=100.0, start_s=30.0)
CASES = {
    # --- more ---
    "never fewer than asked for": Case([Look(0, fleet(0), start=2)], Bounds(3, 5, 60.0)),
    "full workers get another, but not for a moment's crowd": Case([
        Look(0, fleet(9)), Look(1, fleet(5)), Look(2, fleet(9)), Look(2 + FULL_S, fleet(9), start=1),
    ]),
    "who was refused is not waited for": Case([Look(0, fleet(10), start=1, refused=1)]),
    "the upper bound holds": Case([Look(0, fleet(10, 10, 10), refused=5)]),
    "one that starts counts as what the others carry": Case([
        Look(0, fleet(9, 9, 9)), Look(3, fleet(9, 9, 9), start=1), Look(4, fleet(9, 9, 9, -1)),
        Look(5, fleet(10, 10, 10, -1), refused=3, start=1), Look(6, fleet(10, 10, 10, -1, -1), refused=3),
    ], WIDE),
    "several start at once where many are refused, never more than are ready": Case([
        Look(0, fleet(10, 10), refused=100, start=2), Look(1, fleet(10, 10, -1, -1), refused=100),
    ], WIDE),
    "and never more than AT_ONCE": Case([
        Look(0, [worker(f"w{i}", 10) for i in range(40)], refused=900, start=AT_ONCE),
    ], WIDE),
    "one that does not get ready in time is not counted on": Case([
        Look(0, fleet(9, -1)), Look(3, fleet(9, -1)), Look(29, fleet(9, -1)), Look(31, fleet(9, -1), start=1),
    ]),
    "where nobody gets ready, more would not either": Case([
        Look(0, fleet(-1)), Look(100, fleet(-1), refused=9), Look(200, fleet(-1), refused=9),
    ]),
    # --- less ---
    "one that nobody used is stopped when the others have room to spare": Case([
        Look(0, fleet(3, 1)), Look(59, fleet(3, 0)), Look(60, fleet(3, 0), stop=("b",)),
    ]),
    "the one with fewest sessions leaves, and is stopped when it is empty": Case([
        Look(0, fleet(3, 1)), Look(60, fleet(3, 1), leaving="b"), Look(70, fleet(3, 1), leaving="b"),
        Look(80, fleet(4, 0), stop=("b",)),
    ]),
    "patience ends, and one goes at a time with its callers": Case([
        Look(0, fleet(3, 1, 1)), Look(60, fleet(3, 1, 1), leaving="bc"), Look(159, fleet(3, 1, 1), leaving="bc"),
        Look(160, fleet(3, 1, 1), stop=("b",), leaving="c"), Look(161, fleet(4, 0, 1), stop=("c",)),
    ]),
    "the others would be fuller than half": Case([Look(0, fleet(5, 1)), Look(3600, fleet(5, 1))]),
    "half full without it, for long enough, without a break": Case([
        Look(0, fleet(4, 1)), Look(30, fleet(4, 2)), Look(89, fleet(4, 1)), Look(148, fleet(4, 1)),
        Look(149, fleet(4, 1), leaving="b"),
    ]),
    "the last that are allowed stay": Case([Look(0, fleet(0, 0)), Look(3600, fleet(0, 0))], Bounds(2, 5, 60.0)),
    "one that is not ready does not leave": Case([Look(0, fleet(1, -1)), Look(3600, fleet(1, -1))]),
    "as many leave at once as could have been spared all the time": Case([
        Look(0, fleet(1, 1, 1, 1, 1)), Look(30, fleet(4, 4, 1, 1, 1)),
        Look(60, fleet(1, 1, 1, 1, 1), leaving="ab"), Look(119, fleet(1, 1, 1, 1, 1), leaving="ab"),
        Look(120, fleet(1, 1, 1, 1, 1), leaving="abcd"),
    ], WIDE),
    "what was stopped is not spared again": Case([
        Look(0, fleet(1, 1, 0, 0)), Look(60, fleet(1, 1, 0, 0), stop=("c", "d"), leaving="a"),
        Look(61, fleet(3, 3), leaving="a"), Look(300, fleet(3, 3), stop=("a",)),
    ], WIDE),
    # --- between ---
    "between half full and full nothing happens": Case([
        Look(0, fleet(6, 6)), Look(3600, fleet(7, 7)), Look(7200, fleet(6, 5)),
    ]),
    "who leaves is taken back before another is started": Case([
        Look(0, fleet(3, 1)), Look(60, fleet(3, 1), leaving="b"), Look(70, fleet(8, 1), leaving="b"),
        Look(72, fleet(8, 1), leaving="b"), Look(73, fleet(8, 1)), Look(76, fleet(8, 1)),
    ]),
    "at once where somebody was refused, the fullest first": Case([
        Look(0, fleet(1, 2, 0, 2)), Look(60, fleet(1, 2, 1, 1), leaving="acd"),
        Look(61, fleet(1, 9, 2, 1), refused=1, leaving="ad"),
    ], WIDE),
    "who leaves is not kept where too few would be left": Case([
        Look(0, fleet(1, 1)), Look(60, fleet(1, 1), leaving="a"), Look(61, [worker("a", 1)]),
    ]),
    "one that goes counts for nothing": Case([
        Look(0, [worker("a", 1), worker("b", 1, going=True)]), Look(3600, [worker("a", 1), worker("b", 1, going=True)]),
    ]),
    "its place is filled where too few are left": Case([Look(0, [worker("a", going=True)], start=1)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_to_be_done(case: Case) -> None:
    scaling = Scaling(case.bounds)
    for look in case.looks:
        assert scaling.look(look.seen, look.refused, look.at_s) == Steps(look.start, look.stop), look
        assert "".join(sorted(scaling.leaving)) == look.leaving, look


@pytest.mark.parametrize(
    ("cluster", "gpus", "takes"),
    [
        ({"CPU": 8.0}, None, Needs(1.0, 0.0)),
        ({"CPU": 8.0, "GPU": 2.0}, None, Needs(1.0, 1.0)),
        ({"CPU": 8.0, "GPU": 2.0}, 0.25, Needs(1.0, 0.25)),
        ({"CPU": 8.0, "GPU": 2.0}, 0.0, Needs(1.0, 0.0)),
    ],
)
def test_a_worker_takes_a_gpu_where_there_are_any(cluster: dict[str, float], gpus: float | None, takes: Needs) -> None:
    assert needs(cluster, 1.0, gpus) == takes


class Written:
    """A control plane that does what it is told and remembers it."""

    def __init__(self) -> None:
        self.reports: dict[str, HostReport | None] = {}
        self.done: list[str] = []

    async def worker_names(self) -> list[str]:
        return sorted(self.reports)

    async def report(self, name: str) -> HostReport:
        report = self.reports[name]
        if report is None:
            raise ControlError("its machine is lost")
        return report

    async def start_worker(self, number: int, order: ClusterOrder) -> None:
        self.done.append(f"+{number}")
        self.reports[f"worker-{number}"] = HostReport(ready=True, pid=1, worker_pid=2, capacity=10)

    async def drain_worker(self, name: str) -> None:
        self.done.append(f"~{name}")
        self.reports[name] = HostReport(ready=False, pid=1, worker_pid=2, capacity=10, going=True)

    async def stop_worker(self, name: str) -> None:
        self.done.append(f"-{name}")
        del self.reports[name]


async def test_the_supervisor_counts_what_all_services_use_and_forgets_those_that_are_gone() -> None:
    written = Written()
    supervising = Supervising(ORDER, written)
    await supervising.look(0.0)
    assert written.done == ["+1"]
    for now_s in (1.0, 1.0 + FULL_S):
        supervising.beat(Beat("a", ORDER, {"worker-1": 5}), now_s)
        supervising.beat(Beat("b", ORDER, {"worker-1": 4}), now_s)
        await supervising.look(now_s)
    assert written.done == ["+1", "+2"]
    for now_s in (10.0 + SILENT_S, 75.0 + SILENT_S):
        supervising.beat(Beat("b", ORDER, {"worker-1": 1}), now_s)
        await supervising.look(now_s)
    assert written.done == ["+1", "+2", "~worker-2"]


async def test_services_hear_who_leaves_and_its_owner_is_ended_when_the_worker_has_gone() -> None:
    written = Written()
    for number in (1, 2):
        await written.start_worker(number, ORDER)
    supervising = Supervising(ORDER, written)

    async def told(now_s: float, **leased: int) -> list[str]:
        beat = Beat("a", ORDER, {name.replace("_", "-"): count for name, count in leased.items()})
        supervising.beat(beat, now_s)
        await supervising.look(now_s)
        return supervising.beat(beat, now_s).leaving

    assert await told(0.0, worker_1=3, worker_2=1) == []
    assert await told(60.0, worker_1=3, worker_2=1) == ["worker-2"]
    assert await told(159.0, worker_1=3, worker_2=1) == ["worker-2"]
    assert await told(160.0, worker_1=3, worker_2=1) == [] and written.done[2:] == ["~worker-2"]
    assert await told(170.0, worker_1=3, worker_2=1) == [] and len(written.done) == 3, "its callers are still leaving"
    written.reports["worker-2"] = HostReport(ready=False, pid=1, going=True)
    await told(171.0, worker_1=4)
    assert written.done[3:] == ["-worker-2"]


async def test_a_worker_whose_machine_is_lost_is_rays_to_place_again() -> None:
    written = Written()
    written.reports["worker-1"] = None
    supervising = Supervising(ORDER, written)
    await supervising.look(0.0)
    assert written.done == []
