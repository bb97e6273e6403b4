"""Prometheus' families as OpenTelemetry's metrics: the same numbers under the same names, counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

_NS = 1_000_000_000
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def metrics_of(families: Iterable[Family], now_ns: int) -> list[Metric]:
    """What a registry's `collect` gives, at that moment (nanoseconds of calendar time)."""
    found = []
    for family in families:
        if not family.samples:
            continue
        data: Sum | Gauge | Histogram
        if family.type == "counter":
            data = Sum(list(_numbers(family, "_total", now_ns)), _CUMULATIVE, is_monotonic=True)
        elif family.type == "histogram":
            data = Histogram(list(_histograms(family, now_ns)), _CUMULATIVE)
        else:
            data = Gauge(list(_numbers(family, "", now_ns)))
        found.append(Metric(family.name, family.documentation, family.unit or "", data))
    return found


def _numbers(family: Family, suffix: str, now_ns: int) -> Iterator[NumberDataPoint]:
    began_ns = _began_ns(family)
    for sample in family.samples:
        if sample.name == family.name + suffix:
            start_ns = began_ns.get(_labels(sample), now_ns)
            yield NumberDataPoint(dict(sample.labels), start_ns, now_ns, sample.value)


def _histograms(family: Family, now_ns: int) -> Iterator[HistogramDataPoint]:
    began_ns = _began_ns(family)
    of: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        of.setdefault(_labels(sample), []).append(sample)
    for labels, samples in of.items():
        below = sorted(
            (float(sample.labels["le"]), int(sample.value)) for sample in samples if sample.name.endswith("_bucket")
        )
        (total,) = (sample.value for sample in samples if sample.name.endswith("_sum"))
        yield HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=began_ns.get(labels, now_ns),
            time_unix_nano=now_ns,
            count=below[-1][1],
            sum=total,
            bucket_counts=[high - low for (_, low), (_, high) in pairwise([(0.0, 0), *below])],
            explicit_bounds=[bound for bound, _ in below[:-1]],
            min=None,  # type: ignore[arg-type] # nobody keeps it; the protocol's fields are optional
            max=None,  # type: ignore[arg-type]
        )


def _began_ns(family: Family) -> dict[tuple[tuple[str, str], ...], int]:
    return {_labels(sample): int(sample.value * _NS) for sample in family.samples if sample.name.endswith("_created")}


def _labels(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
