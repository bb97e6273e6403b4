"""What is said at a coffee counter beside an order of one drink: several drinks, things that are not sold, first words,
half sentences, second thoughts, other languages, nothing at all.

Whatever was not understood is asked for again; nothing is made an order that was none. `wide_turn` draws an exchange
as `training.world.sample_turn` does, and its reply again follows from what was said and the reply before.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from models.orders import DRINKS, SHOTS, Basket, Item, Order, phrase_basket, price_of
from training.baskets import confirm_basket, confirm_basket_change, sample_basket, say_basket, say_item, small_order
from training.phrases import (
    CANCELLATIONS,
    CANCELLED,
    CARRIERS,
    CLOSINGS,
    DECLINE,
    NOTHING_ORDERED,
    PRICE_QUESTIONS,
    REPETITIONS,
    SMALL_TALK,
    fill,
)
from training.unknown_things import broken_off, remark, unknown_order
from training.world import Turn, change, confirm, order_bodies, sample_order, say_order

ASK = "What would you like?"
FOREIGN = "Sorry, I only speak English."
TAKE_TIME = "Take your time."
HEARING = "Yes, I can hear you. What can I get you?"
MORE = "What else can I get you?"
SILENCE = ""
"""The reply to a turn in which nobody spoke."""

EXTRAS = (
    "oat milk", "coconut milk", "rice milk", "vanilla syrup", "caramel syrup", "hazelnut syrup", "vanilla", "caramel",
    "whipped cream", "honey", "cinnamon", "chocolate", "lemon", "ice cream",
)  # fmt: skip
"""What may be asked for in a drink and is not there."""

NOT_SOLD: dict[str, tuple[str, ...]] = {
    "tea": ("tea", "green tea", "black tea", "iced tea", "herbal tea", "mint tea", "chai", "chai latte", "earl grey",
            "cup of tea", "chamomile tea"),
    "juice": ("juice", "orange juice", "apple juice", "glass of juice", "lemonade", "smoothie", "strawberry smoothie"),
    "soda": ("soda", "coke", "cola", "sprite", "diet coke", "ginger ale", "root beer"),
    "water": ("water", "glass of water", "bottle of water", "sparkling water"),
    "hot chocolate": ("hot chocolate", "cocoa", "hot cocoa", "milkshake", "chocolate milk"),
    "food": ("muffin", "blueberry muffin", "bagel", "croissant", "cookie", "chocolate chip cookie", "donut", "brownie",
             "piece of cake", "cake", "toast", "cheesecake", "pastry", "something to eat", "breakfast", "egg sandwich"),
}  # fmt: skip
"""What is not sold, by the word that the barista has for it."""

_FRAGMENTS = (
    "uh", "um", "er", "hmm", "ah", "oh", "so", "well", "okay", "i", "can i", "can i get", "can i get a", "could i have",
    "could i have a", "i would like", "i would like a", "i'd like", "i'll have a", "i want", "i want a", "please",
    "and", "a", "the", "with", "one", "two", "um can i", "uh i would like", "let me get", "give me", "something",
    "coffee or", "i think i", "maybe a", "yes please", "i want to order", "i would like to order", "can i order",
    "i'd like to place an order", "can i order something", "a drink", "something to drink", "what", "for me",
)  # fmt: skip
_BEGINNINGS = ("", "", "", "Hello, what can I get you?", ASK)
_HALVES = ("a {size}", "{size}", "{size} please", "a {shots}", "with {milk}", "{milk} please", "{roast}", "{sugar}",
           "with {sugar} please", "{shots} please", "a {size} {roast}")  # fmt: skip
_SHOTS_COUNTED = ("one shot", "two shots", "three shots")
_NOISES_OF_THOUGHT = ("uh", "um", "er", "hmm", "let me see", "well", "you know", "like")
_SECOND_THOUGHTS = ("no", "uh no", "no wait", "sorry", "i mean", "no sorry", "actually", "wait no")
_MORE_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hello hello", "hiya", "howdy", "morning", "greetings", "hi barista", "good day", "evening", "hey you",
      "hello agogic", "hello hi", "hi hello", "hey hi", "well hello", "uh hello", "hello barista", "hello you"),
     "Hello, what can I get you?"),
    (("introduce yourself", "please introduce yourself", "tell me about yourself", "who am i talking to", "your name",
      "what are you", "can you introduce yourself", "introduce yourself please", "say who you are",
      "tell me who you are", "and you are"), "I am agogic, your barista."),
    (("thank you so much", "cheers", "thanks so much", "many thanks", "thank you bye", "great thanks"),
     "You are welcome. Enjoy your coffee."),
    (("see you tomorrow", "good night", "have a good one", "bye for now", "goodbye now", "take care"),
     "Goodbye, have a nice day."),
    (("the menu please", "menu", "what do you sell", "what coffees do you have", "can i see the menu",
      "what can i order"), "We have coffee, espresso, latte, cappuccino, mocha and americano."),
    (("can you hear me", "are you there", "is anybody there", "is anyone there", "do you hear me",
      "hello are you there", "can you understand me", "testing testing", "hello can you hear me"), HEARING),
    (("wait", "hold on", "one moment", "one second", "just a second", "wait a moment", "let me think",
      "give me a second", "i don't know", "i'm not sure", "i am not sure yet", "let me think about it",
      "just a moment please",
      "i need a minute"), TAKE_TIME),
)  # fmt: skip
_CHANGES_OF_NOTHING = (
    "actually no milk", "no milk please", "without sugar", "no sugar", "hold the milk", "actually make it a large",
    "make it a small", "make it two", "leave out the sugar", "make that a double shot",
    "actually no sugar please", "make it dark roast", "can you make it a medium", "make it a bit bigger",
)  # fmt: skip
_READINGS = ("what did i order", "what is my order", "read that back to me", "can you read it back",
             "what do you have so far")  # fmt: skip
_FURTHER_OFF = (
    "what do you think about {name}", "can you help me find {place}", "sing a song for {name}",
    "what is {number} times {number}", "do you know {name}", "when does {name} arrive", "read me the news",
    "order a taxi to {place}", "my {thing} is broken", "i lost my {thing}", "the weather is nice {when}",
    "i like the {room}", "{name} is late {when}",
)  # fmt: skip
_AGREEMENTS = ("yes", "yeah", "yes please", "sure", "yep", "one more thing", "yes one more thing",
               "i want something else", "something else", "yes there is", "and something else")  # fmt: skip
_ADDITIONS = ("and {}", "and {} please", "also {}", "add {}", "can i also get {}", "and also {}", "plus {}",
              "and {} too", "could you add {}", "i'd also like {}", "and one more thing {}", "i would like {} as well",
              "{} as well please")  # fmt: skip
_COUNT_CHANGES = ("make it {}", "make that {}", "{} of those", "{} of them please", "i want {} of those", "actually {}",
                  "make that {} please", "can you make it {}", "{} times")  # fmt: skip
FOREIGN_SENTENCES: dict[str, tuple[str, ...]] = {
    "de": ("ich hätte gern einen kaffee", "guten tag", "was kostet das", "einen großen milchkaffee bitte",
           "sprechen sie deutsch", "ich möchte bitte bezahlen", "haben sie auch kuchen", "vielen dank auf wiedersehen"),
    "fr": ("je voudrais un café", "bonjour", "combien ça coûte", "un grand café au lait s'il vous plaît",
           "parlez vous français", "merci beaucoup au revoir", "qu'est ce que vous avez", "je ne comprends pas"),
    "es": ("quiero un café con leche", "buenos días", "cuánto cuesta", "un café grande por favor", "hablas español",
           "muchas gracias adiós", "qué tienen hoy", "no entiendo nada"),
    "it": ("vorrei un caffè per favore", "buongiorno come sta", "quanto costa", "parla italiano",
           "grazie mille arrivederci", "che cosa avete oggi", "un bicchiere d'acqua"),
    "pt": ("eu queria um café", "bom dia tudo bem", "quanto custa isso", "fala português", "muito obrigado até logo"),
    "pl": ("poproszę kawę", "dzień dobry", "ile to kosztuje", "czy mówi pan po polsku", "dziękuję bardzo"),
    "nl": ("mag ik een koffie", "goedemorgen", "wat kost dat", "spreekt u nederlands", "dank u wel tot ziens"),
    "sv": ("jag skulle vilja ha en kaffe", "god morgon", "hur mycket kostar det", "talar du svenska"),
}  # fmt: skip
"""By the name of espeak-ng's voice."""


def without(extra: str, basket: Basket) -> str:
    """The reply to an order with something that is not there."""
    return f"We have no {extra}, so {phrase_basket(basket)}. Anything else?"


def not_sold(what: str) -> str:
    return f"Sorry, we have no {what}. What can I get you?"


def _several(rng: random.Random) -> Turn:
    basket = sample_basket(rng)
    return Turn("", say_basket(basket, rng), confirm_basket(basket), None)


def _history(rng: random.Random, *, single: float = 0.6) -> tuple[str, Basket]:
    """A reply that restates a basket, and the basket."""
    basket = (Item(1, sample_order(rng)),) if rng.random() < single else sample_basket(rng)
    return rng.choice((confirm_basket, confirm_basket, confirm_basket_change))(basket), basket


def _added(rng: random.Random) -> Turn:
    basket = (Item(1, small_order(rng)),) if rng.random() < 0.75 else (Item(rng.choice((2, 3)), small_order(rng)),)
    item = Item(1 if rng.random() < 0.8 else rng.choice((2, 3)), small_order(rng))
    said = say_item(item, rng)
    if item.count == 1 and rng.random() < 0.2:
        said = "another " + re.sub("^(?:an?|one) ", "", say_item(item, rng))
        said = rng.choice((said, said + " please", "and " + said))
    else:
        said = rng.choice(_ADDITIONS).format(said)
    return Turn(confirm_basket(basket), said, confirm_basket_change((*basket, item)), None)


def _counted(rng: random.Random) -> Turn:
    history, order = "", sample_order(rng)
    history, item = confirm(order), Item(rng.choice((2, 2, 2, 3, 3, 4)), order)
    number = ("two", "three", "four", "five", "six")[item.count - 2]
    return Turn(history, rng.choice(_COUNT_CHANGES).format(number), confirm_basket_change((item,)), None)


def _changed(rng: random.Random) -> Turn:
    """A change after several drinks is one of the last."""
    basket = sample_basket(rng)
    said, order = change(basket[-1].order, rng)
    changed = (*basket[:-1], Item(basket[-1].count, order))
    return Turn(confirm_basket(basket), said, confirm_basket_change(changed), None)


def _extra(rng: random.Random) -> Turn:
    extra = rng.choice(EXTRAS)
    amount = rng.choice(("", "", "", "some ", "a bit of ", "lots of "))
    draw = rng.random()
    if draw < 0.2:
        said = rng.choice(
            (f"do you have {extra}", f"is there {extra}", f"have you got {extra}", f"do you have any {extra}")
        )
        history = "" if rng.random() < 0.5 else _history(rng)[0]
        return Turn(history, said, not_sold(extra), None)
    order = sample_order(rng) if rng.random() < 0.4 else small_order(rng)
    if draw < 0.5:
        said = rng.choice(
            (
                f"with {extra}",
                f"with {extra} please",
                f"add {amount}{extra}",
                f"can you add {extra}",
                f"and {extra}",
                f"{amount}{extra} please",
                f"with {amount}{extra} instead",
            )
        )
        return Turn(confirm(order), said, without(extra, (Item(1, order),)), None)
    order = {slot: value for slot, value in order.items() if slot not in ("milkAmount", "sugarAmount") or draw > 0.8}
    link = "with" if not {"milkAmount", "sugarAmount"} & order.keys() or rng.random() < 0.3 else "and"
    body = rng.choice(order_bodies(order))
    said = f"{rng.choice(CARRIERS)} {body} {link} {amount}{extra}".strip() + rng.choice(("", "", " please"))
    return Turn("", said, without(extra, (Item(1, order),)), None)


def _other_drink(rng: random.Random) -> Turn:
    what = rng.choice(list(NOT_SOLD))
    thing = rng.choice(NOT_SOLD[what])
    history = "" if rng.random() < 0.7 else _history(rng)[0]
    size = rng.choice(("", "", "small ", "medium ", "large ", "twelve ounce "))
    named = f"{size}{thing}"
    article = "an" if named[0] in "aeiou" else "a"
    draw = rng.random()
    if draw < 0.15:
        said = rng.choice((f"do you have {thing}", f"do you sell {thing}", f"is there any {thing}"))
    elif draw < 0.3 and not history:
        item = Item(1, small_order(rng))
        parts = [say_item(item, rng), f"{article} {named}"]
        rng.shuffle(parts)
        said = f"{rng.choice(CARRIERS)} {' and '.join(parts)}".strip()
        return Turn("", said, without(what, (item,)), None)
    else:
        number = rng.choice((f"{article} ", f"{article} ", f"{article} ", "some ", "", "two "))
        said = f"{rng.choice(CARRIERS)} {number}{named}".strip() + rng.choice(("", "", " please", " please"))
        said += rng.choice(("", "", "", f" with {rng.choice(('milk', 'sugar', 'lemon', 'honey'))}"))
    return Turn(history, said, not_sold(what), None)


def _fragment(rng: random.Random) -> Turn:
    draw = rng.random()
    if draw < 0.7:
        said = rng.choice(_FRAGMENTS)
        if rng.random() < 0.2:
            said = f"{rng.choice(_NOISES_OF_THOUGHT)} {said}"
        if rng.random() < 0.15:
            return Turn(_history(rng)[0], rng.choice(_NOISES_OF_THOUGHT[:4]), MORE, None)
        return Turn(rng.choice(_BEGINNINGS), said, ASK, None)
    if draw < 0.85:
        return Turn(rng.choice(_BEGINNINGS), broken_off(rng), ASK, None)
    order = sample_order(rng)
    whole = {
        "size": "small",
        "roast": "dark roast",
        "numberOfShots": "double shot",
        "milkAmount": "milk",
        "sugarAmount": "sugar",
        **order,
    }
    said = rng.choice(_HALVES).format(
        size=whole["size"],
        roast=whole["roast"],
        shots=whole["numberOfShots"],
        milk=whole["milkAmount"],
        sugar=whole["sugarAmount"],
    )
    return Turn(rng.choice(("", "", "Hello, what can I get you?")), said, ASK, None)


def _more(rng: random.Random) -> Turn:
    return Turn(_history(rng)[0], rng.choice(_AGREEMENTS), MORE, None)


def _nothing(rng: random.Random) -> Turn:
    """About an order that there is not."""
    about = rng.choice((_CHANGES_OF_NOTHING, _CHANGES_OF_NOTHING, PRICE_QUESTIONS, CLOSINGS, CANCELLATIONS, _READINGS))
    said = rng.choice(about)
    if about is _CHANGES_OF_NOTHING and rng.random() < 0.5:
        said = _change_of_nothing(rng)
    return Turn(rng.choice(("", "", "", "Hello, what can I get you?", CANCELLED)), said, NOTHING_ORDERED, None)


def _change_of_nothing(rng: random.Random) -> str:
    """Words that only change something, and name no drink."""
    while True:
        said, _ = change(sample_order(rng), rng)
        refers = re.search(r"\b(no|without|leave|hold|make|instead|add)\b", said)
        if refers and not any(drink in said for drink in DRINKS):
            return said


def _second_thought(rng: random.Random) -> Turn:
    """Hesitation inside an order, and what was said first taken back."""
    order = sample_order(rng)
    said = say_order(order, rng)
    if rng.random() < 0.5:
        words = said.split()
        for _ in range(rng.choice((1, 1, 2))):
            words.insert(rng.randrange(len(words)), rng.choice(_NOISES_OF_THOUGHT))
        return Turn("", " ".join(words), confirm(order), None)
    slot = rng.choice(sorted(order))
    first = sample_order(rng).get(slot)
    value = order[slot]
    if first is None or first == value or said.count(value) != 1 or value not in said:
        return _second_thought(rng)
    return Turn("", said.replace(value, f"{first} {rng.choice(_SECOND_THOUGHTS)} {value}"), confirm(order), None)


def _other_words(rng: random.Random) -> Turn:
    """Slots by other names than those they are restated by."""
    order: Order = {"numberOfShots": rng.choice(SHOTS), **sample_order(rng)}
    shots = _SHOTS_COUNTED[SHOTS.index(order["numberOfShots"])]
    bare = {slot: value for slot, value in order.items() if slot != "numberOfShots"}
    said = rng.choice(order_bodies(bare))
    drink = order["coffeeDrink"]
    counted = f"{drink} with {shots}" if rng.random() < 0.7 else f"{drink} {shots}"
    said = f"{rng.choice(CARRIERS)} {said}".strip().replace(drink, counted, 1) + rng.choice(("", "", " please"))
    if rng.random() < 0.3:
        said = said.replace(" large ", " big ")
    return Turn("", said, confirm(order), None)


def _small_talk(rng: random.Random) -> Turn:
    phrases, reply = rng.choice(SMALL_TALK if rng.random() < 0.5 else _MORE_SMALL_TALK)
    return Turn("" if rng.random() < 0.6 else _history(rng)[0], rng.choice(phrases), reply, None)


def _of_baskets(rng: random.Random) -> Turn:
    """Price, closing, repetition and cancelling after several drinks."""
    basket = sample_basket(rng)
    history = rng.choice((confirm_basket, confirm_basket_change))(basket)
    said, reply = rng.choice((
        (rng.choice(PRICE_QUESTIONS), f"That is {price_of(basket)}."),
        (rng.choice(CLOSINGS), f"Great, that is {price_of(basket)}."),
        (rng.choice((*REPETITIONS, *_READINGS)), confirm_basket(basket)),
        (rng.choice(CANCELLATIONS), CANCELLED),
    ))  # fmt: skip
    return Turn(history, said, reply, None)


def _asked_again(rng: random.Random) -> Turn:
    order = sample_order(rng)
    return Turn(confirm(order), rng.choice(_READINGS), confirm(order), None)


def _foreign(rng: random.Random) -> Turn:
    language = rng.choice(list(FOREIGN_SENTENCES))
    return Turn("" if rng.random() < 0.7 else _history(rng)[0], rng.choice(FOREIGN_SENTENCES[language]), FOREIGN, None)


def _further_off(rng: random.Random) -> Turn:
    said = fill(rng.choice(_FURTHER_OFF), rng) if rng.random() < 0.25 else remark(rng)
    return Turn("" if rng.random() < 0.6 else _history(rng)[0], said, DECLINE, None)


def _unknown(rng: random.Random) -> Turn:
    return Turn("" if rng.random() < 0.7 else _history(rng)[0], unknown_order(rng), DECLINE, None)


WIDE_KINDS: dict[str, tuple[Callable[[random.Random], Turn], float]] = {
    "several": (_several, 0.15),
    "added": (_added, 0.08),
    "counted": (_counted, 0.05),
    "change of several": (_changed, 0.04),
    "after several": (_of_baskets, 0.05),
    "no such extra": (_extra, 0.09),
    "not sold": (_other_drink, 0.09),
    "fragment": (_fragment, 0.1),
    "more": (_more, 0.02),
    "nothing ordered": (_nothing, 0.08),
    "second thought": (_second_thought, 0.06),
    "first words": (_small_talk, 0.1),
    "asked again": (_asked_again, 0.01),
    "foreign": (_foreign, 0.03),
    "further off": (_further_off, 0.07),
    "other words": (_other_words, 0.06),
    "unknown": (_unknown, 0.09),
}
"""Each kind's source and how often it is drawn."""


def wide_turn(rng: random.Random, kind: str = "") -> Turn:
    """An exchange of that kind, or of any."""
    if not kind:
        kind = rng.choices(list(WIDE_KINDS), [share for _, share in WIDE_KINDS.values()])[0]
    return WIDE_KINDS[kind][0](rng)


def small_talk_phrases() -> dict[str, tuple[str, ...]]:
    """What is said to get each fixed reply."""
    table: dict[str, tuple[str, ...]] = {}
    for phrases, reply in (*SMALL_TALK, *_MORE_SMALL_TALK):
        table[reply] = (*table.get(reply, ()), *phrases)
    return table | {ASK: _FRAGMENTS, MORE: _AGREEMENTS, CANCELLED: CANCELLATIONS, NOTHING_ORDERED: PRICE_QUESTIONS}
