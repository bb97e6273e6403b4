"""Whether there is an order that an answer could be about: the embedded model restates one where none was given.

It was taught a counter where nearly everybody orders, and takes what it does not know for an order. An answer that
restates, changes or prices an order is only about one if a drink was named, now or before, as far as a recogniser can
be trusted with it; where none was, the answer begins as those do that are about none, whichever is likeliest.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import pairwise

from agent.wire import ContextItem
from models.orders import DRINKS

OF_NO_ORDER = ("Hello", "I", "We", "You", "Goodbye", "Sorry", "No", "Yes", "What", "Take")
"""How answers begin that are about no order; those about one begin with Okay, Sure, Great or That."""

_DRINKS = tuple(dict.fromkeys(drink.split()[-1] for drink in DRINKS))
_TYPED, _HEARD = 0.75, 0.6
"""From this share of common letters on a word is a drink's, misspelt or misheard."""
_LEAST_LETTERS = 4
_BEGINNINGS = {
    "a", "an", "and", "brew", "can", "could", "get", "give", "have", "i", "id", "ill", "like", "make", "may", "me",
    "need", "of", "one", "order", "please", "some", "take", "the", "to", "want", "will", "would", "you",
}  # fmt: skip
"""A transcript of nothing else may have missed the drink."""
_PARTS = {"roast", "shot", "ounce", "sugar", "sweetener", "milk", "cream"}
_LEAVES_OUT = {"no", "without", "hold", "leave", "what", "which"}
"""Who was heard to say one of the first and none of the second was ordering."""
_WITHOUT_ORDER = ("We have coffee", "I recommend", "You are welcome")
"""Answers that name drinks, but order none."""
_CANCELLED = "No problem, I cancelled"


def drink_named(words: str, *, heard: bool = False) -> bool:
    """Whether one of the words, or two of them together, is or sounds like a drink of the menu; of what was heard, also
    where an order was begun, or parts of one understood, so that the drink may have been missed."""
    said = re.findall(r"[a-z]+", words.lower().replace("'", ""))
    if heard and (_BEGINNINGS.issuperset(said) or (_PARTS & {*said} and not _LEAVES_OUT & {*said})):
        return True
    pieces = [*said, *(first + second for first, second in pairwise(said))]
    least = _HEARD if heard else _TYPED
    return any(_likeness(piece, drink) >= least for piece in pieces for drink in _DRINKS)


def _likeness(piece: str, drink: str) -> float:
    if len(piece) < _LEAST_LETTERS:
        return 0.0
    return SequenceMatcher(None, piece.removesuffix("s"), drink, autojunk=False).ratio()


def order_possible(items: tuple[ContextItem, ...]) -> bool:
    """Whether an answer to the last of the items may be about an order: a drink was named in it or before, by whomever,
    and was not taken back since."""
    if items and items[-1].utterance is not None and not items[-1].text.strip():
        items = items[:-1]  # where nothing was understood, nobody spoke
    for item in reversed(items):
        if item.role == "assistant" and item.text.startswith(_CANCELLED):
            return False
        orders = item.role == "user" or (item.role == "assistant" and not item.text.startswith(_WITHOUT_ORDER))
        if orders and drink_named(item.text, heard=item.utterance is not None):
            return True
    return False
