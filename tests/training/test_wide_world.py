"""The wide world: baskets are said, restated and priced, and nothing that was no order becomes one."""

from __future__ import annotations

import random

import pytest

from models.orders import Item, number_words, parse_basket, parse_order, price_of
from training.baskets import confirm_basket, sample_basket, say_basket
from training.conversations import (
    WIDE_SEED,
    exchanges_before,
    interrupted_change,
    numbered_kind,
    numbered_turn,
    question_for,
)
from training.wide_world import FOREIGN_SENTENCES, WIDE_KINDS, wide_turn
from training.world import confirm, pool_turn, sample_order


def test_what_is_restated_can_be_read_again() -> None:
    rng = random.Random(1)
    for _ in range(500):
        basket = sample_basket(rng)
        assert parse_basket(confirm_basket(basket)) == basket


def test_one_drink_is_restated_as_it_always_was() -> None:
    order = sample_order(random.Random(2))
    assert confirm_basket((Item(1, order),)) == confirm(order)


def test_two_lattes_are_two() -> None:
    latte = {"size": "large", "coffeeDrink": "latte", "milkAmount": "soy milk"}
    assert confirm_basket((Item(2, latte),)) == "Okay, two large lattes with soy milk. Anything else?"
    assert price_of((Item(2, latte), Item(1, {"coffeeDrink": "mocha"}))) == "thirteen dollars"
    assert parse_order(confirm_basket((Item(2, latte),))) is None, "it must not pass for one latte"


def test_every_number_has_words_of_its_own() -> None:
    words = [number_words(number) for number in range(1, 100)]
    assert len(set(words)) == 99 and words[20] == "twenty one" and words[9] == "ten"


def test_every_drink_of_a_basket_is_said() -> None:
    rng = random.Random(3)
    for _ in range(200):
        basket = sample_basket(rng)
        said = say_basket(basket, rng)
        assert all(item.order["coffeeDrink"].split()[-1] in said for item in basket)


@pytest.mark.parametrize("kind", ["not sold", "fragment", "nothing ordered", "foreign", "further off", "first words"])
def test_what_is_no_order_is_answered_by_none(kind: str) -> None:
    rng = random.Random(4)
    for _ in range(200):
        turn = wide_turn(rng, kind)
        restated = parse_basket(turn.reply)
        if restated is not None:  # a drink that there is, beside one that there is not
            assert kind == "not sold" and restated[0].order["coffeeDrink"] in turn.user


@pytest.mark.parametrize("kind", list(WIDE_KINDS))
def test_every_kind_gives_words_and_a_reply(kind: str) -> None:
    rng = random.Random(5)
    turns = [wide_turn(rng, kind) for _ in range(50)]
    assert all(turn.user and turn.reply for turn in turns)
    assert len({turn.user for turn in turns}) > 4


def test_of_second_thoughts_the_last_counts() -> None:
    rng = random.Random(6)
    taken_back = 0
    for _ in range(200):
        turn = wide_turn(rng, "second thought")
        order = parse_order(turn.reply)
        assert order is not None
        for drink in ("latte", "espresso", "cappuccino", "americano"):
            if drink in turn.user and drink != order["coffeeDrink"]:
                taken_back += 1
                assert turn.user.rindex(order["coffeeDrink"]) > turn.user.index(drink)
    assert taken_back > 3


def test_numbers_name_turns_of_both_worlds() -> None:
    assert numbered_turn(17) == pool_turn(17)
    assert numbered_kind(WIDE_SEED + 1) == "wide" and numbered_kind(17) != "wide"
    assert numbered_turn(WIDE_SEED + 1) == numbered_turn(WIDE_SEED + 1)
    assert len({numbered_turn(WIDE_SEED + i).reply for i in range(400)}) > 150


def test_what_was_said_before_leads_to_the_answer_that_was_given() -> None:
    rng = random.Random(7)
    for _ in range(300):
        basket = sample_basket(rng)
        said = question_for(confirm_basket(basket), rng)
        assert all(item.order["coffeeDrink"].split()[-1] in said for item in basket)
    for reply in ("Hello, what can I get you?", "What would you like?", "Sorry, we have no tea. What can I get you?"):
        assert question_for(reply, rng)


def test_an_order_that_was_not_restated_stands_in_the_users_words() -> None:
    rng = random.Random(8)
    cut = 0
    for _ in range(400):
        turn = wide_turn(rng, "counted")
        past = exchanges_before(turn, rng)
        order = parse_order(turn.history)
        assert order is not None
        if past[-1].role == "user" or past[-1].text != turn.history:
            cut += 1
            asked = next(part.text for part in reversed(past) if part.role == "user")
            missing = [value for value in order.values() if value not in asked]
            assert len(missing) <= 1, "but for one word that the recogniser may have got wrong"
    assert cut > 20


def test_an_interrupted_answer_is_a_beginning() -> None:
    rng = random.Random(9)
    for _ in range(50):
        turn, past = interrupted_change(rng)
        asked, heard = past
        assert turn.history.startswith(heard.text) and heard.text != turn.history
        order = parse_order(turn.history)
        assert order is not None and all(value in asked.text for value in order.values())


def test_other_languages_are_no_english() -> None:
    english = {"coffee", "please", "order", "want", "with", "the"}
    for sentences in FOREIGN_SENTENCES.values():
        assert not any(english & set(sentence.split()) for sentence in sentences)
