"""A collector of OTLP over HTTP on loopback, as far as tests ask: it decodes what comes and keeps it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TIMEOUT_S = 60.0


class Collector:
    """`spans` in the order in which they came, `metrics` by name as they came last; `answers` False: it takes requests
    and never says a word."""

    def __init__(self, *, answers: bool = True) -> None:
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        self.resources: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.requests = 0
        self.url = ""
        self._answers = answers
        self._changed = asyncio.Event()
        self._never = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Collector:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take_traces)
        app.router.add_post("/v1/metrics", self._take_metrics)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._runner is not None
        self._never.set()
        await self._runner.cleanup()

    def traces(self) -> list[dict[str, list[Any]]]:
        """Spans by name, for each trace that has its root, in the order in which the traces begin."""
        by_trace: dict[bytes, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for span in self.spans:
            by_trace[span.trace_id][span.name].append(span)
        whole = [spans for spans in by_trace.values() if "turn" in spans]
        return sorted(whole, key=lambda spans: spans["turn"][0].start_time_unix_nano)

    async def until_traces(self, count: int) -> list[dict[str, list[Any]]]:
        await self.until(lambda: len(self.traces()) >= count)
        return self.traces()

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def _take_traces(self, request: web.Request) -> web.Response:
        taken = ExportTraceServiceRequest.FromString(await self._body(request))
        for resource in taken.resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self._changed.set()
        return web.Response()

    async def _take_metrics(self, request: web.Request) -> web.Response:
        taken = ExportMetricsServiceRequest.FromString(await self._body(request))
        for resource in taken.resource_metrics:
            for scope in resource.scope_metrics:
                self.metrics.update({metric.name: metric for metric in scope.metrics})
        self._changed.set()
        return web.Response()

    async def _body(self, request: web.Request) -> bytes:
        assert request.content_type == "application/x-protobuf"
        self.requests += 1
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        body = await request.read()
        self._changed.set()
        if not self._answers:
            await self._never.wait()
        return body


def attributes(of: Any) -> dict[str, Any]:
    """Of a span, an event or a data point."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}
