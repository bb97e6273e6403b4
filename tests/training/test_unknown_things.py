"""What a coffee counter cannot know is never an order, and what it is measured by is never what it learns from."""

from __future__ import annotations

import random

import pytest

from benchmarks.dialogue.unexpected_texts import FRAGMENTS, OFF_TOPIC, OUTSIDE_THE_MENU
from models.orders import DRINKS, order_in_words, parse_basket
from training.phrases import DECLINE, NOTHING_ORDERED
from training.sentences import normalise
from training.unknown_things import THINGS, broken_off, invented_word, remark, unknown_order
from training.wide_world import ASK, wide_turn
from training.world import sample_turn


def test_no_unknown_thing_is_a_drink_of_the_menu() -> None:
    words = {word for drink in DRINKS for word in drink.split()}
    assert not words & set(THINGS) and len(THINGS) == len(set(THINGS)) > 200
    rng = random.Random(1)
    assert all(order_in_words(said) is None for said in (unknown_order(rng) for _ in range(500)))


def test_invented_words_are_many() -> None:
    rng = random.Random(2)
    assert len({invented_word(rng) for _ in range(500)}) > 350


def test_what_is_said_is_lower_case_words() -> None:
    rng = random.Random(3)
    for said in (make(rng) for make in (unknown_order, remark, broken_off) for _ in range(200)):
        assert said and said == normalise(said) and "{" not in said


def test_orders_are_broken_off_before_their_drink() -> None:
    rng = random.Random(4)
    for _ in range(300):
        assert not set(broken_off(rng).split()) & {"latte", "mocha", "coffee", "espresso", "americano", "cappuccino"}


@pytest.mark.parametrize(("kind", "reply"), [("unknown", DECLINE), ("further off", DECLINE)])
def test_they_are_declined(kind: str, reply: str) -> None:
    rng = random.Random(5)
    assert all(wide_turn(rng, kind).reply == reply for _ in range(100))


def test_of_nothing_ordered_nothing_is_changed_closed_or_priced() -> None:
    rng = random.Random(6)
    turns = [wide_turn(rng, "nothing ordered") for _ in range(400)]
    assert all(turn.reply == NOTHING_ORDERED and parse_basket(turn.history) is None for turn in turns)
    said = {turn.user for turn in turns}
    assert {"that's all", "actually no milk"} <= said and not any(drink in " ".join(said) for drink in DRINKS[1:])


def test_broken_orders_are_asked_again_where_none_stands() -> None:
    rng = random.Random(7)
    turns = [wide_turn(rng, "fragment") for _ in range(400)]
    assert all(parse_basket(turn.history) is None for turn in turns if turn.reply == ASK)


def test_shots_may_be_counted() -> None:
    rng = random.Random(8)
    turns = [wide_turn(rng, "other words") for _ in range(200)]
    double = [turn for turn in turns if turn.order is None and " two shots" in turn.user]
    assert double and all("double shot" in turn.reply for turn in double)


def test_what_is_measured_was_never_learnt() -> None:
    measured = {*OUTSIDE_THE_MENU, *OFF_TOPIC, *FRAGMENTS}
    assert len(measured) == 250
    rng = random.Random(9)
    learnt = {turn.user for draw in (wide_turn, sample_turn) for turn in (draw(rng) for _ in range(12_000))}
    assert not measured & learnt
