"""`agogic eval conversation`: exact answers to held-out turns, most of which need the answers before them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from agent.wire import ContextItem
from training.conversations import KINDS, answers_before, turn_of_kind
from training.speech_data import espeak
from training.world import HELD_OUT_SEED
from worker.parts import SpeechModel
from worker.turn import TurnSettings, ask_by_text, ask_by_voice

Progress = Callable[[int, int], None]


def run(
    model: SpeechModel, per_kind: int, spoken: bool, input_hz: float, progress: Progress | None = None
) -> dict[str, object]:
    """`per_kind` turns of every kind, written, or `spoken` by espeak-ng in voices drawn at random.

    Raises SynthesisError where espeak-ng is missing.
    """
    exact = dict.fromkeys(KINDS, 0)
    misses = []
    total, done = per_kind * len(KINDS), 0
    for place, kind in enumerate(KINDS):
        for number in range(per_kind):
            rng = random.Random(f"turn {HELD_OUT_SEED + 1000 * place + number}")
            turn = turn_of_kind(kind, rng)
            before = answers_before(turn, rng)
            history = tuple(ContextItem("assistant", answer) for answer in before)
            settings = TurnSettings(input_hz=input_hz, speech=False, history=history)
            if spoken:
                samples, _ = espeak(turn.user, rng)
                answer = ask_by_voice(model, samples.astype(np.float32) / 32768, settings).text
            else:
                answer = ask_by_text(model, turn.user, settings).text
            if answer == turn.reply:
                exact[kind] += 1
            else:
                misses.append({"before": before, "said": turn.user, "wanted": turn.reply, "answered": answer})
            done += 1
            if progress is not None:
                progress(done, total)
    return {
        "turns_per_kind": per_kind,
        "spoken": spoken,
        "exact": exact,
        "exact_share": round(sum(exact.values()) / total, 4),
        "misses": misses,
    }
