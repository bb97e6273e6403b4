"""Orders at the coffee counter that the embedded model serves: what there is, how an order is restated and read back,
and what it costs.

The model is trained on these phrases (`training.world`), so what it ordered can be read from what it says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Order = dict[str, str]

DRINKS = (
    "coffee",
    "iced coffee",
    "drip coffee",
    "house coffee",
    "mocha",
    "iced mocha",
    "americano",
    "cappuccino",
    "latte",
    "espresso",
)
SIZES = ("small", "medium", "large", "eight ounce", "twelve ounce", "sixteen ounce", "twenty ounce")
ROASTS = ("light roast", "medium roast", "dark roast")
SHOTS = ("single shot", "double shot", "triple shot")
AMOUNTS = ("", "some ", "a bit of ", "a little bit of ", "lots of ", "a lot of ")
MILKS = ("milk", "cream", "soy milk", "almond milk", "whole milk", "skim milk")
SUGARS = ("sugar", "brown sugar", "sweetener")

SLOT_ORDER = ("size", "numberOfShots", "roast", "coffeeDrink", "milkAmount", "sugarAmount")
_BASE_PRICE_CENTS = {
    "coffee": 200,
    "drip coffee": 200,
    "house coffee": 200,
    "iced coffee": 250,
    "espresso": 250,
    "americano": 300,
    "cappuccino": 350,
    "latte": 350,
    "mocha": 400,
    "iced mocha": 400,
}
_SIZE_PRICE_CENTS = {
    "small": 0,
    "eight ounce": 0,
    "medium": 50,
    "twelve ounce": 50,
    "large": 100,
    "sixteen ounce": 100,
    "twenty ounce": 150,
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def phrase_order(order: Order) -> str:
    """How the barista restates an order: "one large double shot latte with soy milk and sugar"."""
    head = " ".join(order[slot] for slot in SLOT_ORDER[:4] if slot in order)
    extras = [order[slot] for slot in SLOT_ORDER[4:] if slot in order]
    return f"one {head}" + (f" with {' and '.join(extras)}" if extras else "")


def order_cents(order: Order) -> int:
    return _BASE_PRICE_CENTS[order["coffeeDrink"]] + _SIZE_PRICE_CENTS[order.get("size", "small")]


def price_text(order: Order) -> str:
    """Price from drink and size, in words: "three dollars fifty"."""
    dollars, rest = divmod(order_cents(order), 100)
    return f"{_NUMBERS[dollars]} dollars" + (" fifty" if rest else "")


def parse_order(reply: str) -> Order | None:
    """Slots restated in a reply of the barista, None if it restates no order."""
    found = re.search(r"\bone ([a-z ]+)", reply.lower())
    if not found:
        return None
    head, _, tail = found.group(1).strip().partition(" with ")
    order: Order = {}
    for slot, values in (("size", SIZES), ("numberOfShots", SHOTS), ("roast", ROASTS)):
        for value in values:
            if head.startswith(f"{value} ") and not head.startswith(f"{value} roast"):
                order[slot] = value
                head = head[len(value) + 1 :]
                break
    if head not in DRINKS:
        return None
    order["coffeeDrink"] = head
    for part in filter(None, tail.split(" and ")):
        bare = next((part[len(amount) :] for amount in reversed(AMOUNTS) if part.startswith(amount)), part)
        slot = "milkAmount" if bare in MILKS else "sugarAmount" if bare in SUGARS else None
        if slot is None or slot in order:
            return None
        order[slot] = part
    return order


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


def in_plural(text: str, drink: str) -> str:
    """With the first mention of the drink in the plural."""
    return re.sub(rf"\b{drink}\b", f"{drink}s", text, count=1)


def phrase_item(item: Item) -> str:
    """ "two large lattes with milk" """
    one = phrase_order(item.order)
    if item.count == 1:
        return one
    return in_plural(COUNTS[item.count - 1] + one.removeprefix("one"), item.order["coffeeDrink"])


def phrase_basket(basket: Basket) -> str:
    return " and ".join(phrase_item(item) for item in basket)


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


_CHANGES = re.compile(r"\b(make (it|that)|change (it|that)|instead)\b")
_LEFT_OUT = r"\b(?:no|without|leave out the|hold the) (?:{things})\b"
_AMOUNT = "|".join(sorted(filter(None, AMOUNTS), key=len, reverse=True))


def order_in_words(words: str, before: Order | None = None) -> Order | None:
    """What a customer ordered, as far as it can be read from his words; None where they name no drink and change
    nothing of the order `before` them."""
    text = " ".join(re.findall(r"[a-z]+", words.lower()))
    found: Order = {}
    dropped = set()
    for slot, things in (("milkAmount", MILKS), ("sugarAmount", SUGARS)):
        left_out = re.search(_LEFT_OUT.format(things="|".join(_longest_first(things))), text)
        if left_out is not None:
            dropped.add(slot)
            text = text.replace(left_out.group(0), ",")
    # "medium roast" before "medium", "house coffee" before "coffee".
    for slot, things in (
        ("roast", ROASTS),
        ("numberOfShots", SHOTS),
        ("milkAmount", MILKS),
        ("sugarAmount", SUGARS),
        ("size", SIZES),
        ("coffeeDrink", DRINKS),
    ):
        amount = f"(?:{_AMOUNT})?" if slot in ("milkAmount", "sugarAmount") else ""
        named = re.search(rf"\b{amount}(?:{'|'.join(_longest_first(things))})\b", text)
        if named is not None:
            found[slot] = named.group(0)
            text = text.replace(named.group(0), ",", 1)
    if before is not None and ("coffeeDrink" not in found or _CHANGES.search(words.lower())):
        changed = {slot: value for slot, value in (before | found).items() if slot not in dropped}
        return changed if found or dropped else None
    return found if "coffeeDrink" in found else None


def _longest_first(things: tuple[str, ...]) -> list[str]:
    return sorted(things, key=len, reverse=True)
