"""HTTPS by certificate files, and files that are read again when they change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.config import ConfigError, HttpConfig

log = logging.getLogger("agogic.files")

EVERY_S = 5.0

Stamp = tuple[tuple[int, int, int] | None, ...]


def server_context(config: HttpConfig) -> ssl.SSLContext | None:
    """None where no certificate is configured. Raises `ConfigError`."""
    if not config.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load(context, config)
    return context


def load(context: ssl.SSLContext, config: HttpConfig) -> None:
    """Reads the files into it: connections from now on are shown this certificate. Raises `ConfigError`."""
    try:
        context.load_cert_chain(config.certificate, config.private_key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        what = error.strerror or error
        raise ConfigError(
            f"http.certificate = {config.certificate!r} with http.private_key = {config.private_key!r}: {what}; "
            "name a PEM file of the chain and one of its key"
        ) from error


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise ConfigError("http.private_key is encrypted; agogic has nobody to ask for its password")


class Watcher:
    """Calls back when any of some files has changed. What the callback refuses is logged, and what was read before
    stays in force: a certificate or a list of keys is written in more than one step."""

    def __init__(self, paths: Iterable[str | Path], changed: Callable[[], None]) -> None:
        self._paths = tuple(Path(path) for path in paths)
        self._changed = changed
        self._seen = self._stamp()

    async def run(self, every_s: float = EVERY_S) -> None:
        """Looks every `every_s` seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            self.look(await asyncio.to_thread(self._stamp))

    def look(self, stamp: Stamp | None = None) -> None:
        """Looks once, or at what somebody else has seen."""
        stamp = stamp or self._stamp()
        if stamp == self._seen:
            return
        try:
            self._changed()
        except ConfigError as error:
            log.warning("what was read before stays in force: %s", error)
            return
        self._seen = stamp
        log.info("read again: %s", ", ".join(map(str, self._paths)))

    def _stamp(self) -> Stamp:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino
    return None
