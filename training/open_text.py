"""English sentences of an open vocabulary, cut from the documentation that every Python installation carries.

The coffee world has a few hundred words; codes learned from it alone would not know most of the sounds' neighbourhoods.
Docstrings and text files are everywhere, so a machine without network can collect them too.
"""

from __future__ import annotations

import random
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_SENTENCE = re.compile(r"(?<![\w,'])[A-Z][a-z']*(?:,? [a-z']+|,? I){3,15}[.?]")
_WORD = re.compile(r"[A-Za-z']+")
_MAX_FILE_BYTES = 400_000

HARVARD_SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It is easy to tell the depth of a well.",
    "Four hours of steady work faced us.",
    "The boy was there when the sun rose.",
    "The source of the huge river is the clear spring.",
    "Help the woman get back to her feet.",
    "A pot of tea helps to pass the evening.",
    "Smoky fires lack flame and heat.",
    "The soft cushion broke the man's fall.",
    "The salt breeze came across from the sea.",
    "The girl at the booth sold fifty bonds.",
)
"""Held out: never part of `open_sentences` for training."""


def _words(text: str) -> list[str]:
    return text.split()


_TEMPLATES = (
    "The {adjective} {thing} is {place}.", "{person} {verb} the {thing} {when}.", "Could you bring the {thing} {when}?",
    "{person} would like to see the {adjective} {thing}.", "There is a {adjective} {thing} {place}.",
    "Did {who} find the {thing} {place}?", "We {verb} a {adjective} {thing} {when}.", "Please put the {thing} {place}.",
    "I think {who} {verb} the {adjective} {thing}.", "The {thing} was {adjective} and the {thing} was {adjective}.",
)  # fmt: skip
_FILL = {
    "adjective": _words(
        "red old quiet heavy small yellow broken warm pretty strange wooden cheap famous narrow bright empty friendly "
        "hungry thick young purple frozen gentle clever rough"
    ),
    "thing": _words(
        "table garden window bridge mountain letter bottle engine orange picture chair river pocket camera bread "
        "village mirror blanket jacket hammer ticket island pencil market horse vegetable treasure measure"
    ),
    "person": ["My brother", "The teacher", "Her mother", "The doctor", "A young boy", "Their neighbor", "The captain",
               "Your uncle", "That woman", "The farmer", "Everybody", "Nobody"],
    "who": ["my brother", "the teacher", "her mother", "the doctor", "anyone", "their neighbor", "your uncle"],
    "verb": ["bought", "found", "painted", "carried", "forgot", "watched", "sold", "fixed", "described", "enjoyed",
             "washed", "missed", "chose", "threw", "left"],
    "when": ["yesterday", "this morning", "last week", "after lunch", "on Thursday", "before the show", "at night",
             "in the spring", "an hour ago", "every year"],
    "place": ["in the kitchen", "behind the house", "near the station", "under the bed", "on the roof", "by the lake",
              "across the street", "in the box", "at the office", "beside the church"],
}  # fmt: skip


def _documents() -> Iterator[str]:
    roots = {Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"]), Path("/usr/share/doc")}
    roots |= {Path(p) for p in sys.path if p.endswith("-packages")}
    for root in sorted(roots):
        for pattern in ("*.py", "*.rst", "*.md", "*.txt"):
            for path in sorted(root.rglob(pattern)):
                try:
                    if path.stat().st_size < _MAX_FILE_BYTES:
                        yield path.read_text(encoding="utf-8", errors="ignore")
                except OSError:
                    continue


def documentation_sentences() -> list[str]:
    """Distinct sentences of 4 to 16 plain words whose words all occur in several other sentences."""
    found: dict[str, None] = {}
    for text in _documents():
        for match in _SENTENCE.finditer(re.sub(r"\s*\n\s*#?\s*", " ", text)):
            found[match.group(0)] = None
    counts = Counter(word.lower() for sentence in found for word in set(_WORD.findall(sentence)))

    def plain(sentence: str) -> bool:
        words = [word.lower() for word in _WORD.findall(sentence)]
        known = all(counts[word] >= 8 and len(word) < 14 and (len(word) > 1 or word in "ai") for word in words)
        return known and len(sentence) < 90

    return [sentence for sentence in found if plain(sentence)]


def template_sentence(rng: random.Random) -> str:
    """One everyday sentence: words that documentation seldom uses."""
    return re.sub(r"\{(\w+)\}", lambda match: rng.choice(_FILL[match.group(1)]), rng.choice(_TEMPLATES))


def open_sentences(count: int, seed: int) -> list[str]:
    """`count` distinct sentences, one third of them from templates, in a random but reproducible order."""
    rng = random.Random(seed)
    documents = documentation_sentences()
    rng.shuffle(documents)
    chosen = dict.fromkeys(documents[: count - count // 3])
    while len(chosen) < count:
        chosen[template_sentence(rng)] = None
    sentences = list(chosen)
    rng.shuffle(sentences)
    return sentences
