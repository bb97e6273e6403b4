"""Stage 2: what stands where in text and speech streams, which words a code speaks, and that training learns."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.networks.talker import AUDIO_END, AUDIO_START, CODE_OFFSET
from models.orders import Order
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig
from training.conversations import kind
from training.features import Clip
from training.phrases import DECLINE
from training.slm import SlmConfig, SlmTraining
from training.slm_data import IGNORE, Examples, Item, Shares, speech_streams, speech_targets, word_of_tokens
from training.slm_model import MAX_GROUP, exact_group_lengths, group_lengths
from training.speech_codes import SpokenText
from training.voice_codes import RATES_HZ
from training.world import confirm, pool_turn

TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "embedded" / "tokenizer.json"
CODES = 40
POOL = range(6)
WORD_SAMPLES = 4 * 1280
"""A fake recording speaks a word in four 12.5 Hz frames of 1280 samples."""


def noise_mel(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(-4, 1, (frames, 80)).astype(np.float16)


def recording(text: str) -> SpokenText:
    words = text.split()
    rng = np.random.default_rng(len(text))
    codes = {}
    for hz, duration in ((12.5, 1), (6.25, 2)):
        count = 4 * len(words) // duration
        codes[hz] = (rng.integers(0, CODES, count), np.full(count, duration))
    spans = [(word, WORD_SAMPLES * i, WORD_SAMPLES * (i + 1)) for i, word in enumerate(words)]
    return SpokenText(text, codes, spans)


ORDERS: list[tuple[str, Order]] = [
    ("0001.wav", {"coffeeDrink": "latte", "size": "small"}),
    ("0002.wav", {"coffeeDrink": "mocha", "milkAmount": "soy milk"}),
    ("0005.wav", {"coffeeDrink": "espresso"}),
]


@pytest.fixture
def examples() -> Examples:
    synthetic = [Clip(noise_mel(60, seed), pool_turn(seed).user, seed, "voice") for seed in POOL]
    synthetic.append(Clip(noise_mel(70, 99), "the weather is fine today", None, "voice"))
    recordings = [(Clip(noise_mel(80, 200 + i), "", None, name), slots) for i, (name, slots) in enumerate(ORDERS)]
    texts = [pool_turn(seed).reply for seed in POOL] + ["The river is cold."]
    spoken = [recording(text) for text in dict.fromkeys(texts)]
    return Examples(Tokenizer.from_file(str(TOKENIZER)), synthetic, recordings, spoken, random.Random(0), Shares())


def test_streams_stand_as_flexislm_defines_them() -> None:
    tokens, lengths = speech_streams(np.array([7, 8, 9]), np.array([2, 1, 4]), delay_tokens=5)
    assert tokens.tolist() == [AUDIO_START] * 5 + [7 + CODE_OFFSET, 8 + CODE_OFFSET, 9 + CODE_OFFSET, AUDIO_END]
    assert lengths.tolist() == [0, 0, 0, 0, 0, 0, 2, 1, 4]


def test_a_length_is_predicted_where_its_code_is_fed() -> None:
    durations = np.array([2, 1, 4])
    stream = speech_streams(np.array([7, 8, 9]), durations, delay_tokens=5)
    start = 3
    targets = speech_targets([stream], [stream[0]], [start], positions=start + 9)
    for j, code in enumerate((7, 8, 9)):
        place = start + 5 + j
        assert targets.fed_tokens[0, place] == code + CODE_OFFSET
        assert targets.next_lengths[0, place] == durations[j]
        assert targets.next_tokens[0, place - 1] == code + CODE_OFFSET
    # The last duration comes together with END, and END itself is never fed.
    assert targets.next_tokens[0, start + 7] == AUDIO_END and targets.next_lengths[0, start + 7] == durations[-1]
    assert AUDIO_END not in targets.fed_tokens


def test_everything_fed_was_predicted_one_place_before() -> None:
    rng = np.random.default_rng(0)
    streams = [speech_streams(rng.integers(0, CODES, n), rng.integers(1, 9, n), 5) for n in (4, 11)]
    starts = [6, 2]
    positions = max(start + len(tokens) - 1 for start, (tokens, _) in zip(starts, streams, strict=True))
    targets = speech_targets(streams, [tokens for tokens, _ in streams], starts, positions)
    for row, (start, (tokens, lengths)) in enumerate(zip(starts, streams, strict=True)):
        end = start + len(tokens) - 1
        assert torch.equal(targets.fed_tokens[row, start:end], targets.next_tokens[row, start - 1 : end - 1])
        assert torch.equal(targets.fed_lengths[row, start:end], targets.next_lengths[row, start - 1 : end - 1])
        assert torch.equal(targets.next_tokens[row, start - 1 : end], tokens)
        assert torch.equal(targets.next_lengths[row, start - 1 : end], lengths)
        outside = torch.ones(positions, dtype=torch.bool)
        outside[start - 1 : end] = False
        assert (targets.next_tokens[row, outside] == IGNORE).all()
        assert (targets.next_lengths[row, outside] == IGNORE).all()


def test_what_is_falsified_is_fed_but_not_predicted() -> None:
    stream = speech_streams(np.array([7, 8]), np.array([1, 1]), 5)
    heard = stream[0].clone()
    heard[6] = 20
    targets = speech_targets([stream], [heard], [1], positions=8)
    assert targets.fed_tokens[0, 7] == 20 and targets.next_tokens[0, 6] == 8 + CODE_OFFSET


def test_tokens_belong_to_the_words_they_spell(examples: Examples) -> None:
    text = "Okay, one large iced mocha with soy milk. Anything else?"
    ids = examples.prompts.answer(text)
    owner = word_of_tokens(examples.tokenizer, ids)
    for word, expected in enumerate(text.split()):
        own = [token for token, of in zip(ids, owner, strict=True) if of == word]
        assert examples.tokenizer.decode(own).strip() == expected
    assert owner[-2:] == [-1, -1]
    assert [examples.tokenizer.id_to_token(token) for token in ids[-2:]] == ["<|im_end|>", "Ċ"]


def test_codes_speak_the_words_that_fill_them() -> None:
    codes = {6.25: (np.zeros(5, np.int64), np.array([2, 2, 4, 1, 3]))}
    frame = 1280
    words = [("one", 0, 3 * frame), ("small", 3 * frame, 5 * frame), ("latte", 9 * frame + 10, 12 * frame)]
    # Code 1 is shared by two words, code 2 is mostly a pause but holds half of a word, code 3 is all pause.
    assert SpokenText("", codes, words).words_of_codes(6.25) == [{0}, {0, 1}, set(), set(), {2}]


def test_a_short_word_within_a_long_code_is_spoken_by_it() -> None:
    spoken = SpokenText("", {4.0: (np.zeros(1, np.int64), np.array([8]))}, [("a", 100, 1500), ("b", 9000, 10200)])
    assert spoken.words_of_codes(4.0) == [{0, 1}]


def test_drawn_examples_answer_as_the_barista_would(examples: Examples) -> None:
    confirmations = {confirm(slots) for _, slots in ORDERS[:2]}
    kinds = {"order": 0, "turn": 0, "transcript": 0, "declined": 0, "repeated": 0}
    for _ in range(400):
        item = examples.draw(with_audio=True)
        answer = examples.tokenizer.decode(item.answer).strip()
        asked = examples.tokenizer.decode(item.before, skip_special_tokens=False)
        assert item.input_hz in RATES_HZ
        if item.clip is not None:
            assert asked.endswith("<|audio_bos|>")
            assert examples.tokenizer.decode(item.after, skip_special_tokens=False).startswith("<|audio_eos|>")
        if item.speech is not None:
            assert item.speech.text == answer and item.output_hz in item.speech.codes
        if item.clip is not None and "Transcribe:" in asked:
            assert answer == item.clip.text
            kinds["transcript"] += 1
        elif item.clip is not None and item.clip.name.endswith(".wav"):
            assert answer in confirmations
            kinds["order"] += 1
        elif item.clip is not None and item.clip.seed is None:
            assert answer == DECLINE
            kinds["declined"] += 1
        elif item.clip is not None:
            turn = pool_turn(item.clip.seed)
            # What refers to an order may have been moved behind another one; the form of the answer stays.
            moved = kind(turn) in ("change", "price", "closing", "repeat")
            assert answer == turn.reply or (moved and answer.split()[0] == turn.reply.split()[0])
            kinds["turn"] += 1
        elif "Repeat:" in asked or "Repeat:" in examples.tokenizer.decode(item.after):
            assert item.speech is not None
            kinds["repeated"] += 1
    assert min(kinds.values()) > 3, kinds


def test_held_out_recordings_are_tested_and_never_drawn(examples: Examples) -> None:
    assert [clip.name for clip, _ in examples.tests] == ["0005.wav"]
    drawn = [examples.draw(with_audio=True).clip for _ in range(200)]
    assert "0005.wav" not in {clip.name for clip in drawn if clip is not None}


def test_without_audio_nothing_spoken_is_drawn(examples: Examples) -> None:
    assert all(examples.draw(with_audio=False).clip is None for _ in range(50))


@pytest.mark.parametrize("grouping", [group_lengths, exact_group_lengths])
def test_groups_cover_all_frames_at_the_asked_rate(grouping: Callable[[Tensor, float], Tensor]) -> None:
    frames = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)).cumsum(0)
    for hz in (12.5, 6.25, 4.0):
        lengths = grouping(frames, hz)
        assert int(lengths.sum()) == 200 and int(lengths.min()) >= 1 and int(lengths.max()) <= MAX_GROUP
        # Offline, groups that are too long are split afterwards, which makes more of them.
        assert len(lengths) == pytest.approx(200 * hz / 25.0, rel=0.15 if grouping is group_lengths else 0.4)


def test_a_share_of_the_spoken_turns_is_grouped_offline(training: SlmTraining) -> None:
    training.config = msgspec.structs.replace(training.config, exact_groups=0.3)
    exact = sum(training._grouping() is exact_group_lengths for _ in range(300))
    assert 60 < exact < 120


@pytest.fixture
def training(examples: Examples, tmp_path: Path) -> SlmTraining:
    torch.manual_seed(1)
    torch.save({"average": BlockCausalEncoder(EncoderConfig()).state_dict()}, tmp_path / "recogniser.pt")
    config = SlmConfig(
        speech="",
        clips="",
        labels="",
        tokenizer=str(TOKENIZER),
        encoder=str(tmp_path / "recogniser.pt"),
        codes="",
        output=str(tmp_path / "slm.pt"),
        batch=2,
        warmup_steps=1,
        codes_count=CODES,
    )
    return SlmTraining(config, examples)


def one_of_each(examples: Examples) -> list[Item]:
    """A spoken and a written prompt, both with a spoken answer."""
    spoken = [recording(confirm(slots)) for _, slots in ORDERS[:2]]
    items = []
    for (clip, _), answer in zip(examples.recordings, spoken, strict=True):
        before, after = examples.prompts.around([], "", audio=True)
        items.append(Item(before, after, examples.prompts.answer(answer.text), clip, 6.25, answer, 6.25))
    return [items[0], replace(items[1], clip=None)]


def test_steps_on_one_batch_lower_every_loss(training: SlmTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    items = one_of_each(training.data)
    queue = items * 10
    monkeypatch.setattr(training.data, "draw", lambda with_audio: queue.pop())
    history = [[float(part.detach()) for part in training.train_step().parts()] for _ in range(8)]
    first, last = history[0], history[-1]
    assert all(math.isfinite(value) for values in history for value in values)
    # Text, speech codes, lengths, alignment; the recogniser is not trained here.
    assert [after < before for before, after in zip(first[:4], last[:4], strict=True)] == [True] * 4
    assert last[0] < 0.8 * first[0] and first[4] == last[4] == 0.0
    assert training.step == 8


def test_the_average_is_what_is_kept_and_read_again(training: SlmTraining) -> None:
    training.train_step()
    training.minutes = 1.0
    training.save()
    resumed = SlmTraining(training.config, training.data)
    assert (resumed.step, resumed.minutes) == (1, 1.0)
    for name, parameter in training.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], parameter)
    averaged, _ = resumed.averaged()
    for name, tensor in averaged.named_parameters():
        assert torch.equal(tensor, training.average[name])
