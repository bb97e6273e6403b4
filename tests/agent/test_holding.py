"""What a client is told waits for the copy that has it, in order, and not for ever."""

from __future__ import annotations

import logging

import pytest

from agent.clock import ManualClock
from agent.cluster.holding import HELD_S, MAX_HELD_BYTES, Outgoing
from agent.dialogue.effects import Outbox, SendEvent
from agent.ids import Ids
from agent.protocol import server_events as events


class Client:
    def __init__(self) -> None:
        self.got: list[str] = []

    def send_event(self, event: bytes) -> None:
        self.got.append(event.decode())


def told(name: str, *, begins: bool = False) -> SendEvent:
    return SendEvent(name.encode(), acknowledges=True, begins_answer=begins)


def sound(name: str) -> SendEvent:
    return SendEvent(name.encode())


def outgoing(*, held: bool = True) -> tuple[Outgoing, Client, ManualClock]:
    clock = ManualClock()
    return Outgoing("sess_1", clock, held=held), Client(), clock


def test_nothing_overtakes_what_waits_and_sound_alone_waits_for_nothing() -> None:
    out, client, _ = outgoing()
    out.send(sound("a"), [client])
    assert client.got == ["a"]
    for event in (told("item"), told("created", begins=True), sound("b"), sound("c")):
        out.send(event, [client])
    assert client.got == ["a"] and out.hides_an_answer
    out.copying()
    out.copied()
    assert client.got == ["a", "item", "created", "b", "c"] and not out.hides_an_answer
    out.send(sound("d"), [client])
    assert client.got[-1] == "d" and out.due_s is None


def test_a_copy_lets_out_only_what_it_has_and_sound_behind_that() -> None:
    out, client, _ = outgoing()
    out.send(told("one"), [client])
    out.copying()
    for event in (sound("a"), told("two"), sound("b")):
        out.send(event, [client])
    out.copied()
    assert client.got == ["one", "a"]
    out.copied()
    assert client.got == ["one", "a"], "that was the same copy"
    out.copying()
    out.copied()
    assert client.got == ["one", "a", "two", "b"]


def test_a_copy_that_was_not_stored_lets_nothing_out() -> None:
    out, client, _ = outgoing()
    out.send(told("one"), [client])
    out.copying()
    out.copying()
    assert client.got == []
    out.copied()
    assert client.got == ["one"]


def test_a_store_that_does_not_answer_is_waited_for_once(caplog: pytest.LogCaptureFixture) -> None:
    out, client, clock = outgoing()
    out.send(told("one"), [client])
    out.send(sound("a"), [client])
    assert out.due_s == HELD_S
    clock.advance(HELD_S / 2)
    out.look()
    assert client.got == []
    clock.advance(HELD_S / 2)
    with caplog.at_level(logging.WARNING, "agogic.cluster"):
        out.look()
        out.send(told("two"), [client])
    assert client.got == ["one", "a", "two"]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["sess_1"]
    out.copying()
    out.copied()
    out.send(told("three"), [client])
    assert client.got == ["one", "a", "two"], "it answers again"


def test_what_waits_is_bounded() -> None:
    out, client, _ = outgoing()
    out.send(told("one"), [client])
    out.send(SendEvent(bytes(MAX_HELD_BYTES)), [client])
    assert len(client.got) == 2 and out.due_s is None


def test_it_goes_to_nobody_who_has_left_and_nowhere_where_another_service_has_the_session() -> None:
    out, client, _ = outgoing()
    watcher, newcomer = Client(), Client()
    out.send(told("one"), [client, watcher])
    out.forget(client)
    out.send(told("resumed"), [newcomer])
    out.copying()
    out.copied()
    assert (client.got, watcher.got, newcomer.got) == ([], ["one"], ["resumed"])
    out.send(told("two"), [watcher])
    out.drop()
    out.send(told("three"), [watcher])
    assert watcher.got == ["one", "three"]


def test_at_its_end_everything_leaves() -> None:
    out, client, _ = outgoing()
    out.send(told("one"), [client])
    out.let_go()
    out.send(told("two"), [client])
    assert client.got == ["one", "two"]


def test_where_nothing_is_copied_nothing_waits() -> None:
    out, client, _ = outgoing(held=False)
    out.send(told("one"), [client])
    assert client.got == ["one"]


def test_which_events_a_client_counts_on() -> None:
    outbox = Outbox(Ids())
    outbox.send(events.ItemAdded(item={}, previous_item_id=None))
    outbox.send(events.ResponseCreated(response={}))
    outbox.send(events.OutputItemAdded(response_id="", item={}))
    outbox.send(events.RateLimitsUpdated(rate_limits=[]))
    outbox.send(events.Error(error={}))
    effects = [effect for effect in outbox.take() if isinstance(effect, SendEvent)]
    assert [effect.acknowledges for effect in effects] == [True, True, True, False, False]
    assert [effect.begins_answer for effect in effects] == [False, True, False, False, False]
