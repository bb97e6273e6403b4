"""Traces and metrics to a collector by OTLP over HTTP, through OpenTelemetry's SDK.

The loop only puts finished values into bounded queues; threads of the exporters encode and send them. Where the
collector is slow or gone, what does not fit is dropped. Everything else (headers, time-outs, sampling, names) is set by
the standard OTEL_* variables, which the SDK reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import queue
import threading
import time
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry

from agent.config import TelemetryConfig
from agent.telemetry.families import metrics_of
from agent.telemetry.moments import TurnTrace

_SCOPE = "agogic"
_INTERVAL_MS = 60_000
_LAST_WORDS_S = 2.0
_NS = 1_000_000_000


class Telemetry:
    """`run` sends metrics until cancelled; `turn` may be called before, and from the loop's thread only.

    `now_s` is the clock of the moments in traces.
    """

    def __init__(self, config: TelemetryConfig, registry: CollectorRegistry, now_s: Callable[[], float]) -> None:
        self._registry = registry
        self._now_s = now_s
        version = importlib.metadata.version("agogic")
        self._resource = Resource.create(
            {SERVICE_VERSION: version, SERVICE_INSTANCE_ID: f"{os.getpid()}-{time.time_ns():x}"}
            | ({} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "agogic"})
        )
        self._scope = InstrumentationScope(_SCOPE, version)
        is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        base = config.endpoint.rstrip("/")
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None
        if config.traces and not is_off:
            self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
            exporter = OTLPSpanExporter(endpoint=f"{base}/v1/traces" if base else None)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
            self._tracer = self._provider.get_tracer(_SCOPE, version)
        self._sender: _Sender | None = None
        if config.metrics and not is_off:
            self._sender = _Sender(OTLPMetricExporter(endpoint=f"{base}/v1/metrics" if base else None))

    def turn(self, turn: TurnTrace) -> None:
        """A trace of its own, with the turn as its root."""
        if self._tracer is None:
            return
        unix_ns, now_s = time.time_ns(), self._now_s()

        def at(moment_s: float) -> int:
            return unix_ns - int((now_s - moment_s) * _NS)

        root = self._tracer.start_span(
            turn.whole.name,
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            kind=trace.SpanKind.SERVER,
            attributes=dict(turn.whole.attributes),
            start_time=at(turn.whole.start_s),
        )
        if turn.whole.first_s is not None:
            root.add_event("decided", timestamp=at(turn.whole.first_s))
        if turn.failed:
            root.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(root)
        for part in turn.parts:
            span = self._tracer.start_span(
                part.name, context=inside, attributes=dict(part.attributes), start_time=at(part.start_s)
            )
            if part.first_s is not None:
                span.add_event("first", timestamp=at(part.first_s))
            span.end(end_time=at(part.end_s))
        root.end(end_time=at(turn.whole.end_s))

    async def run(self, read: Callable[[], object]) -> None:
        """Sends the metrics every `OTEL_METRIC_EXPORT_INTERVAL` ms, after `read` has brought them up to date."""
        if self._sender is None:
            return
        every_s = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or _INTERVAL_MS) / 1000
        try:
            while True:
                await asyncio.sleep(every_s)
                read()
                self._sender.put(self._metrics())
        finally:
            read()
            self._sender.put(self._metrics())

    async def close(self) -> None:
        """Lets what is queued go, for a short while: a collector that does not answer holds nobody up."""
        closing = [self._provider.shutdown] if self._provider is not None else []
        if self._sender is not None:
            closing.append(self._sender.close)
        threads = [threading.Thread(target=close, daemon=True) for close in closing]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + _LAST_WORDS_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline_s:  # noqa: ASYNC110 threads
            await asyncio.sleep(0.02)

    def _metrics(self) -> MetricsData:
        metrics = metrics_of(self._registry.collect(), time.time_ns())
        scoped = ScopeMetrics(self._scope, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scoped], "")])


class _Sender:
    """A thread that sends one collection after the other; while it is at one, only the newest waits."""

    def __init__(self, exporter: OTLPMetricExporter) -> None:
        self._exporter = exporter
        self._waiting: queue.Queue[MetricsData | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._send, name="telemetry metrics", daemon=True)
        self._thread.start()

    def put(self, data: MetricsData | None) -> None:
        """Never waits."""
        with contextlib.suppress(queue.Empty):
            self._waiting.get_nowait()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(data)

    def close(self) -> None:
        """Once what waits has gone. Blocks."""
        self._waiting.put(None)
        self._thread.join()
        self._exporter.shutdown()

    def _send(self) -> None:
        while (data := self._waiting.get()) is not None:
            self._exporter.export(data)
