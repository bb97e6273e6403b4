"""Calls of the embedded model, which knows a coffee counter and cannot write JSON.

It restates an order with every change and says what it costs when the customer is done; so what it ordered, and that
it was confirmed, is read from what it said and was heard to say, in the phrases that it was trained on
(`models.orders`). Both must agree, the model's answer and the customer's words: what sounds like anything but "that's
all" confirms nothing. An order whose answer was cut off before the call is still to be submitted: that is done with the
next answer that changes nothing.

What an interrupted answer was about is read from the customer's words, where the weights remember answers alone.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import msgspec

from agent.wire import ContextItem, ToolUse
from models.orders import (
    DRINKS,
    MILKS,
    ROASTS,
    SHOTS,
    SIZES,
    SUGARS,
    Basket,
    Order,
    number_words,
    order_in_words,
    parse_basket,
    phrase_order,
    price_of,
)
from worker.calls.caller import Calling
from worker.calls.template import defined_name
from worker.calls.unordered import OF_NO_ORDER, order_possible
from worker.parts import Called, RequestError

SUBMIT, CANCEL = "submit_order", "cancel_order"

_PRICE = re.compile(r"^great,? that is (?P<price>[a-z ]+)", re.IGNORECASE)
_PRICED = re.compile(r"^great,? that is\b", re.IGNORECASE)
_CANCELLED = re.compile(r"^no problem,? i cancelled", re.IGNORECASE)
_PARTING = re.compile(r"^(you are welcome|goodbye)", re.IGNORECASE)
_RESTATES = re.compile(r"^(okay|sure|we have no)\b", re.IGNORECASE)
_CLOSING_WORDS = (
    "all", "alright", "bye", "done", "everything", "fine", "good", "great", "it", "no", "nope", "nothing", "okay",
    "perfect", "right", "thank", "thanks", "thats", "yes",
)  # fmt: skip
# Whoever says one of these asks for something else than to be done.
_OTHER_WORDS = {
    *" ".join((*DRINKS, *SIZES, *ROASTS, *SHOTS, *MILKS, *SUGARS)).split(),
    *("cancel", "never", "forget", "change", "make", "add", "with", "without", "instead", "actually", "how", "much"),
    *("cost", "price", "owe", "wait", "repeat", "again", "what", "pardon", "sorry", "hold", "leave"),
}  # fmt: skip

WELCOME = "You are welcome. Enjoy your coffee."
ANYTHING_ELSE = "What can I get you?"
FAILED = "Sorry, I can not take that order. What can I get you?"
NO_HELP = "Sorry, I can only help with coffee orders."
_LONGEST_LITERAL = 2000
MOST_SAID = 120
"""Of what a function gave, so many characters at most are read out."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the conversation has come to. basket: the order as it was restated last, None where there is none or where
    it was not heard whole; confirmed: its price was said; submitted: it was sent off."""

    basket: Basket | None = None
    confirmed: bool = False
    submitted: bool = False


def standing(items: tuple[ContextItem, ...]) -> Standing:
    now = Standing()
    for item in items:
        text = item.text.strip()
        if item.role == "assistant":
            if _RESTATES.match(text):
                now = Standing(parse_basket(text) if _is_whole(text) else None)
            elif _CANCELLED.match(text):
                now = Standing()
            elif _PRICED.match(text):
                now = Standing(now.basket, True, now.submitted)
        elif item.role == "call" and item.name == SUBMIT:
            now = Standing(now.basket, True, True)
        elif item.role == "call" and item.name == CANCEL:
            now = Standing()
        elif item.role == "result" and item.name == SUBMIT and failure(item.text) is not None:
            now = Standing(now.basket)
    return now


def _is_whole(text: str) -> bool:
    """Whether the order in it was heard to its end: a sentence follows, or its full stop."""
    return "." in text


def confirms(words: str) -> bool:
    """Whether a customer's words say that he is done, as far as a recogniser can be trusted."""
    said = re.findall(r"[a-z]+", words.lower().replace("'", ""))
    return not _OTHER_WORDS & set(said) and any(_sounds_like(word, known) for word in said for known in _CLOSING_WORDS)


def _sounds_like(word: str, known: str) -> bool:
    if word == known:
        return True
    if min(len(word), len(known)) < 4 or abs(len(word) - len(known)) > 1:
        return False
    same = sum(a == b for a, b in zip(word, known, strict=False))
    from_behind = sum(a == b for a, b in zip(reversed(word), reversed(known), strict=False))
    return max(same, from_behind) >= max(len(word), len(known)) - 1


def slots(basket: Basket, *, listed: bool) -> dict[str, object]:
    """Arguments of `submit_order`: the slots of one drink, or `items` with a `count` each."""
    if len(basket) == 1 and basket[0].count == 1 and not listed:
        return dict(basket[0].order)
    return {"items": [{"count": item.count, **item.order} for item in basket]}


def recalled(items: tuple[ContextItem, ...]) -> tuple[ContextItem, ...]:
    """For weights that remember their own answers alone: where the answer to an order was cut off before it had been
    restated, or was not heard at all, the customer's words are all there is of it. What they order is put in the place
    of that answer, in the phrase that would have restated it."""
    told: list[ContextItem] = []
    order: Order | None = None
    asked = ""
    for item in (*items, ContextItem("user", "")):
        if item.role == "system":
            told.append(item)
            continue
        heard = item.role == "assistant"
        cut = _RESTATES.match(item.text) is not None and not _is_whole(item.text) if heard else item.role == "user"
        wanted = order_in_words(asked, order) if asked and cut else None
        if wanted is not None:
            order = wanted
            told.append(ContextItem("assistant", f"Okay, {phrase_order(wanted)}. Anything else?"))
        if heard and not cut:
            order = _order_after(item.text, order)
        if wanted is None or not heard:
            told.append(item)
        asked = item.text if item.role == "user" else ""
    return tuple(told[:-1])


def _order_after(answer: str, order: Order | None) -> Order | None:
    """The one drink that stands after an answer that was heard."""
    if _CANCELLED.match(answer):
        return None
    basket = parse_basket(answer) if _RESTATES.match(answer) else None
    if basket is None:
        return order
    return basket[0].order if len(basket) == 1 and basket[0].count == 1 else None


@dataclass(frozen=True, slots=True)
class CounterCaller:
    """`remembers_words`: the weights were trained to remember what the customer said, too."""

    remembers_words: bool = True
    names: tuple[str, ...] | None = (SUBMIT, CANCEL)

    def introduction(self, tools: ToolUse) -> str:
        return ""

    def remembered(self, items: tuple[ContextItem, ...]) -> tuple[ContextItem, ...]:
        return items if self.remembers_words else recalled(items)

    def beginnings(self, items: tuple[ContextItem, ...]) -> tuple[str, ...]:
        return () if order_possible(items) else OF_NO_ORDER

    def calling(self, items: tuple[ContextItem, ...], tools: ToolUse) -> Calling | None:
        if items and items[-1].role == "result":
            return Calling(lambda text: [], say=reply_to(items[-1]))
        defined = {defined_name(definition): definition for definition in tools.definitions}
        known = {name for name in (SUBMIT, CANCEL) if name in defined and tools.only in ("", name)}
        if tools.required and not known:
            wanted = tools.only or "none of its functions"
            raise RequestError("no_tool_call", f"this model calls {SUBMIT} and {CANCEL} only, and not {wanted}")
        if not known:
            return None
        before, words = standing(items[:-1]), items[-1].text if items else ""
        listed = SUBMIT in defined and '"items"' in defined[SUBMIT]

        def read(text: str) -> list[Called]:
            name, basket = decision(before, words, text.strip(), must_call=tools.required)
            if tools.required and tools.only == CANCEL:
                name = CANCEL
            if name not in known:
                if tools.required:
                    raise RequestError("no_tool_call", "there is no order to submit, and nothing to cancel")
                return []
            arguments = slots(basket, listed=listed) if name == SUBMIT and basket is not None else {}
            return [Called(name, msgspec.json.encode(arguments).decode())]

        return Calling(read, silent=tools.required)


def decision(before: Standing, words: str, answer: str, *, must_call: bool = False) -> tuple[str, Basket | None]:
    """The function that an answer calls, "" for none, and the order to submit. must_call: whoever asked answers for it,
    so that an order needs no confirmation."""
    if _CANCELLED.match(answer):
        return CANCEL, None
    if must_call:
        restated = parse_basket(answer) if _RESTATES.match(answer) else None
        basket = restated or before.basket
        return (SUBMIT, basket) if basket is not None else ("", None)
    if before.basket is None or before.submitted:
        return "", None
    priced = _PRICE.match(answer)
    if priced is not None:
        agreed = priced["price"].strip().lower() == price_of(before.basket)
        return (SUBMIT, before.basket) if agreed and confirms(words) else ("", None)
    if before.confirmed and _PARTING.match(answer):
        return SUBMIT, before.basket
    return "", None


class _Result(msgspec.Struct):
    """What is looked for in a result that is a JSON object."""

    error: object = None
    success: object = None
    ok: object = None
    status: object = None
    order_number: object = None
    order_id: object = None
    number: object = None


def _read(text: str) -> _Result:
    """LiveKit's framework writes a dictionary as Python does, not as JSON."""
    try:
        return msgspec.json.decode(text, type=_Result)
    except msgspec.DecodeError:
        pass
    try:
        return msgspec.convert(ast.literal_eval(text[:_LONGEST_LITERAL]), _Result)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):  # what malformed literals lead to
        return _Result()


def failure(text: str) -> str | None:
    """Why a function failed, "" where it does not say; None where it did not."""
    result = _read(text)
    if result.error:
        return result.error if isinstance(result.error, str) else ""
    if result.success is False or result.ok is False or result.status in ("error", "failed", "failure"):
        return ""
    return "" if re.match(r"\s*\"?(error|failed|failure)\b", text, re.IGNORECASE) else None


def reply_to(result: ContextItem) -> str:
    """What is said after a function has given its result."""
    if failure(result.text) is not None:
        return FAILED
    if result.name == CANCEL:
        return ANYTHING_ELSE
    if result.name == SUBMIT:
        read = _read(result.text)
        found = next((n for n in (read.order_number, read.order_id, read.number) if n is not None), None)
        number = int(str(found)) if str(found).isdigit() else 0
        return f"Your order number is {number_words(number)}." if 0 < number < 100 else WELCOME
    text = result.text.strip().strip('"')
    return text if 0 < len(text) <= MOST_SAID and text[0] not in "{[" else NO_HELP
