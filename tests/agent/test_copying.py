"""A session that is copied part by part goes on in another process: what is known there, and that nothing is said
twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent import wire
from agent.dialogue.copying import Copier
from agent.dialogue.restoring import CopyError, read_head, restore
from agent.dialogue.session import Session
from agent.dialogue.speaking import WorkerSlot
from agent.ids import Ids
from tests.support.session_driver import READY, SessionDriver

REPLY = "one two three four five six"
EXTRAS: dict[str, object] = {"resume": {"token": "t", "within_s": 60}}


class Copied:
    """A driver whose session is copied after every step, as a service does it, and another one made of the copy."""

    def __init__(self, **options: Any) -> None:
        self.driver = SessionDriver(reply=REPLY, **options)
        self.parts: dict[str, bytes] = {}
        self._copier = Copier(self.driver.session)
        self.copy()

    def copy(self) -> int:
        """Returns how many bytes it took."""
        changes = self._copier.changes()
        for name in changes.drop:
            del self.parts[name]
        self.parts |= changes.put
        for name, more in changes.extend.items():
            self.parts[name] = self.parts.get(name, b"") + more
        return sum(map(len, (*changes.put.values(), *changes.extend.values())))

    def elsewhere(self, after: str | None = None, *, worker: bool = True) -> SessionDriver:
        """Another process, another worker, and the client comes back."""
        last = after if after is not None else self.driver.events[-1]["event_id"]
        head, settings = read_head(self.parts)

        def make(config: Any, _: Any, **options: Any) -> Session:
            options["ids"] = Ids(head.stem)
            options["clock"].advance(1000.0)
            session = Session(config, settings, **options)
            restore(session, head, self.parts, last, options["clock"])
            return session

        driver = SessionDriver(reply=REPLY, start=False, worker=False, make=make)
        driver.returns(last, None, EXTRAS)
        driver.do(driver.session.worker_lost())
        if worker:
            driver.do(driver.session.worker_ready(WorkerSlot(2, READY)))
        return driver


def ask(driver: SessionDriver, text: str = "Count.") -> None:
    content = [{"type": "input_text", "text": text}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    driver.send(type="response.create")


def words_of(events: list[dict[str, Any]]) -> str:
    kind = "response.output_audio_transcript.delta"
    return "".join(event["delta"] for event in events if event["type"] == kind)


def told(driver: SessionDriver) -> list[tuple[str, str]]:
    return [(entry.role, entry.text) for entry in driver.asked(wire.Respond)[-1].context]


def retrieved(driver: SessionDriver, item_id: str) -> dict[str, Any]:
    driver.send(type="conversation.item.retrieve", item_id=item_id)
    item = dict(driver.last("conversation.item.retrieved")["item"])
    return item


def test_the_history_the_settings_and_the_sound_are_whole_elsewhere() -> None:
    tools = [{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}]
    copied = Copied(settings={"instructions": "Be brief.", "tools": tools, "x_agogic": {"output_frame_rate": 8.0}})
    ask(copied.driver)
    copied.driver.advance(4.0)
    copied.driver.speak(0.5)
    copied.driver.hush(0.8)
    copied.driver.advance(4.0)
    copied.copy()
    before = copied.driver
    last = before.events[-1]["event_id"]
    items = [event["item"]["id"] for event in before.of("conversation.item.done")]
    assert len(items) == 4
    wanted = [retrieved(before, item) for item in items]
    after = copied.elsewhere(last)
    assert after.events[0]["type"] == "x_agogic.session_resumed"
    assert [retrieved(after, item) for item in items] == wanted
    mine, theirs = (dict(each.session._render()) for each in (before, after))
    assert mine == theirs
    ask(after, "Again.")
    assert told(after)[:4] == [
        ("user", "Count."),
        ("assistant", REPLY),
        ("user", "What time is it?"),
        ("assistant", REPLY),
    ]
    assert after.asked(wire.Respond)[-1].instructions == "Be brief."
    after.advance(4.0)
    ids = [event["event_id"] for event in before.events + after.events]
    assert len(set(ids)) == len(ids)


def test_an_open_utterance_goes_on_elsewhere_and_is_heard_from_its_beginning() -> None:
    copied = Copied()
    copied.driver.speak(0.7)
    copied.copy()
    copied.driver.speak(0.3)
    copied.copy()
    started = copied.driver.last("input_audio_buffer.speech_started")
    after = copied.elsewhere()
    heard = sum(len(message.pcm) // 2 for message in after.asked(wire.AudioIn))
    assert 0.6 * 16_000 < heard <= 1.02 * 16_000
    after.speak(0.5)
    after.hush(0.8)
    assert after.of("input_audio_buffer.speech_started") == []
    committed = after.last("input_audio_buffer.committed")
    assert committed["item_id"] == started["item_id"]
    assert retrieved(after, started["item_id"])["content"][0]["audio"]
    after.advance(4.0)
    assert after.last("response.done")["response"]["status"] == "completed"
    sound = after.session._conversation.find(started["item_id"])
    assert sound is not None and sound.pcm is not None and sound.pcm.size > 1.4 * 16_000  # type: ignore[union-attr]


def test_an_answer_nobody_has_heard_of_is_asked_for_again() -> None:
    copied = Copied(worker=False)
    ask(copied.driver)
    copied.copy()
    after = copied.elsewhere()
    after.advance(4.0)
    assert words_of(after.events) == REPLY
    assert after.last("response.done")["response"]["id"] == copied.driver.last("response.created")["response"]["id"]


def test_an_answer_that_was_begun_is_closed_and_not_said_again() -> None:
    copied = Copied()
    ask(copied.driver)
    copied.driver.advance(0.9)
    copied.copy()
    after = copied.elsewhere()
    done = after.last("response.done")["response"]
    assert done["status"] == "failed"
    assert after.last("error")["error"]["code"] == "worker_lost"
    after.advance(4.0)
    assert words_of(after.events) == "" and after.asked(wire.Respond) == []
    ask(after, "Go on.")
    heard = words_of(copied.driver.events)
    assert 0 < len(heard) < len(REPLY)
    assert told(after) == [("user", "Count."), ("assistant", heard), ("user", "Go on.")]


def test_a_client_that_heard_more_than_the_copy_knows_is_not_told_it_again() -> None:
    """The process died between the first sound of the answer and its copy."""
    copied = Copied(worker=False)
    ask(copied.driver)
    copied.copy()
    copied.driver.do(copied.driver.session.worker_ready(WorkerSlot(1, READY)))
    copied.driver.advance(0.5)
    assert words_of(copied.driver.events)
    after = copied.elsewhere()
    after.advance(4.0)
    assert words_of(after.events) == ""
    assert after.last("response.done")["response"]["status"] == "failed"
    ask(after, "Again.")
    after.advance(4.0)
    ids = [event["event_id"] for event in copied.driver.events + after.events]
    assert len(set(ids)) == len(ids), "no id was made twice"


def test_missed_events_come_from_the_copy() -> None:
    copied = Copied()
    ask(copied.driver)
    copied.driver.advance(4.0)
    copied.copy()
    seen = len(copied.driver.events) - 7
    after = copied.elsewhere(copied.driver.events[seen - 1]["event_id"])
    assert after.events[1:8] == copied.driver.events[seen:]


def test_only_what_changed_is_sent() -> None:
    copied = Copied(settings={"instructions": "x" * 20_000})
    for _ in range(3):
        ask(copied.driver, "y" * 20_000)
        copied.driver.advance(4.0)
    assert copied.copy() > 60_000
    assert copied.copy() == 0
    copied.driver.speak(0.5)
    copied.copy()
    copied.driver.speak(0.02)
    assert copied.copy() < 4_000


@pytest.mark.parametrize("broken", [{}, {"head": b"\x93"}, {"head": b"junk", "settings": b"\x80"}])
def test_what_is_no_copy_is_told(broken: dict[str, bytes]) -> None:
    with pytest.raises(CopyError):
        read_head(broken)


def test_a_copy_that_lacks_an_item_is_no_copy() -> None:
    copied = Copied()
    ask(copied.driver)
    copied.copy()
    del copied.parts[next(name for name in copied.parts if name.startswith("item/"))]
    with pytest.raises(CopyError):
        copied.elsewhere()


def test_the_copy_holds_json_that_a_client_could_have_got(capsys: pytest.CaptureFixture[str]) -> None:
    copied = Copied()
    ask(copied.driver)
    copied.driver.advance(4.0)
    copied.copy()
    after = copied.elsewhere(copied.driver.events[0]["event_id"])
    assert all(json.dumps(event) for event in after.events)
    assert [event["type"] for event in after.events[1:]] == copied.driver.types(1)
