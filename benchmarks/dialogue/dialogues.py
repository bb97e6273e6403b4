"""`agogic eval dialogues`: conversations of five turns, judged by the order that stands at their end.

A customer orders, then changes, adds, asks, or talks of something else, three times; at last he asks what he has
ordered. What was answered before, right or wrong, is what the model is told. Numbered from `HELD_OUT_SEED` on, which
training never draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agent.wire import ContextItem
from models.orders import Basket, Item, parse_basket
from training.baskets import sample_basket, say_basket, say_item, small_order
from training.phrases import OFF_TOPIC, PRICE_QUESTIONS, SMALL_TALK, fill
from training.speech_data import espeak
from training.unknown_things import unknown_order
from training.world import HELD_OUT_SEED, change, sample_order, say_order
from worker.parts import SpeechModel
from worker.turn import TurnSettings, ask_by_text, ask_by_voice

Progress = Callable[[int, int], None]
TURNS = 5
_BETWEEN = {"change": 0.4, "addition": 0.2, "price": 0.1, "small talk": 0.1, "off topic": 0.1, "unknown": 0.1}
_ADDITIONS = ("and {}", "can i also get {}", "add {}", "i'd also like {}", "{} as well please")
_READINGS = ("what is my order", "what did i order", "can you repeat that", "read that back to me")


@dataclass(frozen=True)
class Dialogue:
    """What is said in each turn, and what must be ordered at the end."""

    said: tuple[str, ...]
    wanted: Basket


def drawn(number: int) -> Dialogue:
    rng = random.Random(f"dialogue {HELD_OUT_SEED + number}")
    if rng.random() < 0.8:
        basket: Basket = (Item(1, sample_order(rng)),)
        said = [say_order(basket[0].order, rng)]
    else:
        basket = sample_basket(rng)
        said = [say_basket(basket, rng)]
    for _ in range(TURNS - 2):
        what = rng.choices(list(_BETWEEN), list(_BETWEEN.values()))[0]
        if what == "change":
            words, order = change(basket[-1].order, rng)
            basket = (*basket[:-1], Item(basket[-1].count, order))
        elif what == "addition" and len(basket) < 3:
            item = Item(1, small_order(rng))
            basket = (*basket, item)
            words = rng.choice(_ADDITIONS).format(say_item(item, rng))
        elif what == "small talk":
            words = rng.choice(rng.choice(SMALL_TALK)[0])
        elif what == "unknown":
            words = unknown_order(rng)
        else:
            words = rng.choice(PRICE_QUESTIONS) if what == "price" else fill(rng.choice(OFF_TOPIC), rng)
        said.append(words)
    return Dialogue((*said, rng.choice(_READINGS)), basket)


def run(
    model: SpeechModel, dialogues: int, spoken: bool, input_hz: float, progress: Progress | None = None
) -> dict[str, object]:
    """The share whose last answer restates the order that was made. Raises SynthesisError."""
    right, misses = 0, list[dict[str, object]]()
    for number in range(dialogues):
        dialogue, history, told = drawn(number), list[ContextItem](), list[str]()
        answer = ""
        for place, words in enumerate(dialogue.said):
            settings = TurnSettings(input_hz=input_hz, speech=False, history=tuple(history))
            heard = words
            if spoken:
                samples, _ = espeak(words, random.Random(f"dialogue {number} {place}"))
                turn = ask_by_voice(model, samples.astype(np.float32) / 32768, settings)
                heard = turn.transcript
            else:
                turn = ask_by_text(model, words, settings)
            answer = turn.text
            history += [item for item in (ContextItem("user", heard), ContextItem("assistant", answer)) if item.text]
            told += [words, answer]
        if parse_basket(answer) == dialogue.wanted:
            right += 1
        else:
            misses.append({"told": told})
        if progress is not None:
            progress(number + 1, dialogues)
    return {
        "dialogues": dialogues,
        "turns_each": TURNS,
        "spoken": spoken,
        "final_order_right": right,
        "final_order_right_share": round(right / dialogues, 4),
        "misses": misses,
    }
