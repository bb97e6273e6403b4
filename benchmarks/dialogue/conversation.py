"""`agogic eval conversation`: exact answers to held-out turns, most of which need what was said before them.

Beside the eight kinds of `training.conversations` there are those of `training.wide_world`, and orders whose restating
was interrupted before they are changed.
"""

from __future__ import annotations

import random

import numpy as np

from agent.wire import ContextItem
from benchmarks.progress import Progress
from training.conversations import KINDS, answers_before, interrupted_change, question_for, turn_of_kind
from training.speech_data import espeak
from training.wide_world import WIDE_KINDS, wide_turn
from training.world import HELD_OUT_SEED, Turn
from worker.parts import SpeechModel
from worker.turn import TurnSettings, ask_by_text, ask_by_voice

INTERRUPTED = "interrupted"


def told(answers: list[str], rng: random.Random) -> tuple[ContextItem, ...]:
    """The answers given before as the conversation they stood in: what was said to get each, and the answer."""
    items = []
    for answer in answers:
        items += [ContextItem("user", question_for(answer, rng)), ContextItem("assistant", answer)]
    return tuple(item for item in items if item.text)


def _drawn(kind: str, rng: random.Random) -> tuple[Turn, tuple[ContextItem, ...]]:
    """A held-out turn of this kind and what was said before it."""
    if kind == INTERRUPTED:
        turn, past = interrupted_change(rng)
        return turn, tuple(ContextItem(part.role, part.text) for part in past)
    if kind in KINDS:
        turn = turn_of_kind(kind, rng)
        return turn, told(answers_before(turn, rng), rng)
    turn = wide_turn(rng, kind)
    return turn, told([turn.history] if turn.history else [], rng)


def run(
    model: SpeechModel,
    per_kind: int,
    spoken: bool,
    input_hz: float,
    progress: Progress | None = None,
    *,
    wide: bool = False,
) -> dict[str, object]:
    """`per_kind` turns of every kind, written, or `spoken` by espeak-ng in voices drawn at random; with `wide` those of
    the wide world as well, whose share is counted by itself.

    Raises SynthesisError where espeak-ng is missing.
    """
    kinds = (*KINDS, INTERRUPTED, *WIDE_KINDS) if wide else KINDS
    exact = dict.fromkeys(kinds, 0)
    misses = []
    total, done = per_kind * len(kinds), 0
    for place, kind in enumerate(kinds):
        for number in range(per_kind):
            rng = random.Random(f"turn {HELD_OUT_SEED + 1000 * place + number}")
            turn, history = _drawn(kind, rng)
            settings = TurnSettings(input_hz=input_hz, speech=False, history=history)
            if spoken:
                samples, _ = espeak(turn.user, rng)
                answer = ask_by_voice(model, samples.astype(np.float32) / 32768, settings).text
            else:
                answer = ask_by_text(model, turn.user, settings).text
            if answer == turn.reply:
                exact[kind] += 1
            else:
                before = [f"{item.role}: {item.text}" for item in history]
                misses.append({"before": before, "said": turn.user, "wanted": turn.reply, "answered": answer})
            done += 1
            if progress is not None:
                progress(done, total)
    usual = sum(exact[kind] for kind in KINDS) / (per_kind * len(KINDS))
    report: dict[str, object] = {
        "turns_per_kind": per_kind,
        "spoken": spoken,
        "exact": exact,
        "exact_share": round(usual, 4),
    }
    if wide:
        others = sum(count for kind, count in exact.items() if kind not in KINDS)
        report["wide_exact_share"] = round(others / (per_kind * (len(kinds) - len(KINDS))), 4)
    return {**report, "misses": misses}
