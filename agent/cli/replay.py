"""`agogic replay`: a recorded session once more, through the core or to a live server."""

from __future__ import annotations

import asyncio
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from agent.cli.measuring import Json, as_json, fail, print_report

if TYPE_CHECKING:
    from agent.recording.against import Came, Played
    from agent.recording.log import Recording
    from agent.recording.replay import Difference, Result

# Of what differs so much is shown.
_SHOWN_CHARACTERS = 500


def replay(
    log: Annotated[Path, typer.Argument(help="a file that `agogic serve --record` wrote")],
    against: Annotated[
        str, typer.Option(help="http://HOST:PORT of a running server to play the client's side to")
    ] = "",
    api_key: Annotated[str, typer.Option(envvar="AGOGIC_API_KEY", help="for that server")] = "",
    by_length: Annotated[
        bool, typer.Option("--by-length", help="sound of the same length counts as the same: another processor's")
    ] = False,
    json: Json = False,
) -> None:
    """Run a recorded session again, and show the first difference (status 1).

    With --against the server's own answers are shown beside the recorded ones; status 1 where it broke the protocol's
    order, or ended the session itself."""
    from agent.recording.against import AgainstError
    from agent.recording.log import LogError, Recording

    try:
        recording = Recording(log)
        if against:
            status = _against(recording, against, api_key or None, json)
        else:
            status = _through_the_core(recording, by_length, json)
    except (LogError, AgainstError) as error:
        fail("replay", error)
    if status:
        raise typer.Exit(status)


def _through_the_core(recording: Recording, by_length: bool, json: bool) -> int:
    from agent.recording.replay import replay as run

    result = run(recording, by_length=by_length)
    if json:
        print_report(_report(recording, result), json)
    else:
        for line in _sentences(recording, result):
            print(line)
    return 1 if result.difference is not None else 0


def _report(recording: Recording, result: Result) -> dict[str, object]:
    found = result.difference
    return {
        "session": recording.header.session,
        "sound": recording.header.sound,
        "calls": result.calls,
        "events": result.events,
        "messages_to_worker": result.to_worker,
        "lasted_s": round(result.lasted_s, 3),
        "ending": result.ending,
        "not_comparable": result.unlike,
        "difference": None if found is None else _difference(found),
    }


def _difference(found: Difference) -> dict[str, object]:
    return {
        "line": found.line,
        "at_s": found.at_s,
        "call": _call(found),
        "where": found.where,
        "then": _short(found.then),
        "now": _short(found.now),
        "trace": found.trace or None,
    }


def _sentences(recording: Recording, result: Result) -> list[str]:
    header = recording.header
    lines = [f"{header.session} over {header.transport}, {result.lasted_s:.1f} s"]
    if not header.sound:
        lines.append(
            "recorded without sound: what is compared is everything but sound; turns end by what the network said then"
        )
    if result.unlike:
        lines.append(f"{result.unlike} messages were not kept as they came, so what came of them is not compared")
    found = result.difference
    if found is not None:
        lines += [
            f"the first difference is in line {found.line}, {found.at_s:.3f} s after the beginning",
            f"  call  {_call(found)}",
            f"  where {found.where or 'the whole'}",
            f"  then  {_short(found.then)}",
            f"  now   {_short(found.now)}",
        ]
        return [*lines, found.trace] if found.trace else lines
    if result.ending is None:
        lines.append("the recording has no last line: the server was killed, or the session still goes on")
    elif result.ending != "the session is over":
        lines.append(f"the recording ends before the session: {result.ending}")
    return [
        *lines,
        f"no difference: {result.calls} calls, {result.events} events, {result.to_worker} messages to the worker",
    ]


def _call(found: Difference) -> str:
    return _short(msgspec.to_builtins(found.call))


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    written = as_json(value)
    return written if len(written) <= _SHOWN_CHARACTERS else f"{written[:_SHOWN_CHARACTERS]}…"


def _against(recording: Recording, url: str, key: str | None, json: bool) -> int:
    from agent.recording.against import play, recorded_events

    if not recording.header.sound and not json:
        print("recorded without sound: silence is played where somebody spoke")
    played = asyncio.run(play(recording, url, key))
    then = list(recorded_events(recording))
    report = _comparison(then, played)
    if json:
        print_report(report | {"came": [{"at_s": round(c.at_s, 3), "type": c.kind} for c in played.came]}, json)
    else:
        _show(played, report)
    return 1 if played.out_of_order is not None or played.closed is not None else 0


def _comparison(then: list[Came], played: Played) -> dict[str, object]:
    from agent.recording.against import skeleton, texts

    heard_then, answered_then = texts(then)
    heard_now, answered_now = texts(played.came)
    pairs = enumerate(zip_longest(skeleton(then), skeleton(played.came)))
    differs = next(((index, *pair) for index, pair in pairs if pair[0] != pair[1]), None)
    return {
        "sent": played.sent,
        "events": len(played.came),
        "events_then": len(then),
        "order_kept": played.out_of_order is None,
        "out_of_order": played.out_of_order,
        "same_events": differs is None,
        "differs_at": None if differs is None else {"place": differs[0], "then": differs[1], "now": differs[2]},
        "closed": played.closed,
        "unknown_ids": played.unknown_ids or None,
        "errors": [c.event.get("error") for c in played.came if c.kind == "error"] or None,
        "heard_then": heard_then,
        "heard": heard_now,
        "answered_then": answered_then,
        "answered": answered_now,
    }


def _show(played: Played, report: dict[str, object]) -> None:
    from agent.recording.against import SOUND

    for is_sound, group in groupby(played.came, lambda came: came.kind in SOUND):
        pieces = list(group)
        if is_sound:
            print(f"{pieces[0].at_s:9.3f}  {len(pieces)} pieces of sound and words until {pieces[-1].at_s:.3f}")
            continue
        for came in pieces:
            print(f"{came.at_s:9.3f}  {came.kind}")
    for name in ("errors", "unknown_ids"):
        if report[name] is not None:
            print(f"{name.replace('_', ' ')}: {_short(report[name])}")
    for name in ("heard", "answered"):
        print(f"{name} then: {_short(report[f'{name}_then'])}\n{name} now:  {_short(report[name])}")
    print(f"order: {played.out_of_order or 'as the protocol has it'}")
    print(
        "events: "
        + ("the same as then" if report["same_events"] else f"other than then: {_short(report['differs_at'])}")
    )
    if played.closed is not None:
        print(f"the server ended the session: {played.closed}")
