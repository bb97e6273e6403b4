"""What the voice networks' trainings share: a schedule in minutes, averaged weights, resumable checkpoints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


class Progress:
    """Schedule and log of one run. The run lasts `minutes` of one thread's processor time, so that other work on the
    machine makes it longer but not worse.

    The learning rate warms up for `warmup_steps`, then falls along a cosine to 2 % at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Path,
        *,
        minutes: float,
        learning_rate: float,
        warmup_steps: int = 200,
        ema_decay: float = 0.998,
        save_every_s: float = 120.0,
    ) -> None:
        self.model, self.checkpoint = model, checkpoint
        self.seconds, self.learning_rate, self.warmup_steps = minutes * 60, learning_rate, warmup_steps
        self.ema_decay, self.save_every_s = ema_decay, save_every_s
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.step = 0
        self.spent_s = 0.0
        self._sums: dict[str, float] = {}
        self._since = 0
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.average, self.step, self.spent_s = saved["average"], saved["step"], saved["spent_s"]
            print(f"resumed at step {self.step}, {self.spent_s / 60:.1f} min", flush=True)

    @property
    def part_done(self) -> float:
        return min(1.0, self.spent_s / self.seconds)

    def steps(self) -> Iterator[int]:
        """Step numbers until the time is spent; saves on the way and at the end."""
        saved_at = time.monotonic()
        clock = time.process_time()
        while self.spent_s < self.seconds:
            warm = min(1.0, (self.step + 1) / self.warmup_steps)
            rate = self.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.part_done)))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            yield self.step
            now = time.process_time()
            self.spent_s += (now - clock) / torch.get_num_threads()
            clock = now
            if time.monotonic() - saved_at > self.save_every_s:
                self.save()
                saved_at = time.monotonic()
        self.save()

    def update(self, loss: torch.Tensor, **shown: float) -> None:
        """Backward, clipped step and moving average; `shown` values are averaged into the log."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay) if value.is_floating_point() else None
        for name, number in shown.items():
            self._sums[name] = self._sums.get(name, 0.0) + number
        self._since += 1
        if self._since == 50:
            means = " ".join(f"{name} {total / self._since:.4f}" for name, total in self._sums.items())
            print(f"step {self.step} {self.spent_s / 60:.1f} min ({100 * self.part_done:.0f} %) {means}", flush=True)
            self._sums, self._since = {}, 0

    def save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "spent_s": self.spent_s,
        }
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)
