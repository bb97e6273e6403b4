"""`agogic workers`: what the workers of a running server do, and how to let them go without ending a conversation."""

from __future__ import annotations

import json as jsonlib
import urllib.error
import urllib.request
from typing import Annotated, Any, NoReturn

import typer

from agent.cli.measuring import Json, as_json
from agent.cli.serve import ADMIN_KEY_VARIABLE

URL = "http://127.0.0.1:8790"
# As long as a worker may take to start and another to be emptied, and more of them than one.
_PATIENCE_S = 3600.0

Url = Annotated[str, typer.Option(help="the server")]
AdminKey = Annotated[str, typer.Option(envvar=ADMIN_KEY_VARIABLE, help="one of its http.admin_keys")]
Number = Annotated[int, typer.Argument(min=0, help="ID of the worker, as `list` shows it")]
AnyNumber = Annotated[int | None, typer.Argument(min=0, help="ID of a worker; none: all, one after the other")]

app = typer.Typer(no_args_is_help=True)


@app.command()
def list(url: Url = URL, admin_key: AdminKey = "", json: Json = False) -> None:
    """Every worker, its model, its state and its sessions."""
    _show(_ask(url, admin_key, "workers"), json)


@app.command()
def drain(worker: Number, url: Url = URL, admin_key: AdminKey = "", json: Json = False) -> None:
    """Lets one go for good: its sessions move to the others, each between two turns."""
    _show(_ask(url, admin_key, f"workers/{worker}/drain", post=True), json)


@app.command()
def replace(worker: AnyNumber = None, url: Url = URL, admin_key: AdminKey = "", json: Json = False) -> None:
    """Starts another in its place, and drains it once that one is ready. All of them: by what is configured now."""
    path = "workers/replace" if worker is None else f"workers/{worker}/replace"
    _show(_ask(url, admin_key, path, post=True), json)


def _ask(url: str, admin_key: str, path: str, *, post: bool = False) -> dict[str, Any]:
    """Ends the command with one line where the server refuses or does not answer."""
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/admin/{path}", method="POST" if post else "GET")
    if admin_key:
        request.add_header("Authorization", f"Bearer {admin_key}")
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return dict(jsonlib.load(answer))
    except urllib.error.HTTPError as error:
        _fail(_said(error))
    except (OSError, ValueError) as error:
        _fail(f"{url} does not answer: {getattr(error, 'reason', error)}; name the server with --url")


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(jsonlib.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"


def _fail(message: str) -> NoReturn:
    typer.echo(f"agogic workers: {message}", err=True)
    raise typer.Exit(1)


def _show(answer: dict[str, Any], json: bool) -> None:
    workers = answer["data"]
    if json:
        typer.echo(as_json({"workers": workers}))
        return
    typer.echo(f"{'ID':>3}  {'MODEL':20} {'STATE':12} {'PID':>8} {'SESSIONS':>9} {'BUSY':>5}")
    for worker in workers:
        taken = f"{worker['leased']}/{worker['slots']}"
        line = f"{worker['id']:>3}  {worker['model']:20} {worker['state']:12} {worker['pid'] or '':>8} {taken:>9}"
        typer.echo(f"{line} {worker['busy']:>5.0%}")
