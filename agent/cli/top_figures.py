"""What a running service says of itself, as `agogic top` shows it: /metrics and /readyz in, figures out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


class Ready(msgspec.Struct, frozen=True):
    """What /readyz answers; `reason` where it takes no sessions."""

    ready: bool
    model: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Reading:
    """One look at a service: every sample of /metrics by name and labels, at a moment (s) of any steady clock."""

    at_s: float
    ready: Ready
    samples: dict[str, dict[Labels, float]]

    def total(self, name: str) -> float:
        """Of all labels together."""
        return sum(self.samples.get(name, {}).values())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Of each value of that label."""
        found: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, {}).items():
            found[dict(labels)[label]] += value
        return dict(found)


class ServiceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one service. Counts are those since its start, shares and times those of the last `window_s`, which is all of
    its time at the first look; what nobody did in that time is None. `error`: it could not be asked."""

    url: str
    error: str | None = None
    ready: bool | None = None
    reason: str | None = None
    model: str | None = None
    workers: dict[str, int] = {}
    restarts: int | None = None
    slots: int | None = None
    leased: int | None = None
    capacity: int | None = None
    busy_share: float | None = None
    sessions: dict[str, int] = {}
    kept: int | None = None
    held_mb: float | None = None
    window_s: float | None = None
    answers: dict[str, int] = {}
    answers_per_s: float | None = None
    first_audio_ms_p50: float | None = None
    first_audio_ms_p95: float | None = None
    output_hz: float | None = None
    refused: dict[str, int] = {}
    gaps: int | None = None
    loop_stalls: int | None = None


@dataclass
class Looks:
    """The last look at each service, to compare the next one with."""

    before: dict[str, Reading] = field(default_factory=dict)

    def figures(self, url: str, now: Reading) -> ServiceFigures:
        before = self.before.get(url)
        self.before[url] = now
        if before is not None and before.total("agogic_responses_total") > now.total("agogic_responses_total"):
            before = None  # it was started anew
        return figures(url, before, now)


def read(metrics: str, ready: bytes, at_s: float) -> Reading:
    """Raises ValueError or `msgspec.MsgspecError` for what no service of ours says."""
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    if "agogic_worker_slots" not in samples:
        raise ValueError("it has no metrics of agogic's")
    return Reading(at_s, msgspec.json.decode(ready, type=Ready), dict(samples))


def figures(url: str, before: Reading | None, now: Reading) -> ServiceFigures:
    """`before` is an earlier look at the same process, None: there was none."""
    window_s = now.at_s - before.at_s if before is not None else None
    answered = _since(before, now, "agogic_responses_total")
    first_audio = _buckets(before, now, "agogic_first_audio_seconds_bucket")
    spoken = _since(before, now, "agogic_output_frame_rate_hz_count")
    return ServiceFigures(
        url=url,
        ready=now.ready.ready,
        reason=now.ready.reason or None,
        model=now.ready.model,
        workers=_counts(now.by("agogic_workers", "state")),
        restarts=int(now.total("agogic_worker_restarts")),
        slots=int(now.total("agogic_worker_slots")),
        leased=int(now.total("agogic_worker_leased")),
        capacity=int(now.total("agogic_capacity")),
        busy_share=round(now.total("agogic_worker_busy"), 3),
        sessions=_counts(now.by("agogic_sessions", "transport")),
        kept=int(now.total("agogic_sessions_kept")),
        held_mb=round(now.total("agogic_held_bytes") / 1e6, 1),
        window_s=round(window_s, 1) if window_s is not None else None,
        answers=_counts(now.by("agogic_responses_total", "status")),
        answers_per_s=round(answered / window_s, 2) if window_s else None,
        first_audio_ms_p50=_ms(quantile(0.5, first_audio)),
        first_audio_ms_p95=_ms(quantile(0.95, first_audio)),
        output_hz=round(_since(before, now, "agogic_output_frame_rate_hz_sum") / spoken, 2) if spoken else None,
        refused=_counts(now.by("agogic_refused_total", "reason")),
        gaps=int(now.total("agogic_underruns_total")),
        loop_stalls=int(now.total("agogic_loop_stalls_total")),
    )


def quantile(share: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """Of a histogram whose (upper bound, how many are not above it) are given: linear within a bucket, as Prometheus'
    `histogram_quantile` has it; the highest bound for what lies above all of them."""
    below = sorted(buckets)
    if not below or not below[-1][1]:
        return None
    wanted = share * below[-1][1]
    low, count = 0.0, 0.0
    for bound, total in below:
        if total >= wanted:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - count) / (total - count)
        low, count = bound, total
    return low


def _since(before: Reading | None, now: Reading, name: str) -> float:
    return now.total(name) - (before.total(name) if before is not None else 0.0)


def _buckets(before: Reading | None, now: Reading, name: str) -> list[tuple[float, float]]:
    earlier = before.by(name, "le") if before is not None else {}
    return [(float(bound), count - earlier.get(bound, 0.0)) for bound, count in now.by(name, "le").items()]


def _counts(found: dict[str, float]) -> dict[str, int]:
    return {name: int(value) for name, value in sorted(found.items()) if value}


def _ms(seconds: float | None) -> float | None:
    return round(seconds * 1000, 1) if seconds is not None else None
