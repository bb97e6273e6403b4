"""The parts of a cluster that decide, without Ray: how many workers, what is stored, what the configuration allows."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from agent.cluster.control import RayControl
from agent.cluster.edge import order
from agent.cluster.messages import Beat, ClusterOrder, ControlError, HostReport, WorkerOrder
from agent.cluster.scaling import FULL_S, Bounds, Needs, Scaling, Seen, Steps, needs
from agent.cluster.store import Answer, Batch, Claim, Claimed, Owner, SessionStore, Update, digest
from agent.cluster.supervisor import SILENT_S, Supervising
from agent.config import ConfigError, load_config, parse_config
from agent.dialogue.copying import Changes
from benchmarks.cluster import latency

BOUNDS = Bounds(least=1, most=3, idle_s=60.0)
ORDER = ClusterOrder(WorkerOrder(["worker"], "", 30.0, 10.0), 1, 3, 60.0, 1.0, None)


def worker(name: str, sessions: int = 0, capacity: int = 10, *, ready: bool = True) -> Seen:
    return Seen(name, ready, sessions, capacity)


# --- how many ---


def test_there_are_never_fewer_than_asked_for() -> None:
    assert Scaling(Bounds(3, 5, 60.0)).look([worker("a")], 0, 0.0) == Steps(start=2)


def test_full_workers_get_another_but_not_for_a_moments_crowd() -> None:
    scaling = Scaling(BOUNDS)
    assert scaling.look([worker("a", 9)], 0, 0.0) == Steps()
    assert scaling.look([worker("a", 5)], 0, 1.0) == Steps()
    assert scaling.look([worker("a", 9)], 0, 2.0) == Steps()
    assert scaling.look([worker("a", 9)], 0, 2.0 + FULL_S) == Steps(start=1)


def test_who_was_refused_is_not_waited_for() -> None:
    assert Scaling(BOUNDS).look([worker("a", 10)], 1, 0.0) == Steps(start=1)


def test_one_that_starts_is_waited_for_and_the_bound_holds() -> None:
    scaling = Scaling(BOUNDS)
    assert scaling.look([worker("a", 10), worker("b", ready=False)], 5, 0.0) == Steps()
    assert scaling.look([worker(name, 10) for name in "abc"], 5, 60.0) == Steps()


def test_one_that_nobody_used_is_stopped_when_the_others_have_room_to_spare() -> None:
    scaling = Scaling(BOUNDS)
    assert scaling.look([worker("a", 3), worker("b", 1)], 0, 0.0) == Steps()
    assert scaling.look([worker("a", 3), worker("b")], 0, 59.0) == Steps()
    assert scaling.look([worker("a", 3), worker("b")], 0, 60.0) == Steps(stop=("b",))


def test_none_is_stopped_that_is_used_needed_or_the_last_allowed() -> None:
    def after_an_hour(*seen: Seen) -> Steps:
        scaling = Scaling(BOUNDS)
        scaling.look(seen, 0, 0.0)
        return scaling.look(seen, 0, 3600.0)

    assert after_an_hour(worker("a", 1), worker("b", 1)) == Steps()
    assert after_an_hour(worker("a", 6), worker("b")) == Steps(), "without b, a would be fuller than is to spare"
    assert after_an_hour(worker("a")) == Steps()


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
        self.reports[f"worker-{number}"] = HostReport(ready=True, pid=1, capacity=10)

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
    assert written.done == ["+1", "+2", "-worker-2"]


async def test_a_worker_whose_machine_is_lost_is_rays_to_place_again() -> None:
    written = Written()
    written.reports["worker-1"] = None
    supervising = Supervising(ORDER, written)
    await supervising.look(0.0)
    assert written.done == []


# --- what is stored ---


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def stored(max_bytes: int = 1_000) -> tuple[SessionStore, Clock]:
    clock = Clock()
    return SessionStore(60.0, max_bytes, "life", clock=clock), clock


def tell(store: SessionStore, service: str, *updates: Update) -> Answer:
    return msgspec.msgpack.decode(store.update(msgspec.msgpack.encode(Batch(service, list(updates)))), type=Answer)


def claim(store: SessionStore, service: str, token: str, owner: str = "me") -> Claimed:
    asked = msgspec.msgpack.encode(Claim(service, digest(token), owner))
    return msgspec.msgpack.decode(store.claim(asked), type=Claimed)


def update(session: str, token: str, *, whole: bool = False, ended: bool = False, **changes: object) -> Update:
    made = msgspec.convert(changes, Changes)
    return Update(session, [digest(token)], Owner("me"), made, whole=whole, ended=ended)


def test_parts_are_put_together_and_taken_over_once() -> None:
    store, _ = stored()
    tell(store, "a", update("s", "t", whole=True, put={"head": b"1", "open": b"ab"}))
    tell(store, "a", update("s", "u", put={"head": b"2"}, extend={"open": b"cd"}))
    assert claim(store, "b", "t").parts is None, "that token is used up"
    assert claim(store, "b", "u", owner="somebody else").parts is None
    claimed = claim(store, "b", "u")
    assert claimed.parts == {"head": b"2", "open": b"abcd"} and claimed.session == "s"
    assert tell(store, "a", update("s", "u", put={"head": b"3"})).moved == ["s", "s"]
    assert claim(store, "c", "u").parts == {"head": b"2", "open": b"abcd"}, "whoever lost it changes nothing"


def test_a_service_that_has_nothing_to_say_is_told_what_it_lost() -> None:
    store, _ = stored()
    tell(store, "a", update("s", "t", whole=True, put={"head": b"1"}))
    claim(store, "b", "t")
    assert tell(store, "a").moved == ["s"]
    assert tell(store, "a").moved == []


def test_the_end_of_a_session_is_the_end_of_its_copy_unless_another_service_has_it() -> None:
    store, _ = stored()
    for name in "st":
        tell(store, "a", update(name, f"token of {name}", whole=True, put={"head": b"1"}))
    claim(store, "b", "token of t")
    tell(store, "a", update("s", "", ended=True), update("t", "", ended=True))
    assert store.count == 1 and claim(store, "c", "token of t").parts is not None


def test_sessions_of_a_service_that_is_gone_are_kept_for_a_while() -> None:
    store, clock = stored()
    tell(store, "a", update("s", "t", whole=True, put={"head": b"1"}))
    clock.now_s = 59.0
    assert claim(store, "b", "t").parts is not None
    clock.now_s = 121.0
    assert claim(store, "c", "t").parts is None
    assert store.count == 0 and store.held_bytes == 0


def test_a_session_the_store_does_not_know_is_asked_for_whole() -> None:
    store, _ = stored()
    assert tell(store, "a", update("s", "t", put={"head": b"1"})) == Answer("life", unknown=["s"])
    assert store.count == 0


def test_what_does_not_fit_is_not_kept_and_its_service_hears_of_it() -> None:
    store, _ = stored(max_bytes=10)
    assert tell(store, "a", update("s", "t", whole=True, put={"head": b"12345"})).full == []
    assert tell(store, "a", update("s", "t", extend={"head": b"678901"})).full == ["s"]
    assert store.held_bytes == 0 and claim(store, "b", "t").parts is None


# --- configuration ---


def test_the_order_says_what_the_configuration_says() -> None:
    config = parse_config("[cluster]\nmin_workers = 2\nmax_workers = 5\ngpus_per_worker = 0.5\nidle_s = 9")
    made = order(config, ["worker"])
    assert (made.least, made.most, made.gpus, made.idle_s, made.worker.command) == (2, 5, 0.5, 9.0, ["worker"])
    assert order(parse_config(""), []).gpus is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_workers = 5", "min_workers"),
        ('name = "Not This"', "cluster.name"),
        ('gpus_per_worker = "some"', "cluster.gpus_per_worker"),
    ],
)
def test_what_cannot_be_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        parse_config(f"[cluster]\n{text}")
    assert "\n" not in str(error.value)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ControlError, match=r"^a cluster needs Ray, which is not installed: pip install 'agogic\[cluster\]'$"
    ):
        RayControl("agogic").join("auto")


def test_the_profile_of_a_cluster_is_taken() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "cluster.toml")
    assert config.cluster.enabled and (config.cluster.min_workers, config.cluster.max_workers) == (2, 8)


def test_the_ways_to_a_worker_are_compared_piece_by_piece() -> None:
    report = latency.run(40, lambda done, total: None)
    assert report["pieces"] == 40
    assert all(float(str(report[f"{way}_ms_p50"])) > 0 for way in ("one_machine", "direct"))
