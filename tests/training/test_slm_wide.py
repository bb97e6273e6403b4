"""Stage 2 in the wide world: exchanges in the prompt, silence answered by nothing, parts that stay as they are."""

from __future__ import annotations

import math
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from models.networks.talker import AUDIO_END, AUDIO_START
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig
from tests.training.test_slm import CODES, ORDERS, TOKENIZER, noise_mel, recording
from training.conversations import WIDE_SEED, numbered_turn
from training.features import Clip
from training.phrases import DECLINE
from training.slm import SlmTraining
from training.slm_config import SlmConfig
from training.slm_data import Examples, Item, Shares, speech_streams
from training.wide_world import SILENCE

WIDE = range(WIDE_SEED, WIDE_SEED + 12)


@pytest.fixture
def examples() -> Examples:
    synthetic = [Clip(noise_mel(60 + seed % 7, seed), numbered_turn(seed).user, seed, "voice") for seed in WIDE]
    synthetic += [Clip(noise_mel(50, seed), numbered_turn(seed).user, seed, "voice") for seed in range(6)]
    synthetic.append(Clip(noise_mel(70, 99), "the weather is fine today", None, "voice"))
    synthetic.append(Clip(noise_mel(40, 98), "", WIDE_SEED + 1, "voice of another language"))
    recordings = [(Clip(noise_mel(80, 200 + i), "", None, name), slots) for i, (name, slots) in enumerate(ORDERS)]
    copies = [(Clip(noise_mel(80, 300 + i), "", None, name), slots) for i, (name, slots) in enumerate(ORDERS)]
    spoken = [recording(text) for text in {numbered_turn(seed).reply for seed in WIDE}]
    shares = Shares(spoken=0.6, repeated=0.1, recorded=0.3, silence=0.2, wide=0.6)
    noises = [noise_mel(700, 400)]
    return Examples(
        Tokenizer.from_file(str(TOKENIZER)), synthetic, recordings, spoken, random.Random(0), shares, copies, noises,
        "last_three_exchanges",
    )  # fmt: skip


@pytest.fixture
def training(examples: Examples, tmp_path: Path) -> SlmTraining:
    torch.manual_seed(1)
    torch.save({"average": BlockCausalEncoder(EncoderConfig()).state_dict()}, tmp_path / "recogniser.pt")
    config = SlmConfig(
        speech="", clips="", labels="", tokenizer=str(TOKENIZER), encoder=str(tmp_path / "recogniser.pt"), codes="",
        output=str(tmp_path / "slm.pt"), history="last_three_exchanges", batch=4, warmup_steps=1, codes_count=CODES,
        finetune_encoder_from=0.0,
    )  # fmt: skip
    return SlmTraining(config, examples)


def asked(examples: Examples, item: Item) -> str:
    return examples.tokenizer.decode([*item.before, *item.after], skip_special_tokens=False)


def prompt_text(examples: Examples, item: Item) -> str:
    return examples.tokenizer.decode(item.before, skip_special_tokens=False)


def test_prompts_hold_both_sides_of_at_most_three_exchanges(examples: Examples) -> None:
    prompts = [prompt_text(examples, examples.draw(with_audio=True)) for _ in range(150)]
    answered = [text for text in prompts if "<|im_start|>assistant" in text]
    assert answered and all(text.count("<|im_start|>assistant") <= 3 for text in prompts)
    both = [text for text in answered if text.index("<|im_start|>user") < text.index("<|im_start|>assistant")]
    assert len(both) > 0.5 * len(answered), "what was answered was mostly said first"


def test_silence_is_answered_by_nothing_and_so_is_noise(examples: Examples) -> None:
    items = [examples.draw(with_audio=True) for _ in range(150)]
    silent = [item for item in items if item.clip is not None and item.clip.name in ("silence", "noise")]
    assert len(silent) > 8
    for item in silent:
        assert item.answer == examples.prompts.answer(SILENCE) == examples.prompts.end
        assert item.speech is not None
        tokens, lengths = speech_streams(*item.speech.codes[item.output_hz], 5)
        assert tokens.tolist() == [AUDIO_START] * 5 + [AUDIO_END] and lengths.sum() == 0


def test_copies_of_held_out_recordings_are_never_drawn(examples: Examples) -> None:
    assert [clip.name for clip, _ in examples.copies] == ["0001.wav", "0002.wav"]


def test_shares_say_how_many_copies_and_declined_sentences_there_are(examples: Examples) -> None:
    examples.shares = msgspec.structs.replace(examples.shares, copied=0.0, declined=0.5, recorded=0.3)
    copies = {id(clip) for clip, _ in examples.copies}
    items = [examples.draw(with_audio=True) for _ in range(300)]
    assert not any(id(item.clip) in copies for item in items)
    declined = [item for item in items if item.answer == examples.prompts.answer(DECLINE)]
    sentence = "the weather is fine today"
    written = [item for item in declined if item.clip is None and sentence in asked(examples, item).lower()]
    heard = [item for item in declined if item.clip is not None and item.clip.text == sentence]
    assert len(written) > 10 and len(heard) > 30


def test_clips_without_words_are_not_written_down(examples: Examples) -> None:
    for _ in range(200):
        item = examples.draw(with_audio=True)
        if "Transcribe:" in prompt_text(examples, item):
            assert item.clip is not None and item.clip.text


def test_batches_hold_spoken_turns_of_like_length(training: SlmTraining) -> None:
    spreads = []
    for _ in range(10):
        lengths = [len(item.clip.mel) for item in training._items(with_audio=True) if item.clip is not None]
        spreads.append(max(lengths) - min(lengths) if lengths else 0)
    drawn = [training.data.draw(with_audio=True).clip for _ in range(60)]
    lengths = [len(clip.mel) for clip in drawn if clip is not None]
    assert np.mean(spreads) < 0.6 * (max(lengths) - min(lengths))


def test_every_loss_of_every_kind_of_turn_is_a_number(training: SlmTraining) -> None:
    for _ in range(4):
        losses = training.train_step()
        assert all(math.isfinite(float(part.detach())) for part in losses.parts())


def test_what_is_frozen_stays(examples: Examples, training: SlmTraining) -> None:
    config = msgspec.structs.replace(training.config, frozen=("thinker", "talker"), output=training.config.output + "2")
    frozen = SlmTraining(config, examples)
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    while not any(item.clip is not None for item in (frozen.drawn[-1] if frozen.drawn else [])):
        frozen._items(with_audio=True)
    frozen.train_step()
    after = frozen.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(("thinker.", "talker.")))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("merger."))
