"""Stage 3: the Talker alone, reading a finished Thinker, on sentences and answers recorded in the speaking voice.

The Thinker and all that hears stay as they are, so that what is understood cannot change.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import torch
from torch import nn

from training.precision import autocast
from training.slm import SlmConfig, SlmTraining


class TalkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`slm` is the configuration of the finished run, `output` a checkpoint of the same form with the better Talker."""

    slm: str
    output: str
    minutes: float = 10.0
    learning_rate: float = 8e-4
    average_decay: float = 0.99


def train(config: TalkerConfig) -> SlmTraining:
    """Continues from the run's averaged weights; the rate falls linearly to nothing."""
    slm = msgspec.toml.decode(Path(config.slm).read_bytes(), type=SlmConfig)
    torch.set_num_threads(slm.threads)
    run = SlmTraining(slm)
    parameters = dict(run.model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(run.average[name])
            parameter.requires_grad_(name.startswith("talker."))
    talker = list(run.model.talker.parameters())
    optimizer = torch.optim.AdamW(talker, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    minutes, report_at, speech = 0.0, 1.0, list[float]()
    while minutes < config.minutes:
        started = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(0.02, 1 - minutes / config.minutes)
        items = [run.data.draw(with_audio=False) for _ in range(slm.batch)]
        with autocast():
            losses = run.losses([item for item in items if item.speech is not None], train_encoder=False)
        optimizer.zero_grad(set_to_none=True)
        (losses.speech + 0.5 * losses.length + 0.3 * losses.alignment).backward()
        nn.utils.clip_grad_norm_(talker, 1.0)
        optimizer.step()
        run.step += 1
        with torch.no_grad():
            for name, parameter in parameters.items():
                run.average[name].lerp_(parameter, 1 - config.average_decay)
        speech.append(float(losses.speech.detach()))
        minutes += (time.process_time() - started) / 60 / torch.get_num_threads()
        if minutes >= report_at:
            print(f"step {run.step} at {minutes:.1f} min: speech {sum(speech) / len(speech):.3f}", flush=True)
            speech.clear()
            report_at += 1
    run.checkpoint = Path(config.output)
    run.save()
    return run


def main(config_path: Path) -> None:
    """`agogic train talker --config FILE`."""
    train(msgspec.toml.decode(config_path.read_bytes(), type=TalkerConfig))
