"""`agogic eval`: how well the model understands and how well it is understood."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

app = typer.Typer(no_args_is_help=True, help="Measure the model: understanding, voice.")

Model = Annotated[str, typer.Option(help="'embedded' or a checkpoint directory")]
Threads = Annotated[int, typer.Option(min=1, help="torch threads")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
def barista(
    clips: Annotated[Path, typer.Option(help="folder of recorded orders")],
    labels: Annotated[Path, typer.Option(help="their labels.json: what was said, as slots")],
    input_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the merged embeddings")] = 12.5,
    held_out: Annotated[bool, typer.Option("--held-out", help="only the fifth that was never trained on")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="group at the end of the turn, by offline top-k")] = False,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Share of recorded orders whose every slot the answer restates."""
    from worker.threads import limit_threads

    limit_threads(threads)
    from benchmarks import barista as benchmark
    from worker.audio_files import AudioFileError
    from worker.loading import ModelError, load_model

    try:
        chosen = benchmark.read_clips(clips, labels, held_out)
        report = benchmark.run(load_model(model, exact_at_end=exact), chosen, input_rate, None if json else _progress)
    except (AudioFileError, ModelError, benchmark.LabelsError) as error:
        print(f"agogic eval: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    _print(report, json)


@app.command()
def conversation(
    per_kind: Annotated[int, typer.Option(min=1, help="turns of each kind: orders, changes, prices, ...")] = 25,
    spoken: Annotated[bool, typer.Option("--spoken", help="spoken by espeak-ng instead of written")] = False,
    input_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the merged embeddings")] = 12.5,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Share of held-out turns that are answered word for word, most of which need the answers before them."""
    from worker.threads import limit_threads

    limit_threads(threads)
    from benchmarks import conversation as benchmark
    from training.speech_data import SynthesisError
    from worker.loading import ModelError, load_model

    try:
        report = benchmark.run(load_model(model), per_kind, spoken, input_rate, None if json else _progress)
    except (ModelError, SynthesisError) as error:
        print(f"agogic eval: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    _print(report, json)


@app.command()
def voice(
    sentences: Annotated[int, typer.Option(min=1, help="order replies to speak")] = 200,
    output_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the speech tokens")] = 12.5,
    model: Model = "embedded",
    threads: Threads = 1,
    processes: Annotated[int, typer.Option(min=1, help="recognisers at work at once")] = 1,
    json: Json = False,
) -> None:
    """Word error rate of an outside recogniser on spoken replies, beside the source voice's own."""
    from worker.threads import limit_threads

    limit_threads(threads)
    from training.voice_eval import run
    from worker.loading import ModelError, load_model
    from worker.turn import TurnSettings, speak_text

    try:
        loaded = load_model(model)
    except ModelError as error:
        print(f"agogic eval: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    settings = TurnSettings(output_hz=output_rate)
    report: dict[str, object] = dict(run(lambda text: speak_text(loaded, text, settings), sentences, processes))
    report["requested_output_hz"] = output_rate
    _print(report, json)


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def _print(report: dict[str, object], json: bool) -> None:
    if json:
        print(msgspec.json.encode(report).decode())
        return
    for name, value in report.items():
        if not isinstance(value, list):
            print(f"{name:24} {value}")
