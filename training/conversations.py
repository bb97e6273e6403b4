"""Turns put into conversations: which answers came before, and the same words said after another order.

The embedded model reads its last two answers. The order may stand in either: a price or a piece of small talk may have
come between, and an older order may stand before the one that counts.
"""

from __future__ import annotations

import random
from dataclasses import replace

from training.world import (
    CANCELLED,
    DECLINE,
    NOTHING_ORDERED,
    SMALL_TALK_REPLIES,
    Order,
    Turn,
    confirm,
    confirm_change,
    parse_order,
    price_text,
    sample_order,
    sample_turn,
)

KINDS = ("order", "change", "price", "closing", "cancel", "repeat", "small talk", "decline")
_REFERRING = ("change", "price", "closing", "cancel", "repeat")


def kind(turn: Turn) -> str:
    """Which of `KINDS` a turn is."""
    if turn.order is not None:
        if turn.reply == confirm_change(turn.order):
            return "change"
        return "order" if parse_order(turn.history) is None else "repeat"
    if turn.reply in (CANCELLED, DECLINE):
        return "cancel" if turn.reply == CANCELLED else "decline"
    if turn.reply == NOTHING_ORDERED or turn.reply.startswith("That is "):
        return "price"
    return "closing" if turn.reply.startswith("Great, that is ") else "small talk"


def turn_of_kind(wanted: str, rng: random.Random) -> Turn:
    """A new turn of that kind."""
    while True:
        turn = sample_turn(rng)
        if kind(turn) == wanted:
            return turn


def after_another_order(turn: Turn, rng: random.Random) -> Turn:
    """The same words after another order, with the reply that they have there; turns that refer to none stay."""
    before = parse_order(turn.history)
    what = kind(turn)
    if before is None or what not in _REFERRING:
        return turn
    order = sample_order(rng)
    history = rng.choice((confirm, confirm, confirm_change))(order)
    if what == "price":
        return replace(turn, history=history, reply=f"That is {price_text(order)}.")
    if what == "closing":
        return replace(turn, history=history, reply=f"Great, that is {price_text(order)}.")
    if what == "repeat":
        return replace(turn, history=history, reply=confirm(order), order=order)
    if what == "cancel":
        return replace(turn, history=history)
    assert turn.order is not None
    given = {slot: value for slot, value in turn.order.items() if before.get(slot) != value}
    dropped = before.keys() - turn.order.keys()
    if not given and not dropped:
        return turn
    changed = {slot: value for slot, value in {**order, **given}.items() if slot not in dropped}
    return replace(turn, history=history, reply=confirm_change(changed), order=changed)


def answers_before(turn: Turn, rng: random.Random) -> list[str]:
    """Up to two answers that came before, oldest first; `turn.history` among them."""
    if not turn.history:
        if turn.reply == NOTHING_ORDERED and rng.random() < 0.5:
            return [confirm(sample_order(rng)), CANCELLED]
        return []
    draw = rng.random()
    order = parse_order(turn.history)
    if order is not None and kind(turn) in _REFERRING and draw < 0.25:
        return [turn.history, rng.choice((f"That is {price_text(order)}.", rng.choice(SMALL_TALK_REPLIES), DECLINE))]
    if draw < 0.6:
        return [_earlier(order, rng), turn.history]
    return [turn.history]


def _earlier(order: Order | None, rng: random.Random) -> str:
    """What may have been said before: often the order before its last change."""
    draw = rng.random()
    if draw < 0.4:
        return rng.choice((*SMALL_TALK_REPLIES, DECLINE))
    other = sample_order(rng)
    if order is not None and draw < 0.8:
        slot = rng.choice(sorted(order))
        other = {**order, slot: other.get(slot, order[slot])}
    return rng.choice((confirm, confirm_change))(other)
