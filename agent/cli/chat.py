"""`agogic chat`: talk to a running server from the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def chat(
    url: Annotated[str, typer.Argument(help="where the server answers")] = "http://127.0.0.1:8790",
    wav: Annotated[Path | None, typer.Option(help="speak this recording instead of using a microphone (WAV)")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="where the last answer goes (WAV)")] = None,
    rate: Annotated[float | None, typer.Option(min=4.0, max=12.5, help="Hz of the answers; default: auto")] = None,
    push: Annotated[bool, typer.Option("--push", help="push to talk: Ctrl+T begins and ends a turn")] = False,
    silent: Annotated[bool, typer.Option("--silent", help="no microphone and no loudspeaker: write")] = False,
) -> None:
    """Talk to a running server from the terminal: captions, tokens, rates and times."""
    try:
        from agent.cli.chat_app import ChatApp, Sound
    except ImportError as error:
        print(f"agogic chat: {error.name} is not installed; run `make setup`", file=sys.stderr)
        raise typer.Exit(2) from error
    sound = Sound(recording=wav, devices=wav is None and not silent, push=push)
    app = ChatApp(url, os.environ.get("AGOGIC_API_KEY"), sound, rate if rate is not None else "auto")
    problem = app.run()
    if problem is not None:
        print(f"agogic chat: {problem}", file=sys.stderr)
        raise typer.Exit(2)
    if output is not None and app.last_sound:
        from agogic_client import write_wav

        write_wav(output, app.last_sound)
        print(f"{len(app.last_sound) / 48_000:.1f} s of speech in {output}")
