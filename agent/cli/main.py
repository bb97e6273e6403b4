"""`agogic`: the front door. Each verb lives in a module of its own, imported only when it is the one that runs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from typing import Annotated

import typer

# A verb whose module is not there is not shown. A module holds `app` (a Typer) or a function named as the verb.
_VERBS = {
    "serve": "Serve the page, the Realtime API and the model.",
    "workers": "The workers of a running server: listed, drained, replaced.",
    "talk": "One turn without a network: a sound file in, a spoken answer out.",
    "chat": "Talk to a running server from the terminal.",
    "doctor": "What works on this machine, and what to do about the rest.",
    "eval": "Measure the model: understanding, voice.",
    "bench": "Measure speed, side by side.",
    "train": "Train a part of the embedded model.",
    "dial": "Call a phone, an exchange or another agogic.",
    "codec": "Encode and decode speech tokens.",
    "export": "Write a model in the official layout.",
    "loadtest": "Many callers at once.",
    "replay": "Run a recorded session again.",
    "top": "Running services at a glance.",
}


def build(wanted: str | None) -> typer.Typer:
    """The command line with every verb that exists, of which only `wanted` is imported."""
    app = typer.Typer(
        name="agogic",
        help="Real-time spoken dialogue with a dynamic, controllable frame rate on both sides.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_front_door)
    for verb, summary in _VERBS.items():
        name = f"agent.cli.{verb}"
        if importlib.util.find_spec(name) is None:
            continue
        if verb != wanted:
            app.command(verb, help=summary)(_listed_only)
            continue
        module = importlib.import_module(name)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb, help=summary)
        else:
            app.command(verb)(getattr(module, verb))
    return app


def main() -> None:
    # A shell that completes says in the environment what has been typed so far.
    typed = os.environ.get("_TYPER_COMPLETE_ARGS", "").split() or sys.argv
    wanted = next((word for word in typed[1:] if not word.startswith("-")), None)
    build(wanted)(prog_name="agogic")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"agogic {importlib.metadata.version('agogic')}")
        raise typer.Exit


def _front_door(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    """Keeps the verb's name on the command line even while there is only one."""


def _listed_only() -> None:
    """Stands for a verb in the help text; what runs is always imported."""


if __name__ == "__main__":
    main()
