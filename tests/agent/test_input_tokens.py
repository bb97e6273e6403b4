"""`x_agogic.input_tokens`: what a spoken turn was merged to, told to who asks for it."""

from __future__ import annotations

import pytest

from agent import wire
from tests.support.conformance import check
from tests.support.session_driver import SessionDriver

ASKED = {"x_agogic": {"events": ["input_tokens"]}}
GROUP_MS = [320, 80, 160, 240]


def spoken(settings: dict[str, object] | None) -> tuple[SessionDriver, int]:
    """A driver after a turn, and the number of its utterance."""
    driver = SessionDriver(settings=settings)
    driver.speak(0.8)
    driver.hush(1.0)
    (ended,) = driver.asked(wire.EndUtterance)
    return driver, ended.utterance


def encoded(driver: SessionDriver, utterance: int, group_ms: list[int]) -> None:
    driver.worker(wire.UtteranceEncoded(1, utterance, 12_800, 20, len(group_ms), 5.0, 1.0, group_ms))


def test_who_asks_is_told_once_with_the_item_that_was_spoken() -> None:
    driver, utterance = spoken(ASKED)
    encoded(driver, utterance, GROUP_MS)
    (told,) = driver.of("x_agogic.input_tokens")
    assert told["durations_ms"] == GROUP_MS
    assert told["item_id"] == driver.last("input_audio_buffer.committed")["item_id"]
    check(driver.events)


@pytest.mark.parametrize(
    ("settings", "group_ms", "known"),
    [(None, GROUP_MS, True), (ASKED, [], True), (ASKED, GROUP_MS, False)],
    ids=["nobody asked", "the worker does not tell", "an utterance of nobody's"],
)
def test_nobody_else_is_told(settings: dict[str, object] | None, group_ms: list[int], known: bool) -> None:
    driver, utterance = spoken(settings)
    encoded(driver, utterance if known else utterance + 7, group_ms)
    assert not driver.of("x_agogic.input_tokens")


def test_a_turn_that_was_deleted_in_the_meantime_has_none() -> None:
    driver, utterance = spoken(ASKED)
    driver.send(type="conversation.item.delete", item_id=driver.last("input_audio_buffer.committed")["item_id"])
    encoded(driver, utterance, GROUP_MS)
    assert not driver.of("x_agogic.input_tokens")
