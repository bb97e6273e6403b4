"""`agogic dial`: a call to a phone, to an exchange, to another agogic."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.measuring import as_json

KEY_VARIABLE = "AGOGIC_API_KEY"


def dial(
    target: Annotated[str, typer.Argument(help="sip:NAME@HOST[:PORT][;transport=tcp]")],
    wav: Annotated[Path | None, typer.Option(help="play this recording and record the reply, without an agent")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="where the reply is written")] = None,
    server: Annotated[str, typer.Option(help="the running server whose agent is to call")] = "http://127.0.0.1:8790",
    codec: Annotated[str, typer.Option(help="G722, opus, PCMU or PCMA; with --wav")] = "G722",
    user: Annotated[str, typer.Option(help="name, where the other side asks; with --wav")] = "",
    password: Annotated[str, typer.Option(help="password, where the other side asks; with --wav")] = "",
    seconds: Annotated[float, typer.Option(min=1.0, help="longest call; with --wav")] = 60.0,
    host: Annotated[str, typer.Option(help="our own address, as the other side sees it; with --wav")] = "127.0.0.1",
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Call somebody: have the agent of a running server talk to them, or play a recording."""
    from sipmessage import URI

    try:
        uri = URI.parse(target)
    except ValueError as error:
        raise _fail(f"{target!r} is no SIP address; write sip:NAME@HOST or sip:NAME@HOST:PORT") from error
    if wav is None:
        report = asyncio.run(_by_server(target, server))
    else:
        report = asyncio.run(_by_phone(uri, wav, output, codec, user, password, seconds, host))
    if json:
        print(as_json(report))
        return
    for name, value in report.items():
        typer.echo(f"{name:20} {value}")


async def _by_server(target: str, server: str) -> dict[str, object]:
    import aiohttp

    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{server.rstrip('/')}/telephony/sip/calls", json={"to": target}, headers=headers) as answer,
        ):
            body = await answer.json()
    except (aiohttp.ClientError, ValueError) as error:
        raise _fail(f"{server} does not take calls out: {error}; start it with configs/telephony.toml") from error
    if answer.status == 404:
        raise _fail(f"{server} has no SIP; start it with configs/telephony.toml")
    if answer.status != 201:
        raise _fail(str(body["error"]["message"]))
    return dict(body)


async def _by_phone(
    uri: object, wav: Path, output: Path | None, codec: str, user: str, password: str, seconds: float, host: str
) -> dict[str, object]:
    import soundfile  # type: ignore[import-untyped]
    from sipmessage import URI

    from agent.audio import Resampler
    from agent.config import ConfigError
    from agent.telephony.phone import Phone
    from agent.telephony.sip.call import Credentials
    from agent.telephony.sip.sdp import PREFERRED
    from agent.telephony.sip_line import NoPort
    from agent.telephony.sound.incoming import SESSION_HZ

    assert isinstance(uri, URI)
    codecs = tuple(name for name in PREFERRED if name.lower() == codec.lower())
    if not codecs:
        raise _fail(f"codec {codec!r} is not served; there are {', '.join(PREFERRED)}")
    try:
        sound, rate_hz = soundfile.read(wav, dtype="int16", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise _fail(f"{wav} cannot be read: {error}; give a WAV, FLAC or Opus file") from error
    resampler = Resampler(int(rate_hz), SESSION_HZ)
    speech = [resampler.push(sound[:, 0].copy()), resampler.flush()]
    import numpy as np

    phone = Phone(np.concatenate(speech), host=host, codecs=codecs, user=user or "phone")
    credentials = Credentials(user, password) if user else None
    try:
        report = await phone.call(uri, seconds=seconds, credentials=credentials)
    except (OSError, ConfigError, NoPort) as error:
        raise _fail(f"{uri} cannot be called: {error}") from error
    if report.status >= 300 or report.heard is None:
        raise _fail(f"{uri} did not take the call: {report.status} {report.reason}")
    if output is not None:
        soundfile.write(output, report.heard, SESSION_HZ, subtype="PCM_16")
    return {
        "codec": report.codec,
        "talked_s": report.talked_s,
        "heard_s": round(report.heard.size / SESSION_HZ, 2),
        "reply_after_ms": report.reply_after_ms,
        "packets_received": report.packets_received,
        "packets_lost": report.packets_lost,
    }


def _fail(message: str) -> typer.Exit:
    typer.echo(f"agogic dial: {message}", err=True)
    return typer.Exit(2)
