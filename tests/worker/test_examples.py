"""What page, README and guide tell a newcomer to say gets the answer that he expects, from the weights in the
repository; and so do first words that are no order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.orders import Order, parse_order
from worker.loading import load_model
from worker.pipeline import Pipeline
from worker.turn import TurnSettings, ask_by_text

ROOT = Path(__file__).resolve().parents[2]
LATTE: Order = {"size": "large", "coffeeDrink": "latte"}
ORDERS: dict[str, Order] = {
    "a large latte please": LATTE,
    "a latte please": {"coffeeDrink": "latte"},
    "a large latte with two shots please": LATTE | {"numberOfShots": "double shot"},
}
ANSWERS = {
    "what do you have": "We have coffee, espresso, latte, cappuccino, mocha and americano.",
    "who are you": "I am agogic, your barista.",
}
PLACES = {
    "clients/web/page/main.ts": r"const EXAMPLES = \[(.*?)\];",
    "README.md": r'and order: \*("[^"]+")\*|call\.ask\(("[^"]+")\)',
    "docs/guide/index.md": r'agogic talk ("[^"]+") --task t2s',
    "docs/guide/python.md": r'call\.ask\(("[^"]+")\)|"input_text", "text": ("[^"]+")',
    "clients/python/README.md": r'call\.ask\(("[^"]+")\)',
}


@pytest.fixture(scope="module")
def model() -> Pipeline:
    torch.set_num_threads(1)
    return load_model("embedded")


def examples(path: str) -> Iterator[str]:
    for found in re.finditer(PLACES[path], (ROOT / path).read_text(encoding="utf-8"), re.DOTALL):
        yield from re.findall(r'"([^"]+)"', found.group(0).removeprefix('"input_text", "text": '))


def bare(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


@pytest.mark.parametrize("path", PLACES)
def test_examples_are_answered_as_they_read(model: Pipeline, path: str) -> None:
    found = list(examples(path))
    assert found, f"{path} has no example any more; say where it stands now"
    for text in found:
        answer = ask_by_text(model, text, TurnSettings(speech=False)).text
        if bare(text) in ORDERS:
            assert parse_order(answer) == ORDERS[bare(text)], (text, answer)
        else:
            assert answer == ANSWERS[bare(text)], (text, answer)
