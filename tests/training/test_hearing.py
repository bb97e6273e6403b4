"""The encoder that learns from itself: what is compared, and that learning brings hard closer to clear."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from models.checkpoints.packing import load_packed
from tests.training.test_slm import ORDERS, TOKENIZER, noise_mel
from training.features import Clip
from training.hearing import Hearing, HearingConfig, likeness_loss
from training.slm_data import Examples, Shares

MODEL = Path(__file__).resolve().parents[2] / "models" / "embedded"


def test_likeness_is_relative_and_looks_at_real_frames_alone() -> None:
    wanted = torch.ones(2, 10, 4)
    heard = wanted.clone()
    heard[0, 5:] = 100.0  # behind the end of a clip of 20 mel frames
    assert float(likeness_loss(heard, wanted, torch.tensor([20, 40]))) == 0.0
    assert float(likeness_loss(torch.zeros_like(wanted), wanted, torch.tensor([20, 40]))) == pytest.approx(1.0)


@pytest.fixture
def hearing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hearing:
    np.save(tmp_path / "backgrounds.npy", np.stack([noise_mel(300, seed) for seed in range(3)]))
    synthetic = [Clip(noise_mel(80 + seed, seed), "one latte please", seed, "voice") for seed in range(8)]
    recordings = [
        (Clip(noise_mel(90, 50 + i), "a latte", None, f"{4 * i + 1:04x}.wav"), ORDERS[0][1]) for i in range(8)
    ]
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    data = Examples(tokenizer, synthetic, recordings, [], random.Random(0), Shares())
    monkeypatch.setattr(Hearing, "_examples", lambda self: data)
    output, weights = str(tmp_path / "hearing.pt"), str(tmp_path / "encoder.safetensors")
    config = HearingConfig(
        str(MODEL), "", "", "", str(tmp_path), output, weights, batch_frames=300, learning_rate=2e-4, warmup_steps=1
    )
    return Hearing(config)


def test_steps_bring_hard_closer_to_clear(hearing: Hearing) -> None:
    mel, lengths, clean = hearing.augment.pairs([clip.mel for clip in hearing.data.synthetic], [None] * 8)

    @torch.no_grad()
    def distance() -> float:
        wanted = hearing.teacher.encode(clean, lengths).frames
        return float(likeness_loss(hearing.model.encode(mel, lengths).frames, wanted, lengths))

    before = distance()
    for _ in range(30):
        hearing.train_step()
    assert distance() < before
    assert not any(parameter.requires_grad for parameter in hearing.teacher.parameters())


def test_a_run_resumes_and_another_goes_on_from_its_encoder(hearing: Hearing) -> None:
    hearing.train_step()
    hearing.minutes = 1.5
    hearing.save()
    resumed = Hearing(hearing.config)
    assert (resumed.step, resumed.minutes) == (1, 1.5)
    for name, value in hearing.average.state_dict().items():
        assert torch.equal(resumed.average.state_dict()[name], value)
    other = msgspec.structs.replace(
        hearing.config, output=hearing.config.output + "2", start_from=str(MODEL / "encoder.safetensors")
    )
    started = Hearing(other)
    packed = load_packed(MODEL / "encoder.safetensors")
    assert started.step == 0 and all(torch.equal(started.model.state_dict()[name], packed[name]) for name in packed)
