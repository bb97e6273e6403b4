"""Several drinks in one order: how customers say them, how the barista restates them, what they cost.

One drink once is what `training.world` knows; its phrases stay as they are.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from training.phrases import CARRIERS
from training.world import (
    Order,
    confirm,
    confirm_change,
    order_bodies,
    order_cents,
    parse_order,
    phrase_order,
    sample_order,
)

COUNTS = ("one", "two", "three", "four", "five", "six")
_TEENS = (
    *COUNTS, "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class Item:
    """The same drink `count` times, 1 to 6."""

    count: int
    order: Order


Basket = tuple[Item, ...]


def _plural(text: str, drink: str) -> str:
    return re.sub(rf"\b{drink}\b", f"{drink}s", text, count=1)


def phrase_item(item: Item) -> str:
    """ "two large lattes with milk" """
    one = phrase_order(item.order)
    if item.count == 1:
        return one
    return _plural(COUNTS[item.count - 1] + one.removeprefix("one"), item.order["coffeeDrink"])


def phrase_basket(basket: Basket) -> str:
    return " and ".join(phrase_item(item) for item in basket)


def confirm_basket(basket: Basket) -> str:
    return confirm(basket[0].order) if _single(basket) else f"Okay, {phrase_basket(basket)}. Anything else?"


def confirm_basket_change(basket: Basket) -> str:
    return confirm_change(basket[0].order) if _single(basket) else f"Sure, {phrase_basket(basket)}. Anything else?"


def _single(basket: Basket) -> bool:
    return len(basket) == 1 and basket[0].count == 1


def number_words(number: int) -> str:
    """1 to 99 in words."""
    if number < 20:
        return _TEENS[number - 1]
    tens, rest = divmod(number, 10)
    return _TENS[tens] + (f" {_TEENS[rest - 1]}" if rest else "")


def price_of(basket: Basket) -> str:
    """ "seven dollars fifty" """
    dollars, rest = divmod(sum(item.count * order_cents(item.order) for item in basket), 100)
    return f"{number_words(dollars)} dollars" + (" fifty" if rest else "")


def parse_basket(reply: str) -> Basket | None:
    """What a reply restates, None if it restates no order."""
    counts = "|".join(COUNTS)
    found = re.search(rf"\b(?:{counts}) [a-z ]+", reply.lower())
    if not found:
        return None
    items = []
    for part in re.split(rf" and (?=(?:{counts}) )", found.group(0).strip()):
        count, _, rest = part.partition(" ")
        head, link, tail = rest.partition(" with ")
        if count != "one":
            if not head.endswith("s"):
                return None
            head = head[:-1]
        order = parse_order(f"one {head}{link}{tail}")
        if order is None:
            return None
        items.append(Item(COUNTS.index(count) + 1, order))
    return tuple(items)


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
    return f"{count} {_plural(bare, item.order['coffeeDrink'])}"


def say_basket(basket: Basket, rng: random.Random) -> str:
    """What a customer may say for it, lower case without punctuation."""
    link = rng.choice((" and ", " and ", " and ", " plus ", " and also "))
    said = link.join(say_item(item, rng) for item in basket)
    return f"{rng.choice(CARRIERS)} {said}".strip() + rng.choice(("", "", " please", " please", " thanks"))
