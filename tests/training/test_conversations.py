"""Turns in conversations: the reply always fits the order that counts."""

from __future__ import annotations

import random

import pytest

from models.orders import parse_order, price_text
from training.conversations import KINDS, after_another_order, answers_before, kind, turn_of_kind
from training.phrases import CANCELLED, NOTHING_ORDERED
from training.world import confirm, confirm_change, pool_turn


def test_every_turn_of_the_pool_has_a_kind_and_all_kinds_occur() -> None:
    assert {kind(pool_turn(seed)) for seed in range(600)} == set(KINDS)


@pytest.mark.parametrize("wanted", KINDS)
def test_a_turn_is_of_the_kind_asked_for(wanted: str) -> None:
    rng = random.Random(1)
    assert all(kind(turn_of_kind(wanted, rng)) == wanted for _ in range(20))


@pytest.mark.parametrize("what", ["price", "closing", "repeat", "cancel"])
def test_replies_follow_the_other_order(what: str) -> None:
    rng = random.Random(2)
    for _ in range(40):
        turn = after_another_order(turn_of_kind(what, rng), rng)
        order = parse_order(turn.history)
        if order is None:
            assert turn.reply == NOTHING_ORDERED and not turn.history
            continue
        expected = {
            "price": f"That is {price_text(order)}.",
            "closing": f"Great, that is {price_text(order)}.",
            "repeat": confirm(order),
            "cancel": CANCELLED,
        }[what]
        assert turn.reply == expected


def test_a_change_changes_the_other_order_in_the_same_slots() -> None:
    rng = random.Random(3)
    changed_something = 0
    for _ in range(100):
        turn = turn_of_kind("change", rng)
        before, after = parse_order(turn.history), turn.order
        assert before is not None and after is not None
        moved = after_another_order(turn, rng)
        other, result = parse_order(moved.history), parse_order(moved.reply)
        assert other is not None and result is not None and moved.reply == confirm_change(result)
        for slot in after.keys() | before.keys():
            if after.get(slot) != before.get(slot):
                assert result.get(slot) == after.get(slot)
                changed_something += 1
        untouched = [slot for slot in other if after.get(slot) == before.get(slot) and moved.history != turn.history]
        assert all(result.get(slot) == other[slot] for slot in untouched)
    assert changed_something > 50


def test_the_order_that_counts_is_the_last_one_among_the_answers() -> None:
    rng = random.Random(4)
    lengths = set()
    for _ in range(300):
        turn = turn_of_kind(rng.choice(("change", "price", "closing", "repeat")), rng)
        answers = answers_before(turn, rng)
        lengths.add(len(answers))
        if turn.history:
            orders = [answer for answer in answers if parse_order(answer) is not None]
            assert orders[-1] == turn.history and answers[-1] != CANCELLED
    assert lengths == {0, 1, 2}
