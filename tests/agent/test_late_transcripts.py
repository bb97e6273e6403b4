"""A model that writes the user's words down after its answer: each item is told once, and the next prompt holds it."""

from __future__ import annotations

import base64
from typing import Any

from agent import wire
from agent.dialogue.speaking import WorkerSlot
from tests.agent.test_turns import paused
from tests.support.conformance import check
from tests.support.session_driver import READY, SessionDriver

COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"


class LateDriver(SessionDriver):
    """Its worker reports what it has heard without a transcript; `write` sends that."""

    def _as_worker(self, message: wire.Message) -> None:
        if isinstance(message, wire.EndUtterance):
            encoded = wire.UtteranceEncoded(message.session, message.utterance, 8000, 12, 6, 12.5, 1.0)
            self._encoded.append(encoded)
        else:
            super()._as_worker(message)

    def __init__(self, **more: Any) -> None:
        self._encoded: list[wire.UtteranceEncoded] = []
        super().__init__(reply="Yes.", **more)

    def turn(self) -> int:
        """The user says something and is answered; the number of what he said."""
        self.speak(0.5)
        self.hush(2.0)
        return self.hear_all()

    def hear_all(self) -> int:
        self.worker(*self._encoded)
        number = self._encoded[-1].utterance
        self._encoded.clear()
        return number

    def write(self, number: int, text: str, session: int = 1) -> None:
        self.worker(wire.Transcript(session, number, text, True))

    def told(self) -> list[tuple[str, str]]:
        return [(event["item_id"], event["transcript"]) for event in self.of(COMPLETED)]

    def items(self) -> list[str]:
        return [event["item_id"] for event in self.of("input_audio_buffer.committed")]

    def context(self) -> list[tuple[str, str]]:
        """What the worker was last asked."""
        return [(item.role, item.text) for item in self.asked(wire.Respond)[-1].context]


def test_completed_comes_once_and_late_and_the_next_prompt_holds_it() -> None:
    driver = LateDriver()
    number = driver.turn()
    assert driver.of("response.done") and not driver.told(), "no empty transcript first"
    driver.write(number, "A latte.")
    driver.write(number, "Another.")
    assert driver.told() == [(driver.items()[0], "A latte.")]
    driver.turn()
    before = driver.asked(wire.StartUtterance)[-1].context
    assert [(item.role, item.text) for item in before] == [("user", "A latte."), ("assistant", "Yes.")]
    assert driver.context() == [("user", "A latte."), ("assistant", "Yes."), ("user", "")]
    check(driver.events)


def test_without_transcription_events_the_prompt_holds_it_all_the_same() -> None:
    driver = LateDriver(settings={"audio": {"input": {"transcription": None}}})
    driver.write(driver.turn(), "A latte.")
    driver.turn()
    assert driver.context()[0] == ("user", "A latte.")
    assert not [kind for kind in driver.types() if "transcription" in kind]


def test_transcript_of_a_deleted_item_is_not_told() -> None:
    driver = LateDriver()
    number = driver.turn()
    driver.send(type="conversation.item.delete", item_id=driver.items()[0])
    assert wire.DropUtterance(1, number) in driver.to_worker
    driver.write(number, "A latte.")
    assert not driver.told()
    driver.turn()
    assert driver.context() == [("assistant", "Yes."), ("user", "")]
    check(driver.events)


def test_transcript_goes_to_its_own_item_while_the_second_turn_is_spoken_and_after() -> None:
    driver = LateDriver()
    first = driver.turn()
    driver.speak(0.5)
    driver.write(first, "A latte.")
    assert driver.told() == [(driver.items()[0], "A latte.")]
    driver.hush(2.0)
    second = driver.hear_all()
    assert driver.context() == [("user", "A latte."), ("assistant", "Yes."), ("user", "")]
    driver.write(second, "And a tea.")
    assert driver.told() == list(zip(driver.items(), ["A latte.", "And a tea."], strict=True))
    check(driver.events)


def test_next_worker_hears_the_newest_again_and_writes_it_down() -> None:
    driver = LateDriver()
    first, second = driver.turn(), driver.turn()
    driver.do(driver.session.worker_lost())
    assert [event["item_id"] for event in driver.of(FAILED)] == [driver.items()[0]], "one is all it has room for"
    driver.do(driver.session.worker_ready(WorkerSlot(2, READY)))
    again = [start.utterance for start in driver.asked(wire.StartUtterance) if start.session == 2]
    assert again == [second] and wire.EndUtterance(2, second) in driver.to_worker
    driver.hear_all()
    driver.write(second, "And a tea.", session=2)
    driver.write(first, "A latte.", session=2)
    assert driver.told() == [(driver.items()[1], "And a tea.")]
    driver.turn()
    said = [text for role, text in driver.context() if role == "user"]
    assert said == ["", "And a tea.", ""]
    check(driver.events)


def test_sound_that_came_with_a_response_alone_is_answered_but_not_written_down_for_anybody() -> None:
    driver = SessionDriver(reply="Sure.", transcript="a latte")
    sound = base64.b64encode(b"\x00\x20" * 24_000).decode()
    item = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": sound}]}
    driver.send(type="response.create", response={"conversation": "none", "input": [item]})
    driver.advance(3.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    (ask,) = driver.asked(wire.Respond)
    assert ask.context[-1].utterance is not None
    assert not [event for event in driver.events if "input_audio_transcription" in event["type"]]
    check(driver.events)


def test_a_half_whose_words_are_still_to_come_is_written_down_without_the_one_that_was_deleted() -> None:
    driver = paused(SessionDriver(reply=None, transcript="a latte"))
    first = driver.last("conversation.item.added")["item"]["id"]
    driver.transcript = None
    driver.speak(0.8)
    driver.hush(0.6)
    second = driver.last("conversation.item.added")["item"]["id"]
    assert second != first
    driver.transcript = "with milk"
    driver.send(type="conversation.item.delete", item_id=first)
    driver.advance(0.1)
    told = driver.of("conversation.item.input_audio_transcription.completed")
    assert [(e["item_id"], e["transcript"]) for e in told][1:] == [(second, "with milk")]
    assert not driver.session.needs_worker or driver.session.answering
    check(driver.events)
