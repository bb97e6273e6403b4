"""The parts of a cluster that decide, without Ray: how many workers, what is stored, what the configuration allows."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from agent.cluster.control import RayControl
from agent.cluster.edge import order
from agent.cluster.messages import ClusterOrder, ControlError, WorkerOrder
from agent.cluster.scaling import Bounds, Seen
from agent.cluster.store import Answer, Batch, Claim, Claimed, Owner, SessionStore, Update, digest
from agent.config import ConfigError, load_config, parse_config
from agent.dialogue.copying import Changes
from benchmarks.cluster import latency

BOUNDS = Bounds(least=1, most=3, idle_s=60.0)
ORDER = ClusterOrder(WorkerOrder(["worker"], "", 30.0, 10.0), 1, 3, 60.0, 1.0, None)


def worker(name: str, sessions: int = 0, capacity: int = 10, *, ready: bool = True) -> Seen:
    return Seen(name, ready, sessions, capacity)


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
