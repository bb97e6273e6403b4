"""An answer is about an order only where a drink was named: what decides that, and what the shipped weights answer."""

from __future__ import annotations

import random

import pytest
import torch

from agent.wire import ContextItem
from benchmarks.dialogue.unexpected import invented
from benchmarks.dialogue.unexpected_texts import FIRST_WORDS, FRAGMENTS, OFF_TOPIC, OUTSIDE_THE_MENU
from models.orders import parse_order
from tests.worker.test_calls import told
from training.baskets import sample_basket, say_basket
from training.phrases import CANCELLED, DECLINE, SMALL_TALK_REPLIES
from training.world import sample_order, say_order
from worker.calls.template import TemplateCaller
from worker.calls.unordered import OF_NO_ORDER, drink_named, order_possible
from worker.loading import load_model
from worker.pipeline import Pipeline
from worker.turn import TurnSettings, ask_by_text

WRITTEN = TurnSettings(speech=False)


@pytest.fixture(scope="module")
def model() -> Pipeline:
    torch.set_num_threads(1)
    return load_model("embedded")


def test_whatever_order_is_said_names_a_drink() -> None:
    rng = random.Random(1)
    for _ in range(300):
        assert drink_named(say_order(sample_order(rng), rng)) and drink_named(say_basket(sample_basket(rng), rng))


@pytest.mark.parametrize(
    "word", ["lattes", "cappucino", "capuccino", "expresso", "americana", "mocca", "coffe", "late"]
)
def test_a_misspelt_drink_is_one(word: str) -> None:
    assert drink_named(f"a large {word} please")


@pytest.mark.parametrize(
    "words", ["a small tea please", "introduce yourself", "how much is that", "", "two glasses of water"]
)
def test_other_words_are_none(words: str) -> None:
    assert not drink_named(words)


def test_what_was_heard_is_taken_with_a_grain_of_salt() -> None:
    assert drink_named("can i get a kofee latty", heard=True)
    assert drink_named("may a", heard=True) and drink_named("", heard=True), "the drink may have been missed"
    assert drink_named("i get a medium roast", heard=True), "parts of an order are one"
    for words in ("what is the weather like", "hello", "introduce yourself", "tell me a joke", "actually no milk"):
        assert not drink_named(words, heard=True)


@pytest.mark.parametrize(
    ("lines", "possible"),
    [
        (["user: that's all"], False),
        (["user: a latte", "assistant: Okay, one latte. Anything else?", "user: that's all"], True),
        (["user: a latte", "assistant: Okay,", "user: make it a large"], True),
        (["assistant: Hello, what can I get you?", "user: actually no milk"], False),
        (
            ["user: menu", "assistant: We have coffee, espresso, latte, cappuccino, mocha and americano.", "user: ok"],
            False,
        ),
        (["assistant: Okay, one latte. Anything else?", "user: what is the time", "user: how much is it"], True),
        (["user: a latte", "assistant: No problem, I cancelled your order.", "user: that's all"], False),
        (["assistant: No problem, I cancelled your order.", "user: a mocha"], True),
        (["user: ", "assistant: You are welcome. Enjoy your coffee.", "user: that's it"], False),
    ],
)
def test_an_order_may_have_been_made_before(lines: list[str], possible: bool) -> None:
    assert order_possible(told(*lines)) is possible


def test_where_nothing_was_understood_nobody_spoke() -> None:
    silence = ContextItem("user", "", 3)
    assert not order_possible((silence,))
    assert order_possible((*told("user: a latte", "assistant: Okay, one latte. Anything else?"), silence))
    assert order_possible((silence, *told("assistant: Okay,", "user: make it a large"))), "that may have been an order"


def test_models_that_know_more_than_a_counter_may_begin_as_they_like() -> None:
    assert TemplateCaller().beginnings((ContextItem("user", "hello"),)) == ()


def test_answers_about_an_order_begin_with_tokens_of_their_own(model: Pipeline) -> None:
    """None of what is not about an order begins as what is; and all of it may be said."""
    encode = model.networks.tokenizer.encode
    others = {encode(word)[0] for word in OF_NO_ORDER}
    assert not others & {encode(word)[0] for word in ("Okay, one", "Sure, two", "Great, that is", "That is")}
    assert {encode(reply)[0] for reply in (*FIRST_WORDS.values(), *SMALL_TALK_REPLIES, DECLINE, CANCELLED)} <= others


def test_no_order_is_invented(model: Pipeline) -> None:
    said = [*list(FIRST_WORDS), *OUTSIDE_THE_MENU[::20], *OFF_TOPIC[::20], *FRAGMENTS[::10]]
    answers = {words: ask_by_text(model, words, WRITTEN).text for words in said}
    assert {
        words: answer for words, answer in answers.items() if invented(answer) or answer[-1:] not in (".", "?")
    } == {}


def test_what_is_to_be_repeated_is_repeated(model: Pipeline) -> None:
    answer = ask_by_text(model, model.repetition("Great, that is four dollars."), WRITTEN).text
    assert answer == "Great, that is four dollars."


def test_orders_are_taken_as_before_and_so_are_changes(model: Pipeline) -> None:
    first = ask_by_text(model, "a small mocha please", WRITTEN).text
    assert parse_order(first) == {"size": "small", "coffeeDrink": "mocha"}
    history = (ContextItem("user", "a small mocha please"), ContextItem("assistant", first))
    changed = ask_by_text(model, "make it a large", TurnSettings(speech=False, history=history)).text
    assert parse_order(changed) == {"size": "large", "coffeeDrink": "mocha"}
