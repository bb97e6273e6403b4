"""The coffee counter that the embedded model lives in: what customers say and what the barista answers.

Everything is drawn from a seeded `random.Random`. Replies are a deterministic function of the conversation, so that a
small Thinker can learn them: an order is confirmed by restating every slot, a change restates the whole changed order.
`pool_turn(seed)` gives the turns whose customers and replies are both synthesised; seeds from `HELD_OUT_SEED` are never
trained on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from models.orders import (
    AMOUNTS,
    DRINKS,
    MILKS,
    ROASTS,
    SHOTS,
    SIZES,
    SUGARS,
    Order,
    phrase_order,
    price_text,
)
from training.phrases import (
    CANCELLATIONS,
    CANCELLED,
    CARRIERS,
    CLOSINGS,
    DECLINE,
    ENDINGS,
    NOTHING_ORDERED,
    OFF_TOPIC,
    PRICE_QUESTIONS,
    REPETITIONS,
    SMALL_TALK,
    SMALL_TALK_REPLIES,
    fill,
)

HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class Turn:
    """One exchange. `history` is the barista's previous reply ("" at the start), `user` is spoken lower case."""

    history: str
    user: str
    reply: str
    order: Order | None


def sample_order(rng: random.Random) -> Order:
    """A drink with each further slot present as often as in recorded orders; at least two slots most of the time."""
    order: Order = {}
    if rng.random() < 0.5:
        order["size"] = rng.choice(SIZES)
    if rng.random() < 0.52:
        order["numberOfShots"] = rng.choice(SHOTS)
    if rng.random() < 0.5:
        order["roast"] = rng.choice(ROASTS)
    order["coffeeDrink"] = rng.choice(DRINKS)
    if rng.random() < 0.48:
        order["milkAmount"] = _amount(rng) + rng.choice(MILKS)
    if rng.random() < 0.53:
        order["sugarAmount"] = _amount(rng) + rng.choice(SUGARS)
    return order


def _amount(rng: random.Random) -> str:
    return "" if rng.random() < 0.45 else rng.choice(AMOUNTS[1:])


def order_bodies(order: Order) -> list[str]:
    """Every phrasing of the slots that the grammar knows, without carrier: word order, articles, links."""
    before = [slot for slot in ("size", "numberOfShots", "roast") if slot in order]
    after = [slot for slot in ("milkAmount", "sugarAmount") if slot in order]
    bodies = []
    for arrangement in _permutations(before):
        head = " ".join([order[slot] for slot in arrangement] + [order["coffeeDrink"]])
        heads = [f"{_article(head)} {head}", head]
        if "numberOfShots" in order and arrangement and arrangement[0] != "numberOfShots":
            rest = " ".join([order[slot] for slot in arrangement if slot != "numberOfShots"] + [order["coffeeDrink"]])
            heads += [f"{_article(rest)} {rest} {link} {order['numberOfShots']}" for link in ("with a", "with")]
        for link_slots in _permutations(after):
            for tail in _tails([order[slot] for slot in link_slots]):
                bodies += [h + tail for h in heads]
    return list(dict.fromkeys(bodies))


def _permutations(items: list[str]) -> list[list[str]]:
    if len(items) < 2:
        return [list(items)]
    return [[first, *rest] for i, first in enumerate(items) for rest in _permutations(items[:i] + items[i + 1 :])]


def _tails(parts: list[str]) -> list[str]:
    if not parts:
        return [""]
    if len(parts) == 1:
        return [f" with {parts[0]}", f" and {parts[0]}"]
    return [
        f" with {parts[0]} and {parts[1]}",
        f" with {parts[0]} with {parts[1]}",
        f" with {parts[0]} {parts[1]}",
        f" and {parts[0]} and {parts[1]}",
        f" with {parts[0]} and with {parts[1]}",
    ]


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def say_order(order: Order, rng: random.Random) -> str:
    """What a customer may say for this order, lower case without punctuation."""
    bodies = order_bodies(order)
    # The natural word order is far more frequent than any other.
    body = rng.choice(bodies[:2]) if rng.random() < 0.35 else rng.choice(bodies)
    carrier = rng.choice(CARRIERS)
    return f"{carrier} {body}".strip() + rng.choice(ENDINGS)


def confirm(order: Order) -> str:
    return f"Okay, {phrase_order(order)}. Anything else?"


def confirm_change(order: Order) -> str:
    return f"Sure, {phrase_order(order)}. Anything else?"


def change(order: Order, rng: random.Random) -> tuple[str, Order]:
    """A wish to change `order`, and the order after it."""
    changed = dict(order)
    kind = rng.choice(("size", "shots", "roast", "drink", "milk", "sugar", "no milk", "no sugar"))
    lead = rng.choice(("", "", "actually ", "sorry ", "wait ", "oh "))
    if kind in ("size", "shots", "roast"):
        slot, values = {"size": ("size", SIZES), "shots": ("numberOfShots", SHOTS), "roast": ("roast", ROASTS)}[kind]
        value = rng.choice(values)
        changed[slot] = value
        article = _article(value)
        said = rng.choice(
            (
                f"make it {article} {value}",
                f"make that {article} {value}",
                f"make it {value}",
                f"{article} {value} please",
                f"can you make it {article} {value}",
                f"i want {article} {value} instead",
                f"{value} please",
            )
        )
    elif kind == "drink":
        value = rng.choice(DRINKS)
        changed["coffeeDrink"] = value
        said = rng.choice(
            (
                f"make it {_article(value)} {value}",
                f"i want {_article(value)} {value} instead",
                f"change it to {_article(value)} {value}",
                f"make that {_article(value)} {value}",
            )
        )
    elif kind in ("milk", "sugar"):
        slot, things = ("milkAmount", MILKS) if kind == "milk" else ("sugarAmount", SUGARS)
        value = _amount(rng) + rng.choice(things)
        changed[slot] = value
        said = rng.choice(
            (
                f"with {value}",
                f"add {value}",
                f"and {value}",
                f"with {value} please",
                f"can you add {value}",
                f"i'd like {value} with that",
                f"{value} please",
                f"with {value} instead",
            )
        )
    else:
        slot, word = ("milkAmount", "milk") if kind == "no milk" else ("sugarAmount", "sugar")
        changed.pop(slot, None)
        said = rng.choice(
            (f"no {word}", f"without {word}", f"no {word} please", f"leave out the {word}", f"hold the {word}")
        )
    return lead + said, changed


def sample_turn(rng: random.Random) -> Turn:
    """An exchange: 62 % orders, 16 % changes, the rest price, cancelling, small talk and what is declined."""
    draw = rng.random()
    order = sample_order(rng)
    history = (confirm if rng.random() < 0.7 else confirm_change)(order)
    if draw < 0.62:
        earlier = "" if rng.random() < 0.7 else rng.choice([*SMALL_TALK_REPLIES, DECLINE])
        return Turn(earlier, say_order(order, rng), confirm(order), order)
    if draw < 0.78:
        said, changed = change(order, rng)
        return Turn(history, said, confirm_change(changed), changed)
    if draw < 0.84:
        if rng.random() < 0.5:
            said = rng.choice(PRICE_QUESTIONS)
            if rng.random() < 0.2:
                return Turn("", said, NOTHING_ORDERED, None)
            return Turn(history, said, f"That is {price_text(order)}.", None)
        said = rng.choice(CLOSINGS)
        return Turn(history, said, f"Great, that is {price_text(order)}.", None)
    if draw < 0.87:
        if rng.random() < 0.5:
            said = rng.choice(CANCELLATIONS)
            return Turn(history, said, CANCELLED, None)
        said = rng.choice(REPETITIONS)
        return Turn(history, said, confirm(order), order)
    if draw < 0.94:
        phrases, reply = rng.choice(SMALL_TALK)
        return Turn("" if rng.random() < 0.5 else history, rng.choice(phrases), reply, None)
    return Turn("" if rng.random() < 0.6 else history, fill(rng.choice(OFF_TOPIC), rng), DECLINE, None)


def pool_turn(seed: int) -> Turn:
    """The turn with this number; the same number names the same turn for customers' and barista's recordings."""
    return sample_turn(random.Random(f"turn {seed}"))


def reply_pool(count: int, first_seed: int = 0) -> list[str]:
    """Distinct replies of `pool_turn(first_seed)` onwards, in order, until `count` are found."""
    replies: dict[str, None] = {}
    seed = first_seed
    while len(replies) < count:
        replies[pool_turn(seed).reply] = None
        seed += 1
    return list(replies)
