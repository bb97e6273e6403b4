"""A trace of every turn, metrics by OTLP, and a service that does not notice whether anybody receives them."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agent import wire
from agent.clock import SystemClock
from agent.config import ConfigError, TelemetryConfig, parse_config
from agent.dialogue.effects import Effect, ToWorker
from agent.telemetry import start
from agent.telemetry.moments import Span, TurnMoments, TurnTrace
from tests.support.fake_worker import REPLY, TRANSCRIPT
from tests.support.otlp import Collector, attributes
from tests.support.service_process import ServiceProcess, fake_worker_command
from tests.support.session_driver import WORD_SAMPLES, SessionDriver
from tests.support.speech import order
from tests.support.ws_client import WsClient

ORDER_OF_SPANS = ["hearing", "likely end", "prefill", "think", "talk", "flow", "out"]
QUICKLY = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
KEY = "a-key-for-the-collector"


# --- the spans of a turn, on a clock that stands still ---


class Traced(SessionDriver):
    """`traces` of the turns whose answer was closed; `took_s`: when each kind of message to the worker passed first."""

    def __init__(self, **options: Any) -> None:
        self.traces: list[TurnTrace] = []
        self.moments = TurnMoments("sess_1", self.traces.append)
        self.took_s: dict[type, float] = {}
        super().__init__(**options)

    def do(self, effects: list[Effect]) -> None:  # type: ignore[override]
        for effect in effects:
            if isinstance(effect, ToWorker):
                self.took_s.setdefault(type(effect.message), self.clock.now_s())
                self.moments.told(effect.message, self.clock.now_s())
        super().do(effects)
        for response in self.session.take_finished():
            # The session of a recorded conversation counts from its own beginning.
            for name, at_s in vars(response.clocked).items():
                setattr(response.clocked, name, at_s - 1000 if at_s is not None else None)
            self.moments.finished(response, self.clock.now_s())

    def worker(self, *messages: wire.Message) -> None:
        for message in messages:
            self.moments.came(message, self.clock.now_s())  # type: ignore[arg-type]
            super().worker(message)

    def asked_for(self) -> wire.Respond:
        return self.asked(wire.Respond)[-1]

    def says(self, *messages: wire.Message, after_s: float) -> None:
        self.advance(after_s)
        self.worker(*messages)


def sound(ask: wire.Respond) -> wire.AudioOut:
    tokens, words = [wire.TokenSpan(7, 5)], [wire.WordSpan("noon", 0, WORD_SAMPLES)]
    return wire.AudioOut(ask.session, ask.generation, 0, bytes(2 * WORD_SAMPLES), tokens, words)


def done(ask: wire.Respond, **stats: float) -> wire.ResponseDone:
    return wire.ResponseDone(ask.session, ask.generation, "completed", "noon", wire.ResponseStats(**stats))  # type: ignore[arg-type]


def spans(trace: TurnTrace) -> dict[str, Span]:
    return {part.name: part for part in trace.parts}


def check_shape(trace: TurnTrace) -> None:
    starts = [part.start_s for part in trace.parts]
    assert starts == sorted(starts) and starts[0] >= trace.whole.start_s
    assert [part.name for part in trace.parts] == [n for n in ORDER_OF_SPANS if n in spans(trace)]
    for part in (*trace.parts, trace.whole):
        assert trace.whole.start_s <= part.start_s <= part.end_s <= trace.whole.end_s
        assert part.first_s is None or part.start_s <= part.first_s <= part.end_s


def test_a_spoken_turn_has_every_span_where_it_was() -> None:
    driver = Traced(reply=None)
    driver.speak(1.0)
    driver.hush(0.4)
    ask, asked_s = driver.asked_for(), driver.took_s[wire.Respond]
    likely_s = driver.took_s[wire.LikelyEnd]
    assert asked_s == likely_s, "begun before the end"
    driver.hush(0.6)
    ended_s = driver.took_s[wire.EndUtterance]
    driver.says(wire.TextDelta(ask.session, ask.generation, "noon"), after_s=0.1)
    text_s = driver.clock.now_s()
    driver.says(sound(ask), after_s=0.3)
    sound_s = driver.clock.now_s()
    token_ms = (text_s - asked_s) * 1000 + 200
    stats = {"first_token_ms": token_ms, "encode_ms": 1.0, "prefill_ms": 2.5, "thinker_ms": 3.0, "talker_ms": 4.0}
    driver.says(done(ask, **stats, flow_ms=5.0, vocoder_ms=0.5), after_s=0.1)
    made_s = driver.clock.now_s()
    driver.advance(3.0)
    (trace,) = driver.traces
    check_shape(trace)
    found = spans(trace)
    assert list(found) == ORDER_OF_SPANS
    assert (found["hearing"].start_s, found["hearing"].end_s) == (driver.took_s[wire.StartUtterance], likely_s)
    assert (found["likely end"].start_s, found["likely end"].end_s) == (likely_s, ended_s)
    assert (found["prefill"].start_s, found["prefill"].end_s) == (asked_s, text_s)
    assert (found["think"].start_s, found["think"].end_s) == (text_s, made_s)
    assert (found["talk"].start_s, found["talk"].end_s) == (text_s, made_s)
    assert found["talk"].first_s == found["flow"].start_s == pytest.approx(text_s + 0.2)
    assert (found["flow"].first_s, found["flow"].end_s) == (sound_s, made_s)
    assert (found["out"].start_s, found["out"].first_s) == (sound_s, sound_s)
    assert found["out"].end_s >= made_s, "until all of it has left"
    works = {name: part.attributes.get("agogic.work_ms") for name, part in found.items()}
    assert works == {"prefill": 3.5, "think": 3.0, "talk": 4.0, "flow": 5.5} | dict.fromkeys(
        ("hearing", "likely end", "out")
    )
    assert trace.whole.first_s == pytest.approx(ended_s) and not trace.failed
    assert trace.whole.attributes["session.id"] == "sess_1" and trace.whole.attributes["agogic.status"] == "completed"


def test_who_goes_on_speaking_is_heard_until_the_likely_end_that_was_one() -> None:
    driver = Traced(reply=None)
    driver.speak(1.0)
    driver.hush(0.4)
    first_s = driver.took_s.pop(wire.LikelyEnd)
    driver.speak(1.0)
    driver.hush(1.0)
    ask = driver.asked_for()
    driver.worker(wire.TextDelta(ask.session, ask.generation, "noon"), sound(ask), done(ask))
    driver.advance(2.0)
    (trace,) = driver.traces
    check_shape(trace)
    found = spans(trace)
    assert found["hearing"].end_s == driver.took_s[wire.LikelyEnd] > first_s + 1.0
    assert found["prefill"].start_s == found["likely end"].start_s, "of the answer that was given"


def test_an_answer_that_is_broken_off_ends_its_spans() -> None:
    driver = Traced(reply=None)
    driver.speak(1.0)
    driver.hush(1.0)
    ask = driver.asked_for()
    driver.says(wire.TextDelta(ask.session, ask.generation, "noon"), after_s=0.1)
    driver.says(sound(ask), after_s=0.1)
    driver.advance(0.2)
    driver.send(type="response.cancel")
    (trace,) = driver.traces
    check_shape(trace)
    assert trace.whole.attributes["agogic.status"] == "cancelled"
    assert {part.end_s for part in trace.parts[2:] if part.name != "prefill"} == {driver.clock.now_s()}
    driver.speak(1.0)
    driver.hush(1.0)
    driver.worker(done(driver.asked_for()))
    assert len(driver.traces) == 2 and driver.traces[1].whole.start_s > trace.whole.end_s


def test_a_written_answer_to_a_written_question_is_prefill_and_thought() -> None:
    driver = Traced(reply=None)
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    driver.send(type="conversation.item.create", item=item)
    driver.send(type="response.create", response={"output_modalities": ["text"]})
    ask = driver.asked_for()
    driver.says(wire.TextDelta(ask.session, ask.generation, "noon"), after_s=0.1)
    driver.says(done(ask), after_s=0.1)
    (trace,) = driver.traces
    check_shape(trace)
    assert list(spans(trace)) == ["prefill", "think"]


@pytest.mark.parametrize(("on_turn", "kept"), [(print, 16), (None, 0)])
def test_nothing_but_the_newest_moments_is_kept(on_turn: Any, kept: int) -> None:
    moments = TurnMoments("sess_1", on_turn)
    for number in range(1000):
        moments.told(wire.StartUtterance(1, number, 12.5, []), float(number))
        moments.told(wire.Respond(1, number, [], 12.5), float(number))
    assert len(moments._heard) == len(moments._made) == kept


# --- from a real service to a real collector ---


async def speak(client: WsClient) -> None:
    """In one piece: sound that stays away for a while, on a busy machine, would end the turn."""
    pcm = order(24_000, before_s=0.3, after_s=1.0).tobytes()
    await client.send(type="input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
    await client.until("response.done")


def served(folder: Path, endpoint: str, *options: str, log_format: str = "text", **env: str) -> ServiceProcess:
    config = folder / "agogic.toml"
    config.write_text(
        "[playout]\nlead_ms = 10000\n"  # nobody listens
        f'[telemetry]\ntraces = true\nmetrics = true\nendpoint = "{endpoint}"\nlog_format = "{log_format}"\n'
    )
    return ServiceProcess(
        fake_worker_command(*options), config=config, env=QUICKLY | env, log_level="debug", wait_ready=True
    )


async def connected(service: ServiceProcess, http: aiohttp.ClientSession) -> WsClient:
    client = WsClient(await http.ws_connect(f"{service.base_url}/v1/realtime", max_msg_size=0))
    await client.until("session.created")
    return client


async def test_a_collector_gets_one_trace_a_turn_and_the_metrics(tmp_path: Path) -> None:
    async with Collector() as collector, aiohttp.ClientSession() as http:
        headers = f"authorization=Bearer%20{KEY}"
        service = served(tmp_path, collector.url, log_format="json", OTEL_EXPORTER_OTLP_HEADERS=headers)
        try:
            client = await connected(service, http)
            await client.ask()  # which finds it a worker
            await speak(client)
            await speak(client)
            traces = await collector.until_traces(3)
            ended = [event["response"] for event in client.events if event["type"] == "response.done"]
            await collector.until(lambda: _counted(collector) == 3)
            shown = {family.name: family for family in text_string_to_metric_families(service.get("/metrics")[1])}
            await client.socket.close()
        finally:
            await asyncio.to_thread(service.stop)
        assert len(collector.traces()) == 3
        for trace, response in zip(traces, ended, strict=True):
            _check_trace(trace, response, client.events[0]["session"]["id"])
        assert [set(trace) for trace in traces] == [{"turn", "prefill", "think"}, *[{*ORDER_OF_SPANS, "turn"}] * 2]
        assert attributes(traces[1]["think"][0])["agogic.work_ms"] == 3.0, "as the worker counted it"
        assert all(resource["service.name"] == "agogic" for resource in collector.resources)
        assert all(sent["authorization"] == f"Bearer {KEY}" for sent in collector.headers), "OTEL_* variables hold"
        _check_metrics(collector, shown)
        _check_log(service.log.read_text(), client)


def _counted(collector: Collector) -> float:
    metric = collector.metrics.get("agogic_responses")
    return sum(point.as_double for point in metric.sum.data_points) if metric is not None else 0


def _check_trace(trace: dict[str, list[Any]], response: dict[str, Any], session_id: str) -> None:
    (root,) = trace["turn"]
    parts = [span for name, found in trace.items() for span in found if name != "turn"]
    assert not root.parent_span_id and all(part.parent_span_id == root.span_id for part in parts)
    assert len(parts) == len(trace) - 1, "each span once"
    parts.sort(key=lambda part: ORDER_OF_SPANS.index(part.name))
    starts = [part.start_time_unix_nano for part in parts]
    assert starts == sorted(starts)
    for part in parts:
        assert root.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
        assert part.end_time_unix_nano <= root.end_time_unix_nano
        for event in part.events:
            assert part.start_time_unix_nano <= event.time_unix_nano <= part.end_time_unix_nano
    known = attributes(root)
    assert (known["session.id"], known["agogic.response_id"]) == (session_id, response["id"])
    (decided,) = (event.time_unix_nano for event in root.events if event.name == "decided")
    total_ms = (root.end_time_unix_nano - decided) / 1e6
    assert total_ms == pytest.approx(response["x_agogic"]["timing"]["total_ms"], abs=5), "one clock"
    assert abs(root.end_time_unix_nano / 1e9 - time.time()) < 120
    words = {word.strip(".") for word in f"{REPLY} {TRANSCRIPT}".split() if len(word) > 4}
    assert not [word for span in (root, *parts) for word in words if word in str(span)], "nothing of what was said"


def _check_metrics(collector: Collector, shown: dict[str, Any]) -> None:
    began = {name for name in shown if name.endswith("_created")}  # OTLP has this with each number
    assert set(collector.metrics) == {name for name, family in shown.items() if family.samples} - began
    for name, family in shown.items():
        metric = collector.metrics.get(name)
        if metric is None:
            continue
        kind = {"counter": "sum", "histogram": "histogram"}.get(family.type, "gauge")
        assert metric.WhichOneof("data") == kind, name
    responses = collector.metrics["agogic_responses"].sum
    assert responses.is_monotonic and attributes(responses.data_points[0]) == {"status": "completed"}
    first = collector.metrics["agogic_first_audio_seconds"].histogram.data_points[0]
    assert first.count == sum(first.bucket_counts) == 2 and len(first.bucket_counts) == len(first.explicit_bounds) + 1
    assert 0 < first.start_time_unix_nano < first.time_unix_nano


def _check_log(text: str, client: WsClient) -> None:
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "process", "message"} <= set(line) for line in lines)
    session = client.events[0]["session"]["id"]
    about = [line for line in lines if line.get("session") == session]
    assert {"agogic.service", "agogic.audit"} <= {line["logger"] for line in about}
    assert KEY not in text
    assert not re.search(r"latte|four fifty", text), "what was said is in no log, however talkative it is"


@pytest.mark.parametrize("collector_is", ["down", "silent"])
async def test_a_service_does_not_notice_a_collector_that_does_not_answer(tmp_path: Path, collector_is: str) -> None:
    async with Collector(answers=False) as silent, aiohttp.ClientSession() as http:
        endpoint = silent.url if collector_is == "silent" else "http://127.0.0.1:1"
        queue = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
        service = served(tmp_path, endpoint, **queue)
        try:
            client = await connected(service, http)
            await client.ask()
            if collector_is == "silent":
                await silent.until(lambda: silent.requests >= 2)
            for _ in range(20):
                assert (await client.ask())["status"] == "completed"
            lagged = text_string_to_metric_families(service.get("/metrics")[1])
            assert not [
                sample.labels["where"]
                for family in lagged
                for sample in family.samples
                if family.name == "agogic_loop_stalls" and "opentelemetry" in sample.labels.get("where", "")
            ]
            await client.socket.close()
        finally:
            begun_s = time.monotonic()
            status = await asyncio.to_thread(service.stop)
        assert status == 0 and time.monotonic() - begun_s < 10, "nor at its end"


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def test_what_no_collector_takes_is_dropped_at_once(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "32")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    clock = SystemClock()
    async with Collector(answers=False) as collector:
        config = TelemetryConfig(traces=True, metrics=True, endpoint=collector.url)
        telemetry = start(config, CollectorRegistry(), clock.now_s)
        assert telemetry is not None
        now_s = clock.now_s()
        turn = TurnTrace(Span("turn", now_s, now_s), (Span("think", now_s, now_s),) * 6, failed=False)
        telemetry.turn(turn)
        await collector.until(lambda: collector.requests >= 1)
        begun_s, cpu_s = time.monotonic(), time.thread_time()
        for _ in range(500):
            telemetry.turn(turn)
        each_ms = (time.thread_time() - cpu_s) * 1000 / 500
        assert time.monotonic() - begun_s < 8, "a single wait for this collector would be 10 s"
        assert each_ms < 5
        begun_s = time.monotonic()
        await telemetry.close()
        assert time.monotonic() - begun_s < 8


def test_without_the_extra_the_configuration_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "agent.telemetry.otlp", None)
    with pytest.raises(ConfigError, match=r"agogic\[telemetry\]"):
        start(TelemetryConfig(traces=True), CollectorRegistry(), time.monotonic)
    assert start(TelemetryConfig(log_format="json"), CollectorRegistry(), time.monotonic) is None


def test_an_endpoint_is_an_address() -> None:
    with pytest.raises(ConfigError, match=r"telemetry.*http://127.0.0.1:4318"):
        parse_config('[telemetry]\nendpoint = "collector:4318"')
