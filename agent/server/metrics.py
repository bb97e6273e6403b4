"""Counters and gauges for Prometheus, in a registry of their own so that several services fit into one test process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agent.dialogue.response import Response
from agent.dialogue.speculation import work_ms
from agent.server.models import Models

_LATENCY_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0)
_RATES_HZ = (4.5, 5.5, 6.5, 8.5, 10.5, 12.5)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = Gauge("agogic_sessions", "Sessions open now", ["transport"], registry=self.registry)
        self.refused = Counter("agogic_refused_total", "Connections refused", ["reason"], registry=self.registry)
        self.kept = Gauge("agogic_sessions_kept", "Sessions that wait for their client", registry=self.registry)
        self.held = Gauge("agogic_held_bytes", "What all sessions hold in memory, about", registry=self.registry)
        self.resumed = Counter("agogic_resumed_total", "Resumptions by outcome", ["outcome"], registry=self.registry)
        self.ready = Gauge("agogic_ready", "1 while new sessions are taken", registry=self.registry)
        self.worker_leased = Gauge("agogic_worker_leased", "Slots that sessions hold", registry=self.registry)
        self.worker_restarts = Gauge("agogic_worker_restarts", "Worker processes restarted", registry=self.registry)
        self.worker_slots = Gauge("agogic_worker_slots", "Slots of all live workers", registry=self.registry)
        self.worker_busy = Gauge("agogic_worker_busy", "Busiest worker's share of the time", registry=self.registry)
        self.capacity = Gauge("agogic_capacity", "Sessions that all workers can carry", registry=self.registry)
        self._rates = Counter(
            "agogic_rate_decisions_total",
            "Answers by what decided on the rate of each side",
            ["side", "cause"],
            registry=self.registry,
        )
        self._responses = Counter("agogic_responses_total", "Responses by status", ["status"], registry=self.registry)
        self.workers = Gauge("agogic_workers", "Worker processes", ["model", "state"], registry=self.registry)
        self.model_sessions = Gauge("agogic_model_sessions", "Sessions open now", ["model"], registry=self.registry)
        self._model_responses = Counter(
            "agogic_model_responses_total", "Responses by model and status", ["model", "status"], registry=self.registry
        )
        self._model_first_audio = Histogram(
            "agogic_model_first_audio_seconds",
            "From the decision to answer to the first sound, by model",
            ["model"],
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self._underruns = Counter("agogic_underruns_total", "Times a listener's buffer ran dry", registry=self.registry)
        self._first_audio = Histogram(
            "agogic_first_audio_seconds",
            "From the decision to answer to the first sound",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self._saved = Histogram(
            "agogic_speculation_saved_seconds",
            "Of the time to the first sound, what had passed when an answer that was begun before was asked for",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self._wasted = Counter(
            "agogic_speculation_wasted_seconds_total",
            "Work on answers that were begun and not given",
            registry=self.registry,
        )
        self._work = Counter(
            "agogic_answer_work_seconds_total", "Work on answers that were given", registry=self.registry
        )
        self._output_hz = Histogram(
            "agogic_output_frame_rate_hz",
            "Speech token rate that was realised",
            buckets=_RATES_HZ,
            registry=self.registry,
        )

    def gauge(self, served: Models) -> None:
        """What is so now of models and workers."""
        self.worker_restarts.set(served.restarts)
        self.worker_slots.set(served.slots)
        self.worker_leased.set(served.leased)
        self.worker_busy.set(served.busy)
        self.capacity.set(served.capacity)
        self.workers.clear()
        for worker in served.workers():
            self.workers.labels(worker.model, worker.state).inc()

    def response(self, response: Response, model: str) -> None:
        """A response was closed."""
        self._responses.labels(response.status).inc()
        self._model_responses.labels(model, response.status).inc()
        for side, rate in (("input", response.plan.input_rate), ("output", response.plan.output_rate)):
            self._rates.labels(side, rate.cause).inc()
        self._underruns.inc(response.playout.underruns)
        clocked = response.clocked
        if clocked.first_audio_s is not None:
            self._first_audio.observe(clocked.first_audio_s - clocked.decided_s)
            self._model_first_audio.labels(model).observe(clocked.first_audio_s - clocked.decided_s)
        if response.speculation.saved_ms:
            self._saved.observe(response.speculation.saved_ms / 1000)
        self._wasted.inc(response.speculation.wasted_ms / 1000)
        if response.done is not None:
            self._work.inc(work_ms(response.done.stats) / 1000)
        if response.done is not None and response.done.stats.realised_output_hz:
            self._output_hz.observe(response.done.stats.realised_output_hz)

    def render(self) -> bytes:
        return generate_latest(self.registry)
