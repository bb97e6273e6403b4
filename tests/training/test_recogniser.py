"""The recogniser's training: likeliest phrasings, greedy paths, the CTC loss of padded batches."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from streaming.hearing.encoder import EncoderOutput
from training.features import Clip
from training.recogniser import (
    ALPHABET,
    Example,
    character_ids,
    greedy_characters,
    greedy_pieces,
    likeliest_phrasing,
    loss_of,
    slots_heard,
)
from training.world import sample_order, say_order

BLANK = 0


def path_logits(ids: list[int], classes: int, blank: int, frames_each: int = 1, certainty: float = 8.0) -> Tensor:
    """[frames, classes] whose best path spells `ids`, every label held `frames_each` frames and followed by a blank."""
    path = [blank] + [label for i in ids for label in [i] * frames_each + [blank]]
    logits = torch.zeros(len(path), classes)
    logits[torch.arange(len(path)), torch.tensor(path)] = certainty
    return logits


class Planted:
    """Stands for an encoder that hears one text, whatever is said."""

    def __init__(self, text: str, noise: float = 0.0) -> None:
        logits = path_logits(character_ids(" " + text), len(ALPHABET) + 1, BLANK)
        self.logits = logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))

    def encode(self, mel: Tensor) -> EncoderOutput:
        characters = self.logits[None]
        return EncoderOutput(mel, characters, characters, characters)


CLIP = Clip(np.zeros((40, 80), np.float16), "", None, "")


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_the_phrasing_that_was_said_is_the_likeliest(noise: float) -> None:
    rng = random.Random(2)
    for _ in range(12):
        order = sample_order(rng)
        said = say_order(order, rng)
        assert likeliest_phrasing(Planted(said, noise), CLIP, order) == said  # type: ignore[arg-type]


def test_the_phrasing_holds_the_slots_even_where_another_drink_was_heard() -> None:
    order = {"size": "large", "coffeeDrink": "latte", "milkAmount": "soy milk"}
    text = likeliest_phrasing(Planted("can i get a large mocha with soy milk please"), CLIP, order)  # type: ignore[arg-type]
    assert slots_heard(text, order)
    assert text == "can i get a large latte with soy milk please"


@pytest.mark.parametrize("frames_each", [1, 3])
def test_greedy_characters_drop_blanks_and_repeats(frames_each: int) -> None:
    logits = path_logits(character_ids(" coffee and mocha"), len(ALPHABET) + 1, BLANK, frames_each)
    assert greedy_characters(logits) == " coffee and mocha"


def test_greedy_characters_of_silence_are_none() -> None:
    assert greedy_characters(path_logits([], len(ALPHABET) + 1, BLANK)) == ""


def test_greedy_pieces_drop_blanks_and_repeats() -> None:
    vocabulary = {"Ġlatte": 0, "Ġmilk": 1, "s": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="s"))
    tokenizer.decoder = decoders.ByteLevel()
    logits = path_logits([0, 1, 2, 2], 4, blank=3, frames_each=2)
    assert greedy_pieces(logits, tokenizer) == "latte milkss"


def test_every_transcript_can_be_spelt() -> None:
    rng = random.Random(3)
    for _ in range(200):
        ids = character_ids(" " + say_order(sample_order(rng), rng))
        assert min(ids) >= 1 and max(ids) <= len(ALPHABET)


def test_the_loss_is_small_where_the_heads_spell_the_text_and_ignores_padding() -> None:
    texts, pieces = ["mocha", "a large latte"], [[0, 1], [2, 1, 0]]
    examples = [Example(CLIP, character_ids(" " + text), ids) for text, ids in zip(texts, pieces, strict=True)]
    characters = [path_logits(e.characters, len(ALPHABET) + 1, BLANK, certainty=20.0) for e in examples]
    lengths = torch.tensor([4 * len(rows) for rows in characters])
    longest = max(map(len, characters))
    piece_rows = torch.full((2, longest, 4), 0.0)
    piece_rows[..., 3] = 20.0
    for row, ids in enumerate(pieces):
        for place, piece in enumerate(ids):
            piece_rows[row, 2 * place, 3], piece_rows[row, 2 * place, piece] = 0.0, 20.0
    padded = torch.stack(
        [torch.nn.functional.pad(rows, (0, 0, 0, longest - len(rows)), value=5.0) for rows in characters]
    )
    good = loss_of(EncoderOutput(padded, padded, padded, piece_rows), lengths, examples)
    swapped = loss_of(EncoderOutput(padded, padded, padded, piece_rows), lengths, examples[::-1])
    assert float(good) < 0.01 < 1.0 < float(swapped)
    assert math.isfinite(float(swapped))
