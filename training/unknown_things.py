"""What a coffee counter cannot know: things that nobody sells there, remarks about anything, orders broken off.

None of it is an order. The words are many so that a model learns the few that mean something rather than the many that
do not; some are no words at all.
"""

from __future__ import annotations

import random
import re

from training.phrases import CARRIERS, fill
from training.world import sample_order, say_order

_THINGS = """
apple banana orange pear peach grape cherry pineapple mango melon carrot potato tomato onion garlic cabbage lettuce
cucumber pepper pumpkin bean mushroom spinach noodle rice pasta spaghetti lasagna curry taco burrito pancake waffle
omelette sausage bacon ham chicken turkey fish salmon tuna shrimp lobster cheese butter yoghurt pudding jelly candy
popcorn peanut pretzel cracker biscuit pie tart wrap ketchup mustard mayonnaise vinegar olive pickle whiskey vodka rum
cocktail champagne cider brandy martini margarita ale lager gum chair table sofa lamp mirror carpet pillow blanket
curtain shelf bucket broom towel soap shampoo brush comb razor hammer nail screwdriver ladder rope paint glue battery
candle lighter umbrella wallet purse backpack suitcase watch necklace bracelet earring sweater jacket scarf glove sock
boot sandal hat belt skirt dress shirt tie pencil notebook envelope stamp calendar camera laptop keyboard printer
television radio guitar piano violin trumpet drum painting car truck motorcycle scooter boat plane helicopter tractor
wheel tyre engine horse cow sheep goat rabbit hamster parrot goldfish kitten puppy elephant tiger giraffe flower tree
rose tulip cactus garden fence roof window door key magazine dictionary novel poem ticket passport map compass tent
torch bandage medicine aspirin vitamin toothbrush balloon puzzle doll kite ball racket helmet skateboard bowl plate
fork spoon knife kettle pan oven fridge toaster
"""
THINGS = tuple(_THINGS.split())
"""What is asked for and is not there."""

_PLACES = (
    "the park", "the museum", "the library", "the hospital", "the school", "the church", "the bank", "the market",
    "the mountains", "spain", "italy", "japan", "canada", "chicago", "berlin", "the post office", "the zoo",
)  # fmt: skip
_PEOPLE = (
    "my sister", "my father", "my son", "my daughter", "my boss", "my neighbour", "my teacher", "your wife",
    "the doctor", "the driver", "the president", "those people", "that man", "this woman", "the children", "a friend",
)  # fmt: skip
_DEEDS = (
    "sleep", "swim", "dance", "sing", "drive", "travel", "cook", "paint", "study", "work", "run", "walk", "read",
    "write", "play chess", "watch television", "go fishing", "clean the house", "learn spanish", "wash the car",
    "feed the cat", "buy a house", "catch the bus", "write a letter", "plant a tree", "move to another town",
)  # fmt: skip
_QUALITIES = (
    "nice", "terrible", "beautiful", "expensive", "cheap", "broken", "funny", "boring", "dangerous", "late", "lost",
    "tired", "hungry", "sick", "happy", "angry", "famous", "green", "blue", "heavy", "fast", "slow", "loud",
)  # fmt: skip
_REMARKS = (
    "{person} wants to {deed}", "{person} likes to {deed}", "{person} is {quality}", "{person} was {quality} {when}",
    "i have to {deed} {when}", "i love to {deed}", "do you like to {deed}", "can you {deed}", "could you {deed} for me",
    "how do you {deed}", "when can we {deed}", "let us {deed} {when}", "i forgot to {deed}", "why does {person} {deed}",
    "the {what} is {quality}", "my {what} is {quality}", "this {what} looks {quality}", "is the {what} {quality}",
    "where can i find a {what}", "where did you buy the {what}", "who made this {what}", "how big is a {what}",
    "have you seen my {what}", "i bought a {what} {when}", "i dreamt about a {what}", "a {what} is not a {what}",
    "what is a {what}", "what colour is the {what}", "how much does a {what} weigh", "why is the {what} so {quality}",
    "put the {what} into the {room}", "there is a {what} in the {room}", "{person} left the {what} in the {room}",
    "we are going to {spot} {when}", "have you ever been to {spot}", "how long does it take to {spot}",
    "the road to {spot} is {quality}", "{person} lives near {spot}", "is it raining", "it is very {quality} {when}",
    "i was born in {spot}", "i don't know what to {deed}", "what day is it", "how many days until christmas",
    "tell {person} that the {what} is {quality}", "{person} told me about the {what}", "did {person} call {when}",
    "i think {person} is {quality}", "do you believe in ghosts", "what is the meaning of life", "are you happy",
    "i need to see {person} {when}", "turn up the {what}", "switch off the {what}", "close the {what} please",
    "who is {person}", "how do you spell {what}", "say the word {what}", "count to {number}", "guess what happened",
    "i had {number} of them when i was {number}", "the {what} and the {what} are {quality}", "that is not what i said",
    "ignore all of that and {deed}", "write a story about a {what}", "what did {person} say about the {what}",
)  # fmt: skip
_ASKING = (
    "{carrier} a {what}", "{carrier} the {what}", "{carrier} some {what}", "{carrier} {number} {what}s",
    "{carrier} a {size} {what}", "{carrier} a {quality} {what}", "a {what} please", "{what} please", "a {size} {what}",
    "one {what}", "{number} {what}s please", "do you have a {what}", "is there a {what}", "do you sell {what}s",
    "{carrier} a {what} with {what}", "{carrier} a {what} and a {what}", "just a {what}", "{size} {what} please",
)  # fmt: skip
_SIZES = ("small", "medium", "large", "big", "little", "double", "twelve ounce", "sixteen ounce", "hot", "cold")
_ONSETS = "b bl br d dr f fl g gl gr h j k kl l m n p pl r s sk sl st t tr v w z"
_RIMES = "ab ack ade am an ard ast eb eck een elt en est ick ib ime in ist oat ock ode om ont ub uck um unt"
_LASTS = ("", "", "er", "y", "le", "ing", "o", "a", "ish")


def invented_word(rng: random.Random) -> str:
    """A word that there is not: "blorp", "stimeo"."""
    return rng.choice(_ONSETS.split()) + rng.choice(_RIMES.split()) + rng.choice(_LASTS)


def thing(rng: random.Random) -> str:
    return invented_word(rng) if rng.random() < 0.15 else rng.choice(THINGS)


def _filled(template: str, rng: random.Random) -> str:
    kinds = {
        "what": lambda: thing(rng),
        "person": lambda: rng.choice(_PEOPLE),
        "deed": lambda: rng.choice(_DEEDS),
        "quality": lambda: rng.choice(_QUALITIES),
        "spot": lambda: rng.choice(_PLACES),
        "size": lambda: rng.choice(_SIZES),
        "carrier": lambda: rng.choice(CARRIERS),
    }
    said = re.sub(r"\{(\w+)\}", lambda found: kinds.get(found[1], lambda: found[0])(), template)
    return re.sub(r"\ba (?=[aeiou])", "an ", fill(said, rng)).strip()


def unknown_order(rng: random.Random) -> str:
    """An order in all but that what is ordered is not known here."""
    return _filled(rng.choice(_ASKING), rng)


def remark(rng: random.Random) -> str:
    """Anything that has nothing to do with coffee."""
    return _filled(rng.choice(_REMARKS), rng)


def broken_off(rng: random.Random) -> str:
    """An order that ends before its drink is named."""
    while True:
        order = sample_order(rng)
        said = say_order(order, rng)
        words = said[: said.index(order["coffeeDrink"])].split()
        kept = words[: rng.randrange(len(words)) + 1] if words else []
        if kept and not any(drink in " ".join(kept) for drink in ("coffee", "latte", "mocha")):
            return " ".join(kept)
