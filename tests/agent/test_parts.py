"""The small parts: configuration, audio formats, turn detection, playout, rates, wire link."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from agent import audio, wire
from agent.config import ConfigError, ServerConfig, check_exposure, load_config, parse_config
from agent.dialogue.playout import Playout
from agent.server.link import LinkError, SlotRefused, WorkerLink
from agent.turn import silero
from agent.turn.detector import EndNear, LikelyStopped, Resumed, SpeechStarted, SpeechStopped, TurnDetector, TurnTiming
from agent.turn.silero import WINDOW_SAMPLES, SileroVad
from tests.support.fake_worker import Behaviour, FakeWorker
from tests.support.speech import order

ROOT = Path(__file__).parents[2]


# --- configuration ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[http]\nprt = 1", "unknown key `http.prt`; allowed here: host, port,"),
        ("colour = 1", "unknown key `colour`; allowed here: http, model,"),
        ("[http]\nport = 70000", "`http.port` = 70000: allowed is a whole number from 0 to 65535"),
        ("[http]\nport = 'x'", "`http.port` = 'x': allowed is a whole number from 0 to 65535"),
        ("[session]\noutput_frame_rate = 20", "`session.output_frame_rate` = 20"),
        ("[session]\noutput_frame_rate = 'fast'", "`session.output_frame_rate` = 'fast'"),
        ("[[", "not valid TOML"),
        ("http = 3", "`http` = 3"),
    ],
)
def test_bad_configuration_names_key_value_and_choices(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(text, "x.toml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_shipped_configuration_is_the_default() -> None:
    assert load_config(ROOT / "configs" / "embedded.toml") == ServerConfig()


def test_missing_configuration_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Path("/nowhere/agogic.toml"))


@pytest.mark.parametrize(
    ("host", "keys", "allowed"),
    [
        ("127.0.0.1", "", True),
        ("localhost", "", True),
        ("::1", "", True),
        ("0.0.0.0", "", False),
        ("example.org", "", False),
        ("0.0.0.0", "'sk'", True),
    ],
)
def test_exposure_needs_a_key(host: str, keys: str, allowed: bool) -> None:
    config = parse_config(f"[http]\nhost = '{host}'\napi_keys = [{keys}]")
    if allowed:
        check_exposure(config)
    else:
        with pytest.raises(ConfigError, match="AGOGIC_API_KEY"):
            check_exposure(config)


# --- audio ---


def test_mulaw_values() -> None:
    decoded = audio.decode(bytes([0x80, 0x00, 0xFF, 0xEF]), "pcmu")
    assert decoded.tolist() == [32124, -32124, 0, 132]


def test_alaw_values() -> None:
    decoded = audio.decode(bytes([0xD5, 0x55, 0xAA, 0x2A]), "pcma")
    assert decoded.tolist() == [8, -8, 32256, -32256]


@pytest.mark.parametrize("encoding", ["pcmu", "pcma"])
def test_g711_is_its_own_inverse_on_its_levels(encoding: audio.Encoding) -> None:
    levels = audio.decode(bytes(range(256)), encoding)
    assert (audio.decode(audio.encode(levels, encoding), encoding) == levels).all()
    assert len(set(levels.tolist())) >= 255


@pytest.mark.parametrize("encoding", ["pcmu", "pcma"])
def test_g711_error_is_a_small_part_of_the_value(encoding: audio.Encoding) -> None:
    samples = np.arange(-32000, 32000, 37).astype(np.int16)
    error = np.abs(audio.decode(audio.encode(samples, encoding), encoding).astype(int) - samples)
    assert (error <= np.maximum(16, np.abs(samples.astype(int)) // 28)).all()


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(audio.AudioFormatError, match="whole number"):
        audio.decode(b"abc", "pcm16")


@given(
    cuts=st.lists(st.integers(0, 900), max_size=12),
    rates=st.sampled_from([(24_000, 16_000), (48_000, 16_000), (24_000, 8_000)]),
)
def test_resampling_in_any_chunks_is_the_same(cuts: list[int], rates: tuple[int, int]) -> None:
    samples = (8000 * np.sin(np.arange(4800) * 0.05)).astype(np.int16)
    whole = audio.Resampler(*rates)
    expected = np.concatenate([whole.push(samples), whole.flush()])
    pieces = audio.Resampler(*rates)
    parts = [pieces.push(part) for part in np.split(samples, np.minimum(np.cumsum(cuts), samples.size).astype(int))]
    assert np.array_equal(np.concatenate([*parts, pieces.flush()]), expected)
    assert expected.size == samples.size * rates[1] // rates[0]


# --- turn detection ---

TIMING = TurnTiming(threshold=0.5, prefix_padding_samples=4800, silence_samples=8000)


def run(probabilities: list[float]) -> list[object]:
    detector = TurnDetector(TIMING)
    return [event for probability in probabilities if (event := detector.push(probability)) is not None]


def test_a_turn_has_padding_before_and_silence_after() -> None:
    events = run([0.0] * 20 + [0.9] * 10 + [0.0] * 20)
    start, likely, near, stop = events
    assert start == SpeechStarted(20 * WINDOW_SAMPLES - 4800)
    assert likely == LikelyStopped(30 * WINDOW_SAMPLES) and near == EndNear()
    assert stop == SpeechStopped(30 * WINDOW_SAMPLES, 46 * WINDOW_SAMPLES)


def test_a_click_is_no_speech() -> None:
    assert run([0.0] * 5 + [0.99] + [0.0] * 30) == []


def test_a_pause_is_no_end() -> None:
    kinds = [type(event) for event in run([0.9] * 10 + [0.0] * 10 + [0.9] * 5 + [0.0] * 30)]
    assert kinds == [SpeechStarted, LikelyStopped, EndNear, Resumed, LikelyStopped, EndNear, SpeechStopped]


def test_padding_never_reaches_into_the_turn_before() -> None:
    detector = TurnDetector(TIMING)
    events = [detector.push(p) for p in [0.9] * 5 + [0.0] * 16 + [0.9] * 5]
    starts = [event for event in events if isinstance(event, SpeechStarted)]
    stop = next(event for event in events if isinstance(event, SpeechStopped))
    assert starts[0].start_sample == 0
    assert starts[1].start_sample >= stop.end_sample


@given(st.lists(st.floats(0, 1), max_size=200))
def test_starts_and_stops_alternate(probabilities: list[float]) -> None:
    turns = [type(e) for e in run(probabilities) if isinstance(e, (SpeechStarted, SpeechStopped))]
    assert all(turns[i] is (SpeechStarted, SpeechStopped)[i % 2] for i in range(len(turns)))


def test_silero_hears_a_human_and_not_the_silence_around() -> None:
    vad = SileroVad()
    samples = order(16_000, before_s=1.0, after_s=1.0)
    windows = [samples[i : i + WINDOW_SAMPLES] for i in range(0, len(samples) - WINDOW_SAMPLES, WINDOW_SAMPLES)]
    probabilities = [vad.probability(window) for window in windows]
    assert max(probabilities[:28]) < 0.3
    assert max(probabilities[-20:]) < 0.3
    assert np.mean(np.array(probabilities[31:-31]) > 0.5) > 0.2


def test_silero_is_the_network_that_its_package_ships() -> None:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).with_name("data") / "silero_vad_16k_op15.onnx"
    original = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    samples = np.concatenate([order(16_000, before_s=0.5, after_s=0.5), np.full(4 * WINDOW_SAMPLES, -32768, np.int16)])
    context, state = np.zeros(64, np.float32), np.zeros((2, 1, 128), np.float32)
    vad = SileroVad()
    for _ in range(2):
        for start in range(0, len(samples) - WINDOW_SAMPLES, WINDOW_SAMPLES):
            window = samples[start : start + WINDOW_SAMPLES]
            sound = np.concatenate([context, window.astype(np.float32) / 32768])[None]
            expected, state = original.run(None, {"input": sound, "state": state, "sr": np.array(16_000)})
            context = sound[0, -64:]
            assert vad.probability(window) == pytest.approx(float(expected[0, 0]), abs=1e-4)
        vad.reset()
        context, state = np.zeros(64, np.float32), np.zeros((2, 1, 128), np.float32)


def test_a_file_that_is_no_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"no weights")
    monkeypatch.setattr(silero, "_WEIGHTS", broken)
    silero._network.cache_clear()
    with pytest.raises(silero.VadError, match=r"weights\.safetensors cannot be read"):
        SileroVad()
    silero._network.cache_clear()


# --- playout ---


def chunk(first: int, count: int, words: list[wire.WordSpan] | None = None, frames: int = 0) -> wire.AudioOut:
    tokens = [wire.TokenSpan(1, frames)] if frames else []
    return wire.AudioOut(1, 1, first, np.arange(first, first + count).astype("<i2").tobytes(), tokens, words or [])


@given(pushes=st.lists(st.integers(0, 9000), max_size=8), steps=st.lists(st.floats(0, 0.4), max_size=30))
def test_paced_sound_is_complete_in_order_and_never_far_ahead(pushes: list[int], steps: list[float]) -> None:
    playout = Playout(24_000, lead_ms=300, slice_ms=100)
    total, now_s, sent = 0, 0.0, []
    for count in pushes:
        playout.push(chunk(total, count))
        total += count
    playout.end()
    for step in [*steps, *[0.1] * 40]:
        now_s += step
        sent += [piece.samples for piece in playout.due(now_s)]
        ahead = playout.released_samples - playout.heard_samples(now_s)
        assert ahead <= (0.3 + 0.1) * 24_000 + 1
    assert playout.drained
    assert np.array_equal(np.concatenate([np.zeros(0), *sent]), np.arange(total).astype(np.int16))


def test_playhead_stalls_when_it_runs_dry() -> None:
    playout = Playout(24_000, lead_ms=300, slice_ms=100)
    playout.push(chunk(0, 2400))
    playout.due(0.0)
    assert playout.heard_samples(5.0) == 2400
    playout.due(5.0)
    playout.push(chunk(2400, 2400))
    playout.due(5.0)
    assert playout.heard_samples(5.05) == pytest.approx(3600, abs=2)
    assert playout.underruns == 1


def test_pulled_sound_is_what_is_heard() -> None:
    playout = Playout(24_000, lead_ms=300, slice_ms=100)
    playout.push(chunk(0, 1000))
    playout.end()
    sizes = []
    while (piece := playout.pull(480, 0.0)) is not None:
        sizes.append(piece.samples.size)
    assert sizes == [480, 480, 40]
    assert playout.heard_samples(0.0) == 1000


def test_late_words_are_left_over() -> None:
    playout = Playout(24_000, lead_ms=300, slice_ms=100)
    playout.push(chunk(0, 480, [wire.WordSpan("a", 0, 400), wire.WordSpan("b", 480, 500)], frames=1))
    playout.end()
    (piece,) = playout.due(0.0)
    assert [word.text for word in piece.words] == ["a"]
    words, tokens = playout.leftovers()
    assert [word.text for word in words] == ["b"]
    assert len(piece.tokens) + len(tokens) == 1


# --- the link ---


class Holder:
    def __init__(self) -> None:
        self.messages: list[wire.FromWorker] = []
        self.lost = asyncio.Event()
        self.got = asyncio.Event()
        self.idle_since_s: float | None = None
        self.coarsest_hz = 4.0
        self.gave_way = False
        self.at_rest = True
        self.moved = False

    def give_way(self) -> None:
        self.gave_way = True

    def move(self) -> None:
        self.moved = True

    def worker_message(self, message: wire.FromWorker) -> None:
        self.messages.append(message)
        self.got.set()

    def worker_lost(self) -> None:
        self.lost.set()


async def test_link_leases_slots_refuses_and_tells_of_death(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    one, two = Holder(), Holder()
    async with FakeWorker(path, Behaviour(slots=1)):
        link = await WorkerLink.connect(path, 5.0)
        running = asyncio.create_task(link.run())
        lease = await link.open(1, one)
        with pytest.raises(SlotRefused):
            await link.open(2, two)
        lease.send(wire.Respond(1, 1, [], 12.5, speech=False))
        async with asyncio.timeout(5):
            await one.got.wait()
    async with asyncio.timeout(5):
        await one.lost.wait()
        await running
    assert not two.lost.is_set() and not link.alive
    with pytest.raises(LinkError):
        await link.open(3, two)


@pytest.mark.parametrize(
    "first",
    [wire.encode(wire.SessionOpened(1)), b"\x04\0\0\0junk", b"", wire.encode(wire.Ready(99, "m", 1, 24_000, 12.5))],
)
async def test_link_refuses_a_stranger(tmp_path: Path, first: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        writer.close()

    path = tmp_path / "w.sock"
    server = await asyncio.start_unix_server(serve, str(path))
    with pytest.raises(LinkError):
        await WorkerLink.connect(path, 2.0)
    server.close()


async def test_link_survives_garbage_in_mid_stream_by_dying_cleanly(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.encode(wire.Ready(wire.WIRE_VERSION, "m", 1, 24_000, 12.5)))
        while (frame := await wire.read_frame(reader)) is not None:
            if isinstance(wire.to_worker_decoder.decode(frame), wire.OpenSession):
                writer.write(wire.encode(wire.SessionOpened(1)) + b"\xff\xff\xff\xff")

    path = tmp_path / "w.sock"
    server = await asyncio.start_unix_server(serve, str(path))
    link = await WorkerLink.connect(path, 2.0)
    holder = Holder()
    running = asyncio.create_task(link.run())
    await link.open(1, holder)
    async with asyncio.timeout(5):
        await running
    assert holder.lost.is_set()
    server.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_is_sent_to_a_worker_that_died_a_moment_ago_is_dropped(
    run: Callable[[Coroutine[None, None, None]], None], tmp_path: Path
) -> None:
    async def die_while_spoken_to() -> None:
        path = tmp_path / "w.sock"
        async with FakeWorker(path, Behaviour(slots=1)):
            link = await WorkerLink.connect(path, 5.0)  # which nobody reads, so that it does not learn of the end
        for _ in range(50):
            link.send(wire.Cancel(1, 1))
            await asyncio.sleep(0.001)
        assert link.alive

    run(die_while_spoken_to())


async def test_a_lease_nobody_waits_for_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    async with FakeWorker(path, Behaviour(slots=1)) as worker:
        link = await WorkerLink.connect(path, 5.0)
        running = asyncio.create_task(link.run())
        opening = asyncio.create_task(link.open(1, Holder()))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        lease = await link.open(2, Holder())
        assert lease.session == 2
        assert [type(m).__name__ for m in worker.received] == ["OpenSession", "CloseSession", "OpenSession"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
