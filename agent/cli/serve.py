"""`agogic serve`: the service process, with its workers under it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from agent import log
from agent.config import (
    ConfigError,
    ModelConfig,
    ServerConfig,
    check_exposure,
    check_keys,
    check_models,
    load_config,
    secrets_of,
)

if TYPE_CHECKING:
    from agent.cluster.edge import Edge
    from agent.server.models import Models, Variant

KEY_VARIABLE = "AGOGIC_API_KEY"
ADMIN_KEY_VARIABLE = "AGOGIC_ADMIN_KEY"
_LAST_WORDS_S = 0.3
# After an answer, for a body that nobody reads.
_LINGER_S = 2.0
# Threads hand the interpreter over this soon: the loop has sound to pace.
_SWITCH_INTERVAL_S = 0.001


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class CannotListen(Exception):
    """The address is not to be had; the message says what to do."""


def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file; see configs/")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on (default 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="port (default 8790; 0 = any free one)")] = None,
    model: Annotated[str | None, typer.Option(help="'embedded', a checkpoint directory or a hub id")] = None,
    voice: Annotated[Path | None, typer.Option(help="recording that an official model is to sound like")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="worker processes")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads of each worker")] = None,
    record: Annotated[Path | None, typer.Option(help="folder that every session leaves a recording in")] = None,
    record_without_sound: Annotated[
        bool, typer.Option("--record-without-sound", help="lengths in place of sound")
    ] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="workers and sessions shared through Ray")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="of service and workers")] = LogLevel.WARNING,
    worker_command: Annotated[str | None, typer.Option(hidden=True, help="starts a worker; --socket is added")] = None,
) -> None:
    """Serve the page, the Realtime API and the model."""
    started_s = time.monotonic()

    def read() -> ServerConfig:
        loaded = overridden(
            load_config(config),
            host=host,
            port=port,
            model=model,
            voice=voice,
            workers=workers,
            threads=threads,
            record=record,
            record_without_sound=record_without_sound,
            cluster=cluster,
        )
        check_keys(loaded)
        check_models(loaded)
        check_exposure(loaded)
        return loaded

    try:
        loaded = read()
        listening = _listen(loaded.http.host, loaded.http.port)
    except (ConfigError, CannotListen) as error:
        typer.echo(f"agogic serve: {error}", err=True)
        raise typer.Exit(2) from error
    log_format = loaded.telemetry.log_format
    log.configure(log_level.upper(), secrets_of(loaded), log_format=log_format)
    own_command = shlex.split(worker_command) if worker_command is not None else None
    edge = _joined(loaded, own_command, log_level) if loaded.cluster.enabled else None
    try:
        reread = lambda: variants(read(), log_level, own_command)  # noqa: E731
        status = _run(_serve(loaded, listening, reread, started_s, edge))
    except ConfigError as error:
        typer.echo(f"agogic serve: {error}", err=True)
        raise typer.Exit(2) from error
    if status:
        raise typer.Exit(status)


def _joined(config: ServerConfig, own_command: list[str] | None, log_level: str) -> Edge:
    from agent.cluster.edge import Edge
    from agent.cluster.messages import ControlError
    from agent.server.worker_process import worker_command

    try:
        return Edge.join(config, own_command or worker_command(config.model, log_level))
    except ControlError as error:
        typer.echo(f"agogic serve: {error}", err=True)
        raise typer.Exit(2) from error


def overridden(
    config: ServerConfig,
    *,
    host: str | None = None,
    port: int | None = None,
    model: str | None = None,
    voice: Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    record: Path | None = None,
    record_without_sound: bool = False,
    cluster: bool = False,
) -> ServerConfig:
    """Command line over environment over file. Raises `ConfigError`."""
    http, chosen, recording = config.http, config.model, config.recording
    key, admin_key = os.environ.get(KEY_VARIABLE), os.environ.get(ADMIN_KEY_VARIABLE)
    http = replace(
        http,
        host=host if host is not None else http.host,
        port=port if port is not None else http.port,
        api_keys=(*http.api_keys, key) if key else http.api_keys,
        admin_keys=(*http.admin_keys, admin_key) if admin_key else http.admin_keys,
    )
    chosen = replace(
        chosen,
        spec=model if model is not None else chosen.spec,
        voice=str(voice) if voice is not None else chosen.voice,
        workers=workers if workers is not None else chosen.workers,
        threads=threads if threads is not None else chosen.threads,
    )
    recording = replace(
        recording,
        folder=str(record) if record is not None else recording.folder,
        sound=recording.sound and not record_without_sound,
    )
    if record_without_sound and not recording.folder:
        raise ConfigError("--record-without-sound records nothing by itself; add --record DIR")
    shared = replace(config.cluster, enabled=config.cluster.enabled or cluster)
    return replace(config, http=http, model=chosen, recording=recording, cluster=shared)


def variants(config: ServerConfig, log_level: str, own_command: Sequence[str] | None = None) -> list[Variant]:
    """What is to be served, and how its workers are started; `own_command`: by that in place of ours."""
    from agent.server.models import Variant
    from agent.server.worker_process import worker_command

    log_format = config.telemetry.log_format

    def command_of(model: ModelConfig) -> tuple[str, ...]:
        return tuple(worker_command(model, log_level, log_format))

    if not config.models:
        return [Variant("", 1.0, config.model, tuple(own_command or command_of(config.model)))]
    commands = [(*own_command, "--model", model.spec) if own_command else command_of(model) for model in config.models]
    return [
        Variant(model.name, model.share, model, command) for model, command in zip(config.models, commands, strict=True)
    ]


def _listen(host: str, port: int) -> socket.socket:
    """Binds before anything heavy starts."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(f"port {port} on {host} is in use; choose another with --port") from error
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror or error}; check --host and --port"
        ) from error


def _run(main: Coroutine[None, None, int]) -> int:
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


async def _serve(
    config: ServerConfig,
    listening: socket.socket,
    reread: Callable[[], list[Variant]],
    started_s: float,
    edge: Edge | None,
) -> int:
    from aiohttp import web

    from agent.memory import give_back_large_blocks, set_apart_what_stays

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    from agent.rtc import opus
    from agent.rtc.opus import OpusError
    from agent.server.app import create_app
    from agent.server.certificates import Watcher, load, server_context
    from agent.server.door import DoorSite, Tls, door_key, raise_descriptor_limit
    from agent.server.loop_watch import LoopWatch
    from agent.server.models import Models, ServedModel
    from agent.server.service import Service
    from agent.server.worker_process import WorkerUnusable
    from agent.telephony.app import addresses_key
    from agent.turn.silero import SileroVad

    give_back_large_blocks()
    http = config.http
    certificate = server_context(http)
    models = Models.of(reread(), reread) if edge is None else Models([ServedModel("", 1.0, edge.pool)])
    service = Service(config, models, store=edge.control if edge is not None else None)
    raise_descriptor_limit()
    # What is loaded once would else hold up whoever is there when the first caller needs it.
    SileroVad()
    with contextlib.suppress(OpusError):
        opus.library()
    app = create_app(service)
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=_LAST_WORDS_S,
        keepalive_timeout=config.http.request_timeout_s,
        lingering_time=_LINGER_S,
    )
    await runner.setup()
    tls = Tls(certificate, http.request_timeout_s) if certificate is not None else None
    await DoorSite(runner, listening, app[door_key], tls).start()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"agogic: {'http' if tls is None else 'https'}://{shown}:{port}/  (loading {', '.join(_specs(config))})")
    for address in app[addresses_key]:
        typer.echo(f"agogic: {address}")
    if service.recorder is not None:
        typer.echo(f"agogic: every session is recorded, {service.recorder.kind}, into {config.recording.folder}")
    set_apart_what_stays()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, service.stop)
    loop.add_signal_handler(signal.SIGINT, lambda: service.stop(at_once=True))
    # At a terminal it says that the terminal is gone.
    loop.add_signal_handler(signal.SIGHUP, service.stop if sys.stdin.isatty() else service.roll)
    watchers = []
    if certificate is not None:
        watchers.append(Watcher((http.certificate, http.private_key), lambda: load(certificate, http)))
    if http.keys_file:
        watchers.append(Watcher((http.keys_file,), service.keys.read))
    watching = [asyncio.create_task(watcher.run()) for watcher in watchers]
    if service.shared_keys is not None:
        watching.append(asyncio.create_task(service.shared_keys.run()))
    if service.neighbours is not None:
        watching.append(asyncio.create_task(service.neighbours.run()))
    if service.telemetry is not None:
        watching.append(asyncio.create_task(service.telemetry.run(service.read_gauges)))
    working = asyncio.create_task(models.run())
    announcing = asyncio.create_task(_announce(models, started_s))
    stopping = asyncio.create_task(service.stopping.wait())
    with LoopWatch(service.metrics.registry).running():
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            service.stop(at_once=True)
        await service.drain()
    await asyncio.sleep(_LAST_WORDS_S if service.session_count else 0)
    await runner.cleanup()
    if service.recorder is not None:
        await asyncio.to_thread(service.recorder.close)
    status = 0
    for task in (*watching, announcing, stopping, working):
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            continue
        except WorkerUnusable as error:
            typer.echo(f"agogic serve: {error}", err=True)
            status = 2
    if service.telemetry is not None:
        await service.telemetry.close()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # We are leaving already: another signal must not turn that into a violent end.
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    return status


async def _announce(models: Models, started_s: float) -> None:
    await models.wait_ready()
    names = ", ".join(model.shown for model in models)
    typer.echo(f"agogic: ready after {time.monotonic() - started_s:.1f} s ({names}, {models.slots} slots)")


def _specs(config: ServerConfig) -> list[str]:
    return [model.spec for model in config.models or (config.model,)]
