"""`agogic talk`: one turn from a file to a file, through the same pipeline as a call but without a network."""

from __future__ import annotations

import dataclasses
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.measuring import as_json

MIN_RATE_HZ, MAX_RATE_HZ = 4.0, 12.5

Rate = Annotated[float, typer.Option(min=MIN_RATE_HZ, max=MAX_RATE_HZ)]


class Task(StrEnum):
    """s = speech, t = text, in and out; asr writes down what is said, tts says what is
    written."""

    S2S = "s2s"
    S2T = "s2t"
    T2S = "t2s"
    T2T = "t2t"
    ASR = "asr"
    TTS = "tts"


def talk(
    question: Annotated[str, typer.Argument(help="audio file (WAV, FLAC, Opus); the text itself for t2s, t2t, tts")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="where the spoken answer goes (WAV)")] = None,
    model: Annotated[str, typer.Option(help="'embedded', a checkpoint directory, or a hub id")] = "embedded",
    voice: Annotated[Path | None, typer.Option(help="recording that an official model is to sound like")] = None,
    task: Annotated[Task, typer.Option(help="what goes in and what comes out")] = Task.S2S,
    input_rate: Rate = 12.5,
    output_rate: Rate = 12.5,
    instructions: Annotated[str, typer.Option(help="system instructions")] = "",
    realtime: Annotated[bool, typer.Option(help="feed the question at the speed it was spoken")] = False,
    low_latency: Annotated[bool, typer.Option("--low-latency", help="first sound after a single speech token")] = False,
    threads: Annotated[int, typer.Option(min=1, help="torch threads")] = 1,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Ask a recorded question and hear the answer."""
    from worker.threads import limit_threads

    limit_threads(threads)
    from worker.audio_files import AudioFileError, read_question, write_reply
    from worker.loading import ModelError, load_model
    from worker.parts import RequestError
    from worker.turn import TurnSettings, ask_by_text, ask_by_voice, report, write_down

    speech = task in (Task.S2S, Task.T2S, Task.TTS)
    settings = TurnSettings(input_rate, output_rate, instructions, speech=speech, realtime=realtime)
    try:
        spoken = task in (Task.S2S, Task.S2T, Task.ASR)
        pcm = read_question(Path(question)) if spoken else None
        loaded = load_model(model, voice_prompt=voice, speaks=speech, latency="low" if low_latency else "usual")
        if pcm is None:
            turn = ask_by_text(loaded, loaded.repetition(question) if task is Task.TTS else question, settings)
            turn = dataclasses.replace(turn, transcript=question)
        elif task is Task.ASR:
            turn = write_down(loaded, pcm, settings)
        else:
            turn = ask_by_voice(loaded, pcm, settings)
        if output is not None and speech:
            write_reply(output, turn.pcm, loaded.output_sample_rate)
    except (AudioFileError, ModelError, RequestError) as error:
        print(f"agogic talk: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if json:
        print(as_json(report(turn, loaded.output_sample_rate, input_rate)))
        return
    if turn.transcript:  # official models write none of a question that they answer
        print(f"you:    {turn.transcript}")
    if task is not Task.ASR:
        print(f"agogic: {turn.text}")
    if output is not None and speech:
        print(f"{len(turn.pcm) / loaded.output_sample_rate:.1f} s of speech in {output}")
