"""The measurements of what the barista was not built for, and of long conversations, with answers made up here."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from agent.wire import ContextItem
from benchmarks.dialogue import dialogues, unexpected
from benchmarks.dialogue.unexpected_texts import FIRST_WORDS, OUTSIDE_THE_MENU
from models.orders import parse_basket
from training.baskets import confirm_basket
from worker.turn import TurnSettings

MODEL = SimpleNamespace(output_sample_rate=24_000)


def turn(text: str, seconds: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(text=text, transcript="", pcm=np.zeros(int(24_000 * seconds), np.float32))


@pytest.mark.parametrize(
    ("answer", "is_invented"),
    [
        ("Okay, one small latte. Anything else?", True),
        ("Okay, one small small small", True),
        ("Great, that is all dollars.", True),
        ("We have no tea, so one latte. Anything else?", True),
        ("Sorry, we have no tea. What can I get you?", False),
        ("Hello, what can I get you?", False),
        ("", False),
    ],
)
def test_what_counts_as_invented(answer: str, is_invented: bool) -> None:
    assert unexpected.invented(answer) is is_invented


def test_things_are_counted_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_text(model: object, words: str, settings: TurnSettings) -> SimpleNamespace:
        if words in OUTSIDE_THE_MENU[:3]:
            return turn("Okay, one latte. Anything else?", 16.0)
        return turn(FIRST_WORDS.get(words, "What would you like?"))

    heard: list[float] = []

    def by_voice(model: object, sound: np.ndarray, settings: TurnSettings) -> SimpleNamespace:
        heard.append(len(sound) / 16_000)
        return turn("" if len(heard) > 1 else "Pardon?")

    monkeypatch.setattr(unexpected, "ask_by_text", by_text)
    monkeypatch.setattr(unexpected, "ask_by_voice", by_voice)
    report = unexpected.run(MODEL, False, 12.5, 12.5)
    assert report["things"] == 300
    assert report["invented_orders"] == {"outside_the_menu": 3, "off_topic": 0, "fragment": 0, "nobody_speaks": 0}
    assert report["no_invented_order_share"] == 0.99 and report["sounds_unanswered_share"] == 0.98
    assert report["longest_answer_s"] == 16.0
    assert report["first_words_answered_rightly"] == report["first_words"] == len(FIRST_WORDS)
    assert len(heard) == 50 and min(heard) > 0.9 and max(heard) < 5.1


def test_sounds_are_the_same_each_time_and_never_clipped_flat() -> None:
    once, again = list(unexpected.sounds(10)), list(unexpected.sounds(10))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert all(np.abs(sound).max() <= 1 and np.mean(np.abs(sound) == 1) < 0.01 for sound in once)


def test_the_last_answer_of_a_conversation_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A barista who remembers wins every time; one who forgets what was changed does not."""
    told: list[tuple[ContextItem, ...]] = []
    forgetful = False

    def by_text(model: object, words: str, settings: TurnSettings) -> SimpleNamespace:
        told.append(settings.history)
        place, number = (len(told) - 1) % dialogues.TURNS, (len(told) - 1) // dialogues.TURNS
        wanted = dialogues.drawn(number).wanted
        if place < dialogues.TURNS - 1:
            return turn("Take your time.")
        return turn(confirm_basket(wanted[:1] if forgetful else wanted))

    monkeypatch.setattr(dialogues, "ask_by_text", by_text)
    assert dialogues.run(MODEL, 20, False, 12.5)["final_order_right_share"] == 1.0
    assert [len(history) for history in told[:5]] == [0, 2, 4, 6, 8]
    told.clear()
    forgetful = True
    assert 0.3 < dialogues.run(MODEL, 20, False, 12.5)["final_order_right_share"] < 1.0


def test_dialogues_have_five_turns_and_an_order_that_can_be_restated() -> None:
    drawn = [dialogues.drawn(number) for number in range(200)]
    assert all(len(one.said) == 5 and parse_basket(confirm_basket(one.wanted)) == one.wanted for one in drawn)
    assert len({one.said for one in drawn}) == 200
    assert sum(len(one.wanted) > 1 for one in drawn) > 40
