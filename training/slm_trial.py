"""A quick look at how a model in training hears held-out recordings; the evaluation is `agogic eval`."""

from __future__ import annotations

import numpy as np
import torch

from models.orders import parse_order
from streaming.hearing.encoder import BlockCausalEncoder
from training.channels import band_gain
from training.features import scale
from training.slm_data import Examples
from training.slm_model import SpeechLanguageModel, exact_group_lengths, greedy_text, group_lengths


@torch.no_grad()
def accepted(
    model: SpeechLanguageModel,
    encoder: BlockCausalEncoder,
    data: Examples,
    input_hz: float,
    *,
    exact: bool = False,
    channel: str = "",
) -> tuple[float, str]:
    """Share of held-out recordings whose slots the answer restates exactly, and the last answer.

    exact: grouped by offline top-k. channel "telephone": the band of a telephone, 300 to 3400 Hz, nothing above 4 kHz.
    """
    before, after = data.prompts.around([], "", audio=True)
    grouping = exact_group_lengths if exact else group_lengths
    right, text = 0, ""
    for clip, slots in data.tests:
        mel = torch.from_numpy(clip.mel.astype(np.float32))
        if channel == "telephone":
            mel = mel + band_gain(300.0, 3400.0, 4, 20).clamp_min(1e-8).log10()
        frames = encoder(scale(mel)[None])[0]
        merged = model.merger.forward(frames, grouping(frames, input_hz))
        prompt = model.prompt(before, after, merged)
        text = data.tokenizer.decode(greedy_text(model.thinker, prompt, data.prompts.end[0]))
        right += parse_order(text) == slots
    return right / len(data.tests), text
