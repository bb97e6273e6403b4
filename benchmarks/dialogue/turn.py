"""`agogic bench turn`: recorded orders through the whole pipeline: how soon and how dearly answers come."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from agent.wire import STAGES
from benchmarks.progress import Progress
from worker.audio_files import read_question
from worker.parts import SpeechModel
from worker.turn import Turn, TurnSettings, ask_by_voice

WARM_UP_TURNS = 2


def run(
    model: SpeechModel, clips: list[Path], settings: TurnSettings, repeat: int = 1, progress: Progress | None = None
) -> dict[str, object]:
    """Medians and 95th percentiles over `repeat` turns per clip; times in ms from the last sample of the question.

    real_time_factor: time the model worked over the length of question and answer together; the factors of listening
    and speaking are given as well. The turn detector's wait is no part of this.
    """
    questions = [read_question(path) for path in clips]
    for question in questions[:WARM_UP_TURNS]:
        ask_by_voice(model, question, settings)
    turns: list[Turn] = []
    for number in range(repeat * len(questions)):
        turns.append(ask_by_voice(model, questions[number % len(questions)], settings))
        if progress is not None:
            progress(number + 1, repeat * len(questions))
    first = [turn.first_audio_ms for turn in turns]
    heard_s = sum(turn.encoded.samples for turn in turns if turn.encoded) / 16_000
    spoken_s = sum(len(turn.pcm) for turn in turns) / model.output_sample_rate
    listening_ms = sum(turn.stats.encode_ms for turn in turns)
    busy_ms = sum(turn.busy_ms for turn in turns)
    return {
        "turns": len(turns),
        "first_audio_ms_p50": round(statistics.median(first), 1),
        "first_audio_ms_p95": round(_percentile(first, 0.95), 1),
        "first_text_ms_p50": round(statistics.median(turn.stats.first_text_ms for turn in turns), 1),
        "real_time_factor": round(busy_ms / 1e3 / (heard_s + spoken_s), 4),
        "listening_real_time_factor": round(listening_ms / 1e3 / heard_s, 4),
        "speaking_real_time_factor": round((busy_ms - listening_ms) / 1e3 / spoken_s, 4) if spoken_s else None,
        "question_s": round(heard_s, 2),
        "answer_s": round(spoken_s, 2),
        "stages": {f"{name}_ms": _median_of(turns, f"{name}_ms") or None for name in STAGES},
        "requested_input_hz": settings.input_hz,
        "requested_output_hz": settings.output_hz,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _median_of(turns: list[Turn], name: str) -> float:
    return round(statistics.median(float(getattr(turn.stats, name)) for turn in turns), 2)


def _percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, -int(-share * len(ranked) // 1) - 1))]
