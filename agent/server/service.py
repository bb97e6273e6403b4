"""The service: what all connections share, and the birth and death of sessions."""

from __future__ import annotations

import logging

import msgspec

from agent.clock import Clock, SystemClock
from agent.config import ServerConfig
from agent.dialogue.session import Session
from agent.ids import Ids
from agent.protocol.session_object import SessionSettings, default_settings, updated
from agent.server.auth import Authenticator, Grant
from agent.server.fairness import LoopShare
from agent.server.metrics import Metrics
from agent.server.runner import SessionRunner
from agent.server.workers import NoWorker, WorkerPool
from agent.transports.base import Transport
from agent.turn.silero import SileroVad

log = logging.getLogger("agogic.service")

JsonObject = dict[str, object]
RETRY_AFTER_S = 2


class NoCapacity(Exception):
    """No session can be opened now; the message says why, and trying again later may help."""


class Service:
    def __init__(self, config: ServerConfig, pool: WorkerPool, clock: Clock | None = None) -> None:
        self.config = config
        self.pool = pool
        self.clock = clock or SystemClock()
        self.auth = Authenticator(config.http.api_keys, self.clock)
        self.metrics = Metrics()
        self.share = LoopShare()
        self.calls: dict[str, SessionRunner] = {}
        self.draining = False
        self._runners: set[SessionRunner] = set()

    @property
    def session_count(self) -> int:
        return len(self._runners)

    def settings(self, *updates: JsonObject | None) -> SessionSettings:
        """The defaults with these updates over them, in order. Raises `ProtocolError`."""
        settings = default_settings(self.config)
        for update in updates:
            if update is not None:
                settings = updated(settings, update, self.config.session.voice)
        return settings

    async def open_session(
        self, transport: Transport, *, grant: Grant, settings: JsonObject | None = None
    ) -> SessionRunner:
        """A session with a leased worker slot, not started yet. Whoever gets it must `run` it.

        Raises `NoCapacity`, or `ProtocolError` if the session object does not fit.
        """
        effective = self.settings(grant.session, settings)
        if self.draining:
            raise NoCapacity("The server is shutting down; connect again in a moment.")
        if len(self._runners) >= self.config.session.max_sessions:
            self.metrics.refused.labels("max_sessions").inc()
            raise NoCapacity(f"All {self.config.session.max_sessions} sessions are in use; try again later.")
        session = Session(
            self.config,
            effective,
            transport=transport.kind,
            clock=self.clock,
            ids=Ids(),
            vad=SileroVad(),
            model=self.pool.model,
            input_hz=transport.input_rate_hz,
        )
        runner = SessionRunner(session, transport, self.pool, self.clock, self.metrics, self.share, on_end=self._ended)
        # Counted before the worker is waited for: others may come in the meantime, or the end of the service.
        self._runners.add(runner)
        self.metrics.sessions.labels(transport.kind).inc()
        try:
            await runner.lease()
        except NoWorker as error:
            self._ended(runner)
            self.metrics.refused.labels("no_worker").inc()
            raise NoCapacity(f"No session can be opened now: {error}.") from error
        except BaseException:
            self._ended(runner)
            raise
        log.info("%s: opened over %s", session.id, transport.kind)
        return runner

    def drain(self) -> None:
        """Take no more sessions, and tell the clients of the running ones to connect elsewhere."""
        self.draining = True
        for runner in tuple(self._runners):
            runner.close(1012, "the server restarts")

    def session_snapshot(self, settings: SessionSettings) -> JsonObject:
        """A session object that no session has yet, for `client_secrets`."""
        preview: JsonObject = {"type": "realtime", "object": "realtime.session", "id": Ids().new("sess")}
        rendered: JsonObject = msgspec.to_builtins(settings)
        return preview | {"model": self.pool.model} | rendered

    def _ended(self, runner: SessionRunner) -> None:
        if runner in self._runners:
            self._runners.discard(runner)
            self.metrics.sessions.labels(runner.transport_kind).dec()
            log.info("%s: ended", runner.session_id)
