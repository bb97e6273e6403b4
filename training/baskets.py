"""Several drinks in one order: how customers say them, how the barista restates them, what they cost.

One drink once is what `training.world` knows; its phrases stay as they are.
"""

from __future__ import annotations

import random
import re

from models.orders import COUNTS, Basket, Item, Order, in_plural, phrase_basket
from training.phrases import CARRIERS
from training.world import confirm, confirm_change, order_bodies, sample_order


def confirm_basket(basket: Basket) -> str:
    return confirm(basket[0].order) if _single(basket) else f"Okay, {phrase_basket(basket)}. Anything else?"


def confirm_basket_change(basket: Basket) -> str:
    return confirm_change(basket[0].order) if _single(basket) else f"Sure, {phrase_basket(basket)}. Anything else?"


def _single(basket: Basket) -> bool:
    return len(basket) == 1 and basket[0].count == 1


def small_order(rng: random.Random) -> Order:
    """An order of at most three slots: nobody says all of six for two drinks."""
    while len(order := sample_order(rng)) > 3:
        pass
    return order


def sample_basket(rng: random.Random) -> Basket:
    """Several of one drink, or two or three drinks."""
    draw = rng.random()
    if draw < 0.5:
        order = sample_order(rng) if rng.random() < 0.3 else small_order(rng)
        return (Item(rng.choice((2, 2, 2, 3, 3, 4, 5, 6)), order),)
    count = 2 if draw < 0.93 else 3
    return tuple(Item(rng.choice((1, 1, 1, 1, 2, 3)), small_order(rng)) for _ in range(count))


def say_item(item: Item, rng: random.Random) -> str:
    """Without carrier: "two large lattes with milk", "a mocha"."""
    bodies = order_bodies(item.order)
    body = rng.choice(bodies[:2]) if rng.random() < 0.5 else rng.choice(bodies)
    bare = re.sub(r"^an? ", "", body)
    if item.count == 1:
        return f"one {bare}" if rng.random() < 0.15 else body
    count = "a couple of" if item.count == 2 and rng.random() < 0.15 else COUNTS[item.count - 1]
    return f"{count} {in_plural(bare, item.order['coffeeDrink'])}"


def say_basket(basket: Basket, rng: random.Random) -> str:
    """What a customer may say for it, lower case without punctuation."""
    link = rng.choice((" and ", " and ", " and ", " plus ", " and also "))
    said = link.join(say_item(item, rng) for item in basket)
    return f"{rng.choice(CARRIERS)} {said}".strip() + rng.choice(("", "", " please", " please", " thanks"))
