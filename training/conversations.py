"""Turns put into conversations: what was said and answered before, and the same words said after another order.

The order that counts may stand in the last answer or in the one before: a price or a piece of small talk may have come
between, and an older order may stand before it. Where an answer was interrupted, it stands in the user's words alone.
"""

from __future__ import annotations

import random
from dataclasses import replace

from models.networks.prompts import PastTurn
from models.orders import Basket, Item, Order, parse_basket, parse_order, price_text
from training.baskets import say_basket
from training.phrases import (
    CANCELLED,
    CARRIERS,
    CLOSINGS,
    DECLINE,
    NOTHING_ORDERED,
    OFF_TOPIC,
    PRICE_QUESTIONS,
    SMALL_TALK_REPLIES,
    fill,
)
from training.wide_world import EXTRAS, NOT_SOLD, small_talk_phrases, wide_turn
from training.world import (
    Turn,
    change,
    confirm,
    confirm_change,
    pool_turn,
    sample_order,
    sample_turn,
    say_order,
)

WIDE_SEED = 2_000_000
"""Turns of `wide_turn` are numbered from here on; those from `WIDE_SEED + HELD_OUT_SEED` on are never trained on."""
INTERRUPTED = 0.15
"""Of the orders restated last, how many are cut off before their end."""

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


def numbered_turn(seed: int) -> Turn:
    """The turn of this number: one of `pool_turn`, or from `WIDE_SEED` on one of the wide world."""
    return pool_turn(seed) if seed < WIDE_SEED else wide_turn(random.Random(f"wide {seed}"))


def numbered_kind(seed: int) -> str:
    """`kind` of that turn, or "wide"."""
    return kind(pool_turn(seed)) if seed < WIDE_SEED else "wide"


def exchanges_before(turn: Turn, rng: random.Random) -> list[PastTurn]:
    """What was said by both before this turn, oldest first, as the model is told: transcripts, and answers as heard."""
    answers = answers_before(turn, rng)
    if rng.random() < 0.2 and answers:
        answers = [_earlier(None, rng), *answers]
    said: list[PastTurn] = []
    for place, answer in enumerate(answers):
        question = question_for(answer, rng)
        heard = answer
        if place == len(answers) - 1 and rng.random() < INTERRUPTED:
            basket = parse_basket(answer)
            if basket is not None and not answer.startswith("We have no"):
                question = say_basket_or_order(basket, rng)
                words = answer.split()
                heard = " ".join(words[: rng.randrange(len(words) - 2)])
        if question:
            said.append(PastTurn("user", misheard(question, rng)))
        if heard:
            said.append(PastTurn("assistant", heard))
    return said


def interrupted_change(rng: random.Random) -> tuple[Turn, list[PastTurn]]:
    """A change of an order of whose restating only the beginning was heard, and what was said before it."""
    turn = turn_of_kind("change", rng)
    order = parse_order(turn.history)
    assert order is not None
    words = turn.history.split()
    heard = " ".join(words[: rng.randrange(1, len(words) - 2)])
    return turn, [PastTurn("user", say_order(order, rng)), PastTurn("assistant", heard)]


def say_basket_or_order(basket: Basket, rng: random.Random) -> str:
    """A whole order in one sentence, said as `training.world` or `training.baskets` say it."""
    single = len(basket) == 1 and basket[0].count == 1
    return say_order(basket[0].order, rng) if single else say_basket(basket, rng)


def question_for(answer: str, rng: random.Random) -> str:
    """What may have been said to get this answer; "" where nothing is known."""
    basket = parse_basket(answer)
    if answer.startswith("We have no ") and basket is not None:
        extra = answer.removeprefix("We have no ").partition(",")[0]
        return f"{say_basket_or_order(basket, rng)} with {extra}"
    if basket is not None:
        if answer.startswith("Sure, ") and rng.random() < 0.6:
            return _what_changed(basket[-1], rng)
        return say_basket_or_order(basket, rng)
    if answer.startswith("That is "):
        return rng.choice(PRICE_QUESTIONS)
    if answer.startswith("Great, that is "):
        return rng.choice(CLOSINGS)
    if answer.startswith("Sorry, we have no "):
        what = answer.removeprefix("Sorry, we have no ").partition(".")[0]
        thing = what if what in EXTRAS else rng.choice(NOT_SOLD[what])
        return f"{rng.choice(CARRIERS)} a {thing}".strip()
    if answer == DECLINE:
        return fill(rng.choice(OFF_TOPIC), rng)
    return rng.choice(_PHRASES.get(answer, ("",)))


_PHRASES = small_talk_phrases()


def _what_changed(item: Item, rng: random.Random) -> str:
    """A change that may have led to this drink: it names one of its values, or takes something away."""
    while True:
        said, order = change(item.order, rng)
        if order == item.order or len(order) < len(item.order):
            return said


def misheard(text: str, rng: random.Random) -> str:
    """A transcript as the recogniser may have written it: mostly right."""
    if rng.random() < 0.75:
        return text
    words = text.split()
    place, draw = rng.randrange(len(words)), rng.random()
    word = words[place]
    if draw < 0.35 and len(words) > 2:
        del words[place]
    elif draw < 0.7 and len(word) > 3:
        at = rng.randrange(len(word))
        words[place] = word[:at] + rng.choice(("", rng.choice("aeiounrst"))) + word[at + 1 :]
    else:
        words.insert(place, rng.choice(("the", "a", "uh", "and", "it", word)))
    return " ".join(words)
