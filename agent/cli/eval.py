"""`agogic eval`: how well the model understands and how well it is understood."""

from __future__ import annotations

import itertools
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.measuring import CHECKOUT, Json, Model, Threads, fail, measuring, print_report, progress, quiet

SPEECH = CHECKOUT / "tests" / "speech"


class Eagerness(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    AUTO = "auto"


class Judges(StrEnum):
    pocketsphinx = "pocketsphinx"
    whisper = "whisper"


app = typer.Typer(no_args_is_help=True, help="Measure the model: understanding, voice.")


@app.command()
def barista(
    clips: Annotated[Path, typer.Option(help="folder of recorded orders")],
    labels: Annotated[Path, typer.Option(help="their labels.json: what was said, as slots")],
    input_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the merged embeddings")] = 12.5,
    held_out: Annotated[bool, typer.Option("--held-out", help="only the fifth that was never trained on")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="group at the end of the turn, by offline top-k")] = False,
    channel: Annotated[str, typer.Option(help="heard through: g711 (300 to 3400 Hz), narrow, quiet")] = "",
    noise: Annotated[str, typer.Option(help="heard among: kitchen, street, crowd")] = "",
    snr: Annotated[float, typer.Option(help="dB by which that noise is weaker than the recording")] = 12.0,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Share of recorded orders whose every slot the answer restates."""
    with measuring("eval", threads):
        from benchmarks.dialogue import barista as benchmark
        from benchmarks.dialogue.disturbances import DisturbanceError
        from worker.loading import load_model

        try:
            chosen = benchmark.read_clips(clips, labels, held_out)
        except benchmark.LabelsError as error:
            fail("eval", error)
        loaded = load_model(model, exact_at_end=exact)
        disturbance = benchmark.Disturbance(channel, noise, snr)
        try:
            report = benchmark.run(loaded, chosen, input_rate, progress(json), disturbance)
        except DisturbanceError as error:
            fail("eval", error)
        print_report(report, json, lists=False)


@app.command()
def bargein(
    clips: Annotated[Path, typer.Option(help="folder of recorded orders")],
    labels: Annotated[Path, typer.Option(help="their labels.json")],
    interjections: Annotated[
        Path, typer.Option(help="recordings of backchannels and interruptions, with an index.json")
    ] = CHECKOUT / "tests" / "speech" / "interjections",
    orders: Annotated[int, typer.Option(min=0, help="held-out ones that interrupt, at most")] = 50,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Whether "mm-hm", coughs and laughs over an answer stop it, and whether interruptions do."""
    with measuring("eval", threads):
        from benchmarks.dialogue import barge_in as benchmark
        from benchmarks.dialogue.barista import LabelsError, read_clips
        from worker.loading import load_model

        try:
            spoken = [clip.path for clip in read_clips(clips, labels, True)][:orders]
            found = benchmark.read_interjections(interjections, spoken)
        except (LabelsError, benchmark.InterjectionsError) as error:
            fail("eval", error)
        print_report(benchmark.run(load_model(model), found, progress(json, "sounds")), json)


@app.command()
def conversation(
    per_kind: Annotated[int, typer.Option(min=1, help="turns of each kind: orders, changes, prices, ...")] = 25,
    spoken: Annotated[bool, typer.Option("--spoken", help="spoken by espeak-ng instead of written")] = False,
    wide: Annotated[bool, typer.Option("--wide", help="also what is no plain order of one drink")] = False,
    input_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the merged embeddings")] = 12.5,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Share of held-out turns that are answered word for word, most of which need the answers before them."""
    with measuring("eval", threads):
        from benchmarks.dialogue import conversation as benchmark
        from training.speech_data import SynthesisError
        from worker.loading import load_model

        try:
            shown = progress(json)
            report = benchmark.run(load_model(model), per_kind, spoken, input_rate, shown, wide=wide)
        except SynthesisError as error:
            fail("eval", error)
        print_report(report, json, lists=False)


@app.command()
def unexpected(
    spoken: Annotated[bool, typer.Option("--spoken", help="spoken by espeak-ng in voices never trained on")] = False,
    input_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the merged embeddings")] = 12.5,
    output_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the speech tokens")] = 12.5,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """How often an order is invented where none was given: things not sold, other topics, fragments, noises."""
    with measuring("eval", threads):
        from benchmarks.dialogue import unexpected as benchmark
        from training.speech_data import SynthesisError
        from worker.loading import load_model

        try:
            report = benchmark.run(load_model(model), spoken, input_rate, output_rate, progress(json, "things"))
        except SynthesisError as error:
            fail("eval", error)
        print_report(report, json, lists=False)


@app.command()
def dialogues(
    number: Annotated[int, typer.Option(min=1, help="conversations of five turns")] = 200,
    spoken: Annotated[bool, typer.Option("--spoken", help="spoken by espeak-ng instead of written")] = False,
    input_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the merged embeddings")] = 12.5,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """How often the order is right at the end of a conversation with changes, additions, and other things between."""
    with measuring("eval", threads):
        from benchmarks.dialogue import dialogues as benchmark
        from training.speech_data import SynthesisError
        from worker.loading import load_model

        try:
            report = benchmark.run(load_model(model), number, spoken, input_rate, progress(json, "dialogues"))
        except SynthesisError as error:
            fail("eval", error)
        print_report(report, json, lists=False)


@app.command()
def echo(
    clips: Annotated[Path, typer.Option(help="folder of recorded orders, spoken over answers")] = SPEECH,
    labels: Annotated[Path, typer.Option(help="their labels.json")] = SPEECH / "labels.json",
    answers: Annotated[int, typer.Option(min=2, help="at each strength of the echo")] = 50,
    db: Annotated[
        list[float] | None, typer.Option(help="the echo beside what is played; default: -6, -12, -20")
    ] = None,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """How often the agent takes its own voice from a loudspeaker for the caller's, and whether it still hears him."""
    with measuring("eval", threads):
        from agent.echo.canceller import MissingLibrary, library
        from benchmarks.dialogue import echo as benchmark
        from benchmarks.dialogue.barista import LabelsError, read_clips
        from worker.loading import load_model

        try:
            library()
            chosen = read_clips(clips, labels, True)
        except (LabelsError, MissingLibrary) as error:
            fail("eval", error)
        strengths = tuple(db) if db else benchmark.ECHO_DB
        print_report(benchmark.run(load_model(model), chosen, answers, strengths, progress(json, "callers")), json)


@app.command()
def heard(
    speech: Annotated[Path, typer.Option(help="recording with which the caller interrupts")] = CHECKOUT
    / "tests"
    / "clients"
    / "data"
    / "order.opus",
    rounds: Annotated[int, typer.Option(min=1, help="interruptions by each transport")] = 5,
    json: Json = False,
) -> None:
    """How exactly the agent knows what a caller has heard when he interrupts, and how soon it is silent."""
    from benchmarks.telephony import heard as benchmark
    from benchmarks.telephony.speech import question

    print_report(benchmark.run(question(speech), rounds), json)


@app.command()
def tools(
    orders: Annotated[int, typer.Option(min=1, help="to be confirmed")] = 100,
    clips: Annotated[Path | None, typer.Option(help="folder of recorded orders, held-out ones; else written")] = None,
    labels: Annotated[Path | None, typer.Option(help="their labels.json")] = None,
    model: Model = "embedded",
    json: Json = False,
) -> None:
    """How often a confirmed order is submitted, once and with the right arguments, and how often an unconfirmed one."""
    if (clips is None) != (labels is None):
        raise typer.BadParameter("recordings need both: --clips DIR --labels FILE")
    with measuring("eval", 1):
        from benchmarks.attacks.server import ServerError
        from benchmarks.dialogue import tools as benchmark
        from benchmarks.dialogue.barista import LabelsError, read_clips

        try:
            spoken = read_clips(clips, labels, True) if clips is not None and labels is not None else []
            report = benchmark.run(model, orders, spoken, progress(json, "orders"))
        except (LabelsError, ServerError, benchmark.TalkError) as error:
            fail("eval", error)
        print_report(report, json, lists=False)


@app.command()
def turns(
    clips: Annotated[Path, typer.Option(help="folder of recorded orders")],
    labels: Annotated[Path, typer.Option(help="their labels.json")],
    eagerness: Annotated[Eagerness, typer.Option(help="of semantic_vad")] = Eagerness.AUTO,
    kept_aside: Annotated[
        bool, typer.Option("--kept-aside", help="the recordings that patience was chosen on")
    ] = False,
    smart_turn: Annotated[Path | None, typer.Option(help="smart-turn-v3.2-cpu.onnx, to run beside")] = None,
    model: Model = "embedded",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """How soon the end of a turn is noticed, and how often a pause is taken for it, on held-out recordings."""
    with measuring("eval", threads):
        from benchmarks.dialogue import barista as recordings
        from benchmarks.dialogue import turn_ends as benchmark
        from training.features import held_out
        from training.turn_end import kept_aside as is_kept_aside
        from worker.loading import load_model

        try:
            found = recordings.read_clips(clips, labels, False)
        except recordings.LabelsError as error:
            fail("eval", error)
        chosen = [clip.path for clip in found if (is_kept_aside if kept_aside else held_out)(clip.path.name)]
        loaded = load_model(model)
        if not loaded.judges_ends:
            fail("eval", ValueError("this model cannot tell how finished a turn sounds; its turns end by silence"))
        report = benchmark.run(
            loaded.networks.ear,
            chosen,
            eagerness=eagerness.value,
            smart_turn=smart_turn,
            progress=progress(json),
        )
        print_report(report, json)


@app.command()
def voice(
    sentences: Annotated[int, typer.Option(min=1, help="order replies to speak")] = 200,
    output_rate: Annotated[float, typer.Option(min=4.0, max=12.5, help="Hz of the speech tokens")] = 12.5,
    judge: Annotated[Judges, typer.Option(help="the recogniser that listens")] = Judges.pocketsphinx,
    whisper: Annotated[Path | None, typer.Option(help="directory of whisper-base for CTranslate2")] = None,
    opinions: Annotated[bool, typer.Option("--opinions", help="also predicted MOS and speaker similarity")] = False,
    model: Model = "embedded",
    threads: Threads = 1,
    processes: Annotated[int, typer.Option(min=1, help="recognisers at work at once")] = 1,
    flow_steps: Annotated[
        int | None, typer.Option(min=1, max=32, help="Euler steps of the embedded voice's decoder, instead of its own")
    ] = None,
    json: Json = False,
) -> None:
    """Word error rate of an outside recogniser on spoken replies, beside the source voice's own."""
    if judge is Judges.whisper and whisper is None:
        raise typer.BadParameter("the judge whisper needs its weights: --whisper DIR")
    with measuring("eval", threads):
        from training.judge import JudgeError
        from training.voice_eval import JudgeChoice, run
        from worker.loading import load_model
        from worker.parts import Pcm
        from worker.turn import TurnSettings, speak_text
        from worker.voices.embedded import EmbeddedVoice

        loaded, settings = load_model(model), TurnSettings(output_hz=output_rate)
        spoken_by = loaded.networks.voice
        if flow_steps is not None:
            if not isinstance(spoken_by, EmbeddedVoice):
                raise typer.BadParameter("--flow-steps is for the embedded voice; official checkpoints say theirs")
            spoken_by.flow.dials = replace(spoken_by.flow.dials, steps=flow_steps)
        chosen = JudgeChoice(whisper if judge is Judges.whisper else None)
        shown, spoken = progress(json, "sentences") or quiet, itertools.count(1)

        def speak(text: str) -> tuple[Pcm, int]:
            sound = speak_text(loaded, text, settings)
            shown(next(spoken), sentences)
            return sound

        try:
            report = run(speak, sentences, processes, chosen, opinions=opinions)
        except JudgeError as error:
            fail("eval", error)
        asked = {"requested_output_hz": output_rate}
        if isinstance(spoken_by, EmbeddedVoice):
            asked["flow_steps"] = spoken_by.flow.dials.steps
        print_report({**report, **asked}, json, lists=False)
