"""What a run says: one flat object with units in the names, and the curves behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from agent.wire import STAGES
from benchmarks.load.caller import Answer, Record
from benchmarks.load.generator import Load

MOMENTS = ("first_text_ms", "first_token_ms", "first_audio_ms", "first_audio_out_ms", "total_ms")


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """`name`_p50, _p95 and _p99; nothing of nothing."""
    if not values:
        return {}
    return {f"{name}_p{share}": round(float(np.percentile(values, share)), 1) for share in (50, 95, 99)}


def summary(load: Load) -> dict[str, object]:
    """Every gap is counted once: as heard, or, where the generator was that late itself, as its own."""
    records = load.records
    admitted = [record for record in records if record.connected_ms is not None]
    answers = [answer for record in admitted for answer in record.answers if answer.playback.samples]
    gaps = [gap for record in admitted for gap in record.gaps]
    own = [gap for gap in gaps if load.lateness.explains(gap)]
    heard = [gap for gap in gaps if gap not in own]
    first_audio = [1e3 * (answer.playback.first_at_s - answer.asked_at_s) for answer in answers if answer.asked_at_s]
    judged, restated = (sum(getattr(record, name) for record in admitted) for name in ("judged", "restated"))
    lasted_s = load.ended_at_s - load.started_at_s
    late_ms = [1e3 * late for late in load.lateness.late_s]
    return {
        "callers": len(records),
        "admitted": len(admitted),
        "most_at_once": _most_at_once(admitted),
        "lasted_s": round(lasted_s, 1),
        "answers": len(answers),
        "gaps": len(heard),
        "gap_total_ms": round(1e3 * sum(gap.length_s for gap in heard), 1) if heard else None,
        "worst_gap_ms": round(1e3 * max(gap.length_s for gap in heard), 1) if heard else None,
        "gaps_of_generator": len(own),
        **percentiles("first_audio_ms", first_audio),
        **percentiles("connect_ms", [record.connected_ms or 0.0 for record in admitted]),
        **_refusals(records),
        "orders": sum(record.orders for record in admitted),
        "judged_orders": judged,
        "acceptance_rate": round(restated / judged, 4) if judged else None,
        "unanswered_orders": sum(record.unanswered for record in admitted),
        "barge_ins": sum(record.barge_ins for record in admitted),
        **percentiles("barge_in_stop_ms", [ms for record in admitted for ms in record.stop_ms]),
        "late_sound_events": sum(record.late_sound_events for record in admitted),
        "lost_callers": sum(bool(record.lost) for record in records),
        "lost_reasons": dict(Counter(record.lost for record in records if record.lost)),
        "errors": dict(Counter(code for record in admitted for code in record.errors)),
        "reported": _together(percentiles(name, _reported(answers, name)) for name in MOMENTS),
        "stages": _together(percentiles(f"{name}_ms", _stage(answers, f"{name}_ms")) for name in STAGES),
        **_rates(answers),
        **percentiles("generator_late_ms", late_ms),
        "generator_worst_late_ms": round(max(late_ms), 1) if late_ms else None,
        "generator_core_share": round(load.busy_s / lasted_s, 3),
    }


def ramp_summary(load: Load) -> dict[str, object]:
    """The same number of callers comes twice; between, all hang up."""
    admitted = {
        again: sum(
            record.connected_ms is not None
            for record, visit in zip(load.records, load.visits, strict=True)
            if visit.again is again
        )
        for again in (False, True)
    }
    return {"capacity": admitted[False], "capacity_after": admitted[True]}


def per_second(load: Load) -> dict[str, list[float]]:
    """By second: callers on the line, gaps, mean rate of the answers that began (NaN where none), refusals."""
    seconds = int(load.ended_at_s - load.started_at_s) + 1
    callers, gaps, refused = (np.zeros(seconds) for _ in range(3))
    rates: list[list[float]] = [[] for _ in range(seconds)]

    def second(at_s: float) -> int:
        return min(seconds - 1, max(0, int(at_s - load.started_at_s)))

    for record in load.records:
        if record.connected_ms is None:
            refused[second(record.arrived_at_s)] += record.refused_ms is not None
            continue
        callers[second(record.arrived_at_s) : second(record.left_at_s) + 1] += 1
        for gap in record.gaps:
            if not load.lateness.explains(gap):
                gaps[second(gap.at_s)] += 1
        for answer in record.answers:
            if hz := _side(answer, "output", "realised_hz"):
                rates[second(answer.playback.first_at_s)].append(hz)
    hz = [float(np.mean(found)) if found else float("nan") for found in rates]
    return {"callers": callers.tolist(), "gaps": gaps.tolist(), "output_hz": hz, "refused": refused.tolist()}


def _together(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    return {name: value for part in parts for name, value in part.items()}


def _refusals(records: Iterable[Record]) -> dict[str, object]:
    refused = [record for record in records if record.refused_ms is not None]
    times = [record.refused_ms for record in refused if record.refused_ms is not None]
    return {
        "refused": len(refused),
        "refusals": dict(Counter(record.refusal for record in refused)),
        **percentiles("refusal_ms", times),
    }


def _rates(answers: Iterable[Answer]) -> dict[str, object]:
    listed = list(answers)
    given: dict[str, object] = {}
    for side in ("input", "output"):
        for kind in ("requested_hz", "realised_hz"):
            found = [value for answer in listed if (value := _side(answer, side, kind))]
            given[f"{kind.removesuffix('_hz')}_{side}_hz_mean"] = round(float(np.mean(found)), 2) if found else None
    reasons = Counter(str(answer.report.get("output_frame_rate", {}).get("reason", "")) for answer in listed)
    given["output_rate_reasons"] = dict(reasons.most_common(8))
    return given


def _side(answer: Answer, side: str, name: str) -> float:
    found = answer.report.get(f"{side}_frame_rate")
    return float(found.get(name, 0.0)) if isinstance(found, dict) else 0.0


def _reported(answers: Iterable[Answer], name: str) -> list[float]:
    timings = (answer.report.get("timing") or {} for answer in answers)
    return [float(timing[name]) for timing in timings if name in timing]


def _stage(answers: Iterable[Answer], name: str) -> list[float]:
    stages = ((answer.report.get("timing") or {}).get("stages") or {} for answer in answers)
    return [float(stage[name]) for stage in stages if stage.get(name)]  # a server says 0.0 of what it did not do


def _most_at_once(records: Iterable[Record]) -> int:
    changes = [change for r in records for change in ((r.arrived_at_s, 1), (r.left_at_s, -1))]
    most = now = 0
    for _, step in sorted(changes):
        now += step
        most = max(most, now)
    return most
