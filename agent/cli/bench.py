"""`agogic bench`: what the README claims, measured."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.measuring import (
    CHECKOUT,
    Json,
    Model,
    Threads,
    fail,
    measuring,
    print_report,
    progress,
    quiet,
    ticking,
)
from agent.cli.simulated import CardName, Released, fleet

app = typer.Typer(no_args_is_help=True, help="Measure speed and exactness.")


class CallTransport(StrEnum):
    """Transports whose network can be made bad."""

    SIP = "sip"


Clips = Annotated[Path, typer.Option(help="folder of recorded questions")]


@app.command()
def turn(
    clips: Clips = CHECKOUT / "tests" / "speech",
    input_rate: Annotated[float, typer.Option(min=4.0, max=12.5)] = 12.5,
    output_rate: Annotated[float, typer.Option(min=4.0, max=12.5)] = 12.5,
    repeat: Annotated[int, typer.Option(min=1, help="turns per clip")] = 2,
    realtime: Annotated[bool, typer.Option(help="feed the questions at the speed they were spoken")] = False,
    low_latency: Annotated[bool, typer.Option("--low-latency", help="first sound after a single speech token")] = False,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """How soon after a question its answer is heard, and what a turn costs."""
    with measuring("bench", threads):
        from benchmarks.dialogue import turn as benchmark
        from worker.loading import load_model
        from worker.turn import TurnSettings

        files = _recordings(clips)
        settings = TurnSettings(input_rate, output_rate, realtime=realtime)
        loaded = load_model(model, latency="low" if low_latency else "usual")
        report = benchmark.run(loaded, files, settings, repeat, progress(json))
        print_report({**report, "threads": threads}, json)


@app.command()
def callers(
    clips: Clips = CHECKOUT / "tests" / "speech",
    callers: Annotated[int, typer.Option(min=1, help="callers at once")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="turns of each")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="conversations held")] = 2,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """A worker with several callers: first sounds, stutters, how busy it is, and what its networks cost there."""
    with measuring("bench", threads):
        from benchmarks.dialogue import callers as benchmark
        from worker.audio_files import read_question
        from worker.loading import load_model

        questions = [read_question(path) for path in _recordings(clips)]
        shown = progress(json, "rounds") or quiet
        report = benchmark.run(load_model(model, callers), questions, callers, turns, rounds, shown)
        print_report({**report, "threads": threads}, json)


@app.command()
def transport(
    clips: Clips = CHECKOUT / "tests" / "speech",
    calls: Annotated[int, typer.Option(min=1, help="calls at once")] = 20,
    seconds: Annotated[float, typer.Option(min=1.0, help="how long each transport is measured")] = 20.0,
    json: Json = False,
) -> None:
    """What a telephone call costs the service, by transport, with a model that costs nothing."""
    from benchmarks.attacks.server import ServerError
    from benchmarks.telephony import transport as benchmark
    from benchmarks.telephony.speech import question

    try:
        shown = progress(json, "transports") or quiet
        report = benchmark.run(question(_recordings(clips)[0]), calls, seconds, shown)
    except ServerError as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def bargein(
    clips: Annotated[Path, typer.Option(help="folder of recorded orders that interrupt")] = CHECKOUT
    / "tests"
    / "speech",
    rounds: Annotated[int, typer.Option(min=1, help="interruptions")] = 20,
    model: Model = "embedded",
    json: Json = False,
) -> None:
    """From a caller's first sample in Chromium to the last that he hears of the agent, over WebRTC."""
    from benchmarks.attacks.server import ServerError
    from benchmarks.dialogue import barge_in_chromium as benchmark
    from benchmarks.dialogue.barge_in import spoken
    from worker.audio_files import read_question

    voices = [benchmark.Voice(spoken(read_question(path))) for path in _recordings(clips)]
    try:
        report = benchmark.run(model, voices, rounds, progress(json, "interruptions"))
    except (ServerError, benchmark.BrowserError) as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def voice_to_voice(
    clips: Annotated[Path, typer.Option(help="folder of recorded orders")] = CHECKOUT / "tests" / "speech",
    orders: Annotated[int, typer.Option(min=1, help="held-out ones at most")] = 50,
    beside: Annotated[
        bool, typer.Option("--beside", help="also with fixed silence, which takes twice as long")
    ] = False,
    model: Model = "embedded",
    json: Json = False,
) -> None:
    """From the last sample of an order to the first of its answer: a running service, in real time, over WebSocket."""
    from benchmarks.attacks.server import ServerError
    from benchmarks.dialogue import voice_to_voice as benchmark
    from training.features import held_out

    chosen = [path for path in _recordings(clips) if held_out(path.name)][:orders]
    if not chosen:
        fail("bench", ValueError(f"{clips} holds no held-out recordings; give the folder of the orders"))
    try:
        report = benchmark.run(chosen, model, beside=beside, progress=progress(json, "orders"))
    except ServerError as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def network(
    transport: Annotated[CallTransport, typer.Option(help="how the calls come")] = CallTransport.SIP,
    codec: Annotated[str, typer.Option(help="G722, opus, PCMU or PCMA")] = "PCMU",
    loss: Annotated[float, typer.Option(min=0.0, max=0.9, help="share of the packets that never arrive")] = 0.05,
    jitter_ms: Annotated[float, typer.Option(min=0.0, max=500.0, help="packets are late by up to this")] = 30.0,
    clips: Clips = CHECKOUT / "tests" / "speech",
    labels: Annotated[Path, typer.Option(help="their labels.json")] = CHECKOUT / "tests" / "speech" / "labels.json",
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Recorded orders over a bad network: what arrives or is concealed, and what is understood."""
    with measuring("bench", threads):
        from benchmarks.dialogue.barista import LabelsError, read_clips
        from benchmarks.telephony import network as benchmark
        from worker.loading import load_model

        name = next((known for known in benchmark.CODECS if known.lower() == codec.lower()), None)
        if name is None:
            fail("bench", ValueError(f"codec {codec!r} is not served; there are {', '.join(benchmark.CODECS)}"))
        try:
            chosen = read_clips(clips, labels, False)
        except LabelsError as error:
            fail("bench", error)
        loaded = load_model(model)
        report = benchmark.run(loaded, chosen, name, loss, jitter_ms, progress(json, "recordings"))
        print_report({"transport": transport.value, **report}, json)


@app.command()
def dial(
    clips: Clips = CHECKOUT / "tests" / "speech",
    labels: Annotated[Path, typer.Option(help="what they say")] = CHECKOUT / "tests" / "speech" / "labels.json",
    first: Annotated[int, typer.Option(min=1, help="callers to begin with")] = 12,
    most: Annotated[int, typer.Option(min=1, help="callers to end with at the latest")] = 96,
    turns: Annotated[int, typer.Option(min=1, help="orders of each caller")] = 4,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """How many callers a worker carries without a gap at 12.5 Hz, and where load may lower the rate."""
    with measuring("bench", threads):
        from benchmarks.dialogue import barista
        from benchmarks.dialogue import dial as benchmark
        from worker.audio_files import read_question
        from worker.loading import load_model

        try:
            found = barista.read_clips(clips, labels, only_held_out=False)
        except barista.LabelsError as error:
            fail("bench", error)
        orders = [benchmark.Spoken(read_question(clip.path), clip.slots) for clip in found[:40]]
        report = benchmark.run(
            load_model(model, most), orders, first, most, turns, lambda text: print(text, file=sys.stderr)
        )
        print_report({**report, "threads": threads}, json)


@app.command()
def simulate(
    size: Annotated[Released, typer.Option(help="released size")] = Released.SEVEN_B,
    card: Annotated[CardName, typer.Option(help="on which it runs")] = CardName.H200,
    callers: Annotated[int, typer.Option(min=1, help="who are spoken to all the time")] = 64,
    output_rate: Annotated[float, typer.Option(min=4.0, max=12.5)] = 6.25,
    seconds: Annotated[float, typer.Option(min=5.0, help="of simulated time")] = 60.0,
    plot: Annotated[Path | None, typer.Option(help="SVG file for capacity curves of all cards; takes minutes")] = None,
    json: Json = False,
) -> None:
    """The engine with hundreds of callers on a card that is only counted. Measures nothing."""
    from benchmarks.load import simulate as benchmark

    if plot is not None:
        plot.write_text(benchmark.curves(size.value, progress(json, "points") or quiet))
    print_report(benchmark.run(size.value, card.value, callers, output_rate, seconds), json)


app.command()(fleet)


@app.command()
def start(model: Model = "embedded", json: Json = False) -> None:
    """How long a fresh service takes to be ready, and what it holds in memory."""
    from benchmarks.dialogue import start as benchmark

    try:
        report = benchmark.run(model)
    except benchmark.StartError as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def rolling(
    sessions: Annotated[int, typer.Option(min=1, help="callers at any time")] = 8,
    minutes: Annotated[float, typer.Option(min=0.3, help="how long")] = 5.0,
    every: Annotated[float, typer.Option(min=0.5, help="seconds between two replacements of all workers")] = 15.0,
    call: Annotated[float, typer.Option(min=5.0, help="seconds after which a caller makes room for another")] = 40.0,
    clips: Clips = CHECKOUT / "tests" / "speech",
    labels: Annotated[Path, typer.Option(help="what they say")] = CHECKOUT / "tests" / "speech" / "labels.json",
    tones: Annotated[
        bool, typer.Option("--tones", help="a worker that answers with tones, instead of a model")
    ] = False,
    json: Json = False,
) -> None:
    """Callers in real time while all workers are replaced again and again: refusals, answers cut off, gaps."""
    from benchmarks.attacks.server import ServerError
    from benchmarks.load import rolling as benchmark
    from worker.audio_files import AudioFileError

    slots = 2 * sessions
    worker = f"{sys.executable} -m tests.support.fake_worker --slots {slots} --pace 0.5" if tones else ""
    settings = benchmark.RollingSettings(sessions, minutes * 60, every, call, clips, labels, worker)
    try:
        with ticking(minutes * 60, json):
            report = benchmark.run(settings)
    except (AudioFileError, ServerError) as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def attack(
    only: Annotated[str, typer.Option(help="attacks whose name has this in it")] = "",
    model: Model = "embedded",
    workers: Annotated[int, typer.Option(min=1, help="worker processes; attacks on workers need a third")] = 3,
    tones: Annotated[
        bool, typer.Option("--tones", help="a worker that answers with tones, instead of a model")
    ] = False,
    json: Json = False,
) -> None:
    """A service under every known attack: gaps in other callers' sound, its health, and whether it survives (Linux)."""
    import asyncio

    from benchmarks.attacks import suite as benchmark
    from benchmarks.attacks.server import attacked

    worker = f"{sys.executable} -m tests.support.fake_worker --slots 8 --reply '{'la ' * 50}'" if tones else None
    say = (lambda text: None) if json else (lambda text: print(text, file=sys.stderr))
    try:
        shown = progress(json, "attacks") or quiet
        report = asyncio.run(benchmark.run(attacked(model, worker, workers), only, say, shown))
    except (benchmark.AttackError, benchmark.ServerError) as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def rates(
    clips: Clips = CHECKOUT / "tests" / "speech",
    sentences: Annotated[int, typer.Option(min=1, help="replies to speak at each rate")] = 10,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """How exactly requested frame rates are met, and what lower ones save."""
    with measuring("bench", threads):
        from benchmarks.dialogue import rates as benchmark
        from worker.loading import load_model

        shown = progress(json, "rates")
        print_report(benchmark.run(load_model(model), _recordings(clips), sentences, shown), json)


@app.command()
def streaming(
    clips: Clips = CHECKOUT / "tests" / "speech",
    sentences: Annotated[int, typer.Option(min=1, help="replies whose seams are looked at")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each cost")] = 5,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """What working chunk by chunk costs, how far each network looks ahead, and whether seams show."""
    with measuring("bench", threads):
        from benchmarks.streams import bench as benchmark
        from worker.loading import load_model

        shown = progress(json, "parts") or quiet
        report = benchmark.run(load_model(model), _recordings(clips), sentences, rounds, shown)
        print_report({**report, "threads": threads}, json)


@app.command()
def controllers(
    clips: Clips = CHECKOUT / "tests" / "speech", model: Model = "embedded", threads: Threads = 1, json: Json = False
) -> None:
    """Three ways to meet an input rate without seeing the future."""
    with measuring("bench", threads):
        from benchmarks.dialogue import controllers as benchmark
        from worker.loading import load_model

        print_report(benchmark.run(load_model(model), _recordings(clips)), json)


@app.command()
def golden(
    golden: Annotated[Path, typer.Option(help="folder with flexislm and flexicodec")] = CHECKOUT / "tests" / "golden",
    json: Json = False,
) -> None:
    """Our networks against recorded inputs and outputs of the originals."""
    from benchmarks.golden import suite as benchmark

    try:
        report = benchmark.run(golden)
    except FileNotFoundError as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def thinker(
    steps: Annotated[int, typer.Option(min=1, help="tokens to decode")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="measurements")] = 3,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Our decoder against transformers' own, FlexiSLM-0.5B's size, random weights."""
    with measuring("bench", threads):
        from benchmarks.official import thinker as benchmark

        print_report(benchmark.run(steps, rounds, progress=progress(json, "rounds") or quiet), json)


@app.command()
def load(
    size: Annotated[Released, typer.Option(help="released size")] = Released.HALF_B,
    adapters: Annotated[bool, typer.Option(help="with LoRA adapters apart, as Stage 2 was trained")] = False,
    json: Json = False,
) -> None:
    """What loading a FlexiSLM checkpoint takes in memory, over its bytes; writes one into a temporary folder."""
    from benchmarks.official import load as benchmark

    try:
        report = benchmark.run(size.value, adapters=adapters)
    except (benchmark.LoadBenchError, OSError) as error:
        fail("bench", error)
    print_report(report, json)


@app.command()
def roofline(
    size: Annotated[Released, typer.Option(help="released size")] = Released.SEVEN_B,
    gigabytes_per_s: Annotated[float, typer.Option(min=1.0, help="what the memory delivers")] = 4300.0,
    teraflops: Annotated[float, typer.Option(min=0.01, help="what matrix products reach in bfloat16")] = 790.0,
    json: Json = False,
) -> None:
    """The least time a GPU can take, by arithmetic alone; the defaults are an H200's. Measures nothing."""
    from benchmarks.official import roofline as arithmetic

    print_report(arithmetic.run(size.value, gigabytes_per_s * 1e9, teraflops * 1e12), json)


@app.command()
def engine(
    size: Annotated[Released, typer.Option(help="released size")] = Released.SEVEN_B,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """What a step and a chunk of sound ask of a GPU: operations, reads by the host. Counts, and measures nothing."""
    with measuring("bench", threads):
        from benchmarks.official import engine as benchmark

        print_report(benchmark.run(size.value), json)


@app.command()
def codec(
    seconds: Annotated[float, typer.Option(min=0.5, help="of speech")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="measurements")] = 3,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """FlexiCodec in full size against the published package, where that is installed."""
    with measuring("bench", threads):
        from benchmarks.official import codec as benchmark

        print_report(benchmark.run(seconds, threads, rounds), json)


@app.command()
def seams(
    golden: Annotated[Path, typer.Option(help="folder with flexicodec")] = CHECKOUT / "tests" / "golden",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Whether the joints between chunks of the official voice can be heard."""
    with measuring("bench", threads):
        from benchmarks.streams import seams as benchmark

        try:
            report = benchmark.run(golden)
        except FileNotFoundError as error:
            fail("bench", error)
        print_report(report, json)


@app.command()
def cluster(
    pieces: Annotated[int, typer.Option(min=40, help="pieces of sound each way")] = 1000,
    json: Json = False,
) -> None:
    """What the direct socket to a worker of a cluster adds to the link of one machine, side by side; needs no Ray."""
    from benchmarks.cluster import latency

    print_report(latency.run(pieces, progress(json, "pieces") or quiet), json)


def _recordings(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*") if path.suffix in (".wav", ".flac", ".opus", ".ogg"))
    if not files:
        fail("bench", FileNotFoundError(f"{folder} holds no recordings; give a folder of WAV, FLAC or Opus files"))
    return files
