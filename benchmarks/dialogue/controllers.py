"""`agogic bench controllers`: three ways to meet a frame rate without seeing the future, beside the top-k that does.

Fixed threshold: the similarity below which calibration clips would have been cut at the requested rate. Integral
control: a threshold that moves by a constant step with what is owed. Quantile tracking: what agogic uses
(`streaming.merging.rate_control`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.dialogue.rates import LONG_CLIP_S, RATES_HZ, Starts, agreement, causal_ear, encode
from streaming.merging.grouping import neighbour_similarity
from streaming.merging.rate_control import RateController
from worker.pipeline import Pipeline

Similarity = NDArray[np.floating]
Cutter = Callable[[Similarity], Starts]

INTEGRAL_GAIN = 0.01


def top_k(similarity: Similarity, target_hz: float, base_hz: float, max_group: int) -> Starts:
    """FlexiSLM's offline cut (section 3.4) from the similarities [T-1] alone."""
    count = len(similarity) + 1
    starts = np.zeros(count, dtype=np.bool_)
    starts[0] = True
    wanted = max(1, round(target_hz / base_hz * count))
    starts[np.argsort(similarity, kind="stable")[: wanted - 1] + 1] = True
    return _split(starts, max_group)


def fixed_threshold(calibration: Sequence[Similarity], target_hz: float, base_hz: float, max_group: int) -> Cutter:
    threshold = np.quantile(np.concatenate(calibration), target_hz / base_hz)
    return lambda similarity: _split(np.concatenate(([True], similarity <= threshold)), max_group)


def integral_control(calibration: Sequence[Similarity], target_hz: float, base_hz: float, max_group: int) -> Cutter:
    """Starts from the calibrated threshold; goes on over utterances."""
    state = {"threshold": float(np.quantile(np.concatenate(calibration), target_hz / base_hz))}

    def cut(similarity: Similarity) -> Starts:
        starts, open_frames = [True], 1
        for value in similarity.tolist():
            start = value <= state["threshold"] or open_frames >= max_group
            state["threshold"] += INTEGRAL_GAIN * (target_hz / base_hz - start)
            open_frames = 1 if start else open_frames + 1
            starts.append(start)
        return np.array(starts, dtype=np.bool_)

    return cut


def quantile_tracking(calibration: Sequence[Similarity], target_hz: float, base_hz: float, max_group: int) -> Cutter:
    controller = RateController(base_hz, max_group)
    state = {"now": controller.initial_state()}

    def cut(similarity: Similarity) -> Starts:
        state["now"] = controller.next_utterance(state["now"])
        return controller.whole(similarity, state["now"], target_hz)

    return cut


CONTROLLERS = {
    "fixed threshold": fixed_threshold,
    "integral control": integral_control,
    "quantile tracking": quantile_tracking,
}


def run(model: Pipeline, clips: Sequence[Path]) -> dict[str, object]:
    """Every other clip calibrates, the rest are measured. Needs at least two clips."""
    similarities = [neighbour_similarity(encode(model, path)).numpy() for path in clips]
    controller = causal_ear(model).merger.controller
    rows = compare(similarities[1::2], similarities[::2], RATES_HZ, controller.base_hz, controller.max_group)
    return {"clips": len(similarities[1::2]), "calibration_clips": len(similarities[::2]), "rows": rows}


def compare(
    clips: Sequence[Similarity],
    calibration: Sequence[Similarity],
    rates_hz: Sequence[float],
    base_hz: float,
    max_group: int,
) -> list[dict[str, object]]:
    """One row per controller and rate over `clips`, taken as one conversation; `calibration` are other clips.

    group_ms is the mean time from a group's first frame to the decision that it is closed.
    """
    rows: list[dict[str, object]] = []
    for name, make in CONTROLLERS.items():
        for target_hz in rates_hz:
            cut = make(calibration, target_hz, base_hz, max_group)
            found = [cut(clip) for clip in clips]
            exact = [top_k(clip, target_hz, base_hz, max_group) for clip in clips]
            frames, groups = sum(map(len, found)), sum(int(starts.sum()) for starts in found)
            long = [starts for starts in found if len(starts) >= LONG_CLIP_S * base_hz]
            rows.append(
                {
                    "controller": name,
                    "requested_hz": target_hz,
                    "realised_hz": round(groups / frames * base_hz, 3),
                    "worst_clip_error": round(
                        max((abs(float(s.mean()) * base_hz / target_hz - 1) for s in long), default=0.0), 4
                    ),
                    "boundary_agreement": round(agreement(exact, found), 4),
                    "group_ms": round(1e3 * (frames / groups + 1) / base_hz, 1),
                }
            )
    return rows


def _split(starts: Starts, max_group: int) -> Starts:
    """Cuts groups that are longer than allowed."""
    starts, open_frames = starts.copy(), 0
    for frame, start in enumerate(starts.tolist()):
        open_frames = 1 if start or open_frames >= max_group else open_frames + 1
        starts[frame] = open_frames == 1
    return starts
