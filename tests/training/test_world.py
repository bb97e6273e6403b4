"""The coffee world: what is ordered is said, confirmed and read back; turns are numbered for good."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from models.orders import DRINKS, SHOTS, SIZES, Order, parse_order, phrase_order, price_text
from training.phrases import DECLINE
from training.world import (
    confirm,
    confirm_change,
    order_bodies,
    pool_turn,
    reply_pool,
    sample_order,
    sample_turn,
    say_order,
)

LABELS = Path(__file__).resolve().parents[1] / "speech" / "labels.json"
FIRST_REPLIES = [
    "Okay, one triple shot light roast mocha with whole milk. Anything else?",
    "Okay, one dark roast iced mocha with some sweetener. Anything else?",
    "Okay, one light roast mocha with lots of sweetener. Anything else?",
]
RECORDED: list[Order] = [label["slots"] for label in json.loads(LABELS.read_text()).values()]


def sampled_orders(count: int, seed: int = 0) -> list[Order]:
    rng = random.Random(seed)
    return [sample_order(rng) for _ in range(count)]


def test_every_confirmed_order_is_read_back() -> None:
    for order in sampled_orders(5000):
        assert parse_order(confirm(order)) == order
        assert parse_order(confirm_change(order)) == order


@pytest.mark.parametrize("order", RECORDED, ids=phrase_order)
def test_recorded_orders_are_read_back(order: Order) -> None:
    assert parse_order(confirm(order)) == order


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shots", SHOTS)
def test_a_size_is_not_taken_for_a_roast(size: str, shots: str) -> None:
    for order in (
        {"size": size, "roast": "medium roast", "coffeeDrink": "latte"},
        {"numberOfShots": shots, "roast": "medium roast", "coffeeDrink": "mocha"},
        {"roast": "medium roast", "coffeeDrink": "espresso"},
    ):
        assert parse_order(confirm(order)) == order


@pytest.mark.parametrize(
    "reply",
    [
        DECLINE,
        "",
        "Okay, one large tea. Anything else?",
        "Okay, one latte with oat milk. Anything else?",
        "Okay, one latte with milk and cream. Anything else?",
        "Okay, one large large latte. Anything else?",
    ],
)
def test_what_is_no_order_is_not_read_as_one(reply: str) -> None:
    assert parse_order(reply) is None


def test_customers_say_every_slot_of_their_order() -> None:
    rng = random.Random(1)
    for order in sampled_orders(3000, seed=1):
        said = say_order(order, rng)
        for value in order.values():
            assert f" {value} " in f" {said} ", (said, order)
        assert re.fullmatch(r"[a-z' ]+", said) and said == " ".join(said.split())


def test_every_phrasing_holds_the_slots_and_stands_once() -> None:
    for order in [*RECORDED, *sampled_orders(100, seed=2)]:
        bodies = order_bodies(order)
        assert len(set(bodies)) == len(bodies)
        assert all(f" {value} " in f" {body} " for body in bodies for value in order.values())


def test_articles_agree_with_the_word_behind_them() -> None:
    for order in sampled_orders(300, seed=3):
        for body in order_bodies(order):
            for article, following in re.findall(r"\b(an?) (\w)", body.replace("a bit of", "").replace("a l", "l")):
                assert (article == "an") == (following in "aeiou"), body


def test_a_change_restates_the_whole_order() -> None:
    rng = random.Random(4)
    changes = [turn for turn in (sample_turn(rng) for _ in range(4000)) if turn.reply.startswith("Sure, ")]
    assert len(changes) > 400
    for turn in changes:
        before, after = parse_order(turn.history), parse_order(turn.reply)
        assert before is not None and after is not None and after == turn.order
        changed = {slot for slot in before | after if before.get(slot) != after.get(slot)}
        assert len(changed) <= 1
        for slot in changed & set(after):
            assert after[slot] in turn.user


@pytest.mark.parametrize(
    ("order", "price"),
    [
        ({"coffeeDrink": "coffee"}, "two dollars"),
        ({"coffeeDrink": "iced coffee", "size": "small"}, "two dollars fifty"),
        ({"coffeeDrink": "latte", "size": "large", "milkAmount": "soy milk"}, "four dollars fifty"),
        ({"coffeeDrink": "iced mocha", "size": "twenty ounce"}, "five dollars fifty"),
    ],
)
def test_prices_come_from_drink_and_size(order: Order, price: str) -> None:
    assert price_text(order) == price


def test_every_order_has_a_price_in_words() -> None:
    for drink in DRINKS:
        for size in SIZES:
            assert re.fullmatch(
                r"(two|three|four|five) dollars( fifty)?", price_text({"coffeeDrink": drink, "size": size})
            )


def test_a_numbered_turn_never_changes() -> None:
    assert [pool_turn(seed) for seed in range(300)] == [pool_turn(seed) for seed in range(300)]
    assert len({pool_turn(seed).user for seed in range(300)}) > 200
    # Recordings were made of these turns: their numbers must go on meaning the same words.
    assert [pool_turn(seed).reply for seed in (0, 1, 2)] == FIRST_REPLIES


def test_the_reply_pool_is_distinct_and_in_order_of_the_turns() -> None:
    pool = reply_pool(200)
    assert len(pool) == len(set(pool)) == 200
    assert pool[0] == pool_turn(0).reply
    spoken = {pool_turn(seed).reply for seed in range(2000)}
    assert set(pool) <= spoken
    assert reply_pool(50) == pool[:50]
    assert reply_pool(5, first_seed=1)[0] == pool_turn(1).reply
