"""The service: what all connections share, and the birth and death of sessions.

A session is let in where it can count on a place on a worker: those that need one, or used one in the last half minute,
are as many as there are places at most. Who only holds a connection open does not count.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging

import msgspec

from agent.clock import Clock, SystemClock
from agent.config import ServerConfig
from agent.dialogue.session import Session
from agent.ids import Ids
from agent.memory import give_back_all
from agent.protocol.errors import ProtocolError
from agent.protocol.session_object import SessionSettings, default_settings, updated
from agent.server.auth import Authenticator, Grant
from agent.server.budget import Budget
from agent.server.fairness import LoopShare
from agent.server.keys import KeyRing, NamedKey
from agent.server.metrics import Metrics
from agent.server.runner import SessionRunner
from agent.server.usage import Usage, Visit
from agent.server.workers import WorkerPool
from agent.transports.base import RemotePlayer, Transport
from agent.turn.silero import SileroVad

log = logging.getLogger("agogic.service")

JsonObject = dict[str, object]
RETRY_AFTER_S = 2
_DRAIN_POLL_S = 0.05
_TIDY_AFTER_S = 2.0


class NoCapacity(Exception):
    """No session can be opened now; the message says why, and trying again later may help."""


class Service:
    def __init__(self, config: ServerConfig, pool: WorkerPool, clock: Clock | None = None) -> None:
        self.config = config
        self.pool = pool
        self.clock = clock or SystemClock()
        self.keys = KeyRing(config.http.api_keys, config.http.keys_file)
        self.auth = Authenticator(self.keys, self.clock)
        self._usage = Usage()
        self.metrics = Metrics()
        self.share = LoopShare()
        self.calls: dict[str, SessionRunner] = {}
        self.draining = False
        self._budget = Budget(config.limits)
        self._runners: set[SessionRunner] = set()
        self._tidying: asyncio.TimerHandle | None = None

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

    def open_session(
        self,
        transport: Transport,
        *,
        grant: Grant,
        settings: JsonObject | None = None,
        address: str | None = None,
        max_idle_s: float | None = None,
        model: str | None = None,
    ) -> SessionRunner:
        """A session, not started yet; it gets a place on a worker when it first needs one. Whoever gets it must `run`
        it. `address`: of the client, as far as it is known; `model`: the name it asks for.

        Raises `NoCapacity`, or `ProtocolError` if the session object does not fit.
        """
        effective = self.settings(grant.session, settings)
        owner = grant.owner
        source = "" if address is None or _is_loopback(address) else address
        if grant.key is not None:
            self._within_limits(grant.key, model)
        self._admit(owner, source)
        self.auth.redeem(grant)
        session = Session(
            self.config,
            effective,
            transport=transport.kind,
            clock=self.clock,
            ids=Ids(),
            vad=SileroVad(),
            model=self.pool.model,
            input_hz=transport.input_rate_hz,
            reports_every_s=transport.reports_every_s if isinstance(transport, RemotePlayer) else None,
            max_idle_s=max_idle_s,
            finest_hz=grant.key.finest_hz if grant.key is not None else None,
        )
        runner = SessionRunner(
            session,
            transport,
            self.pool,
            self.clock,
            self.metrics,
            self._budget.open(owner),
            self.share,
            on_end=self._ended,
            owner=owner,
            address=source,
        )
        self._runners.add(runner)
        self._usage.began(Visit(session.id, grant.name, transport.kind, self.pool.model, self.clock.now_s()))
        self.metrics.sessions.labels(transport.kind).inc()
        log.info("%s: opened over %s", session.id, transport.kind)
        return runner

    def _within_limits(self, key: NamedKey, model: str | None) -> None:
        """Raises `NoCapacity` where a key has used up what it may, `ProtocolError` for a model that is not for it."""
        if key.models and model is not None and model not in key.models:
            raise ProtocolError(
                "model_not_allowed",
                f"This key opens {' or '.join(key.models)} only, not {model[:64]!r}.",
                param="model",
            )
        if key.max_sessions and self._usage.count(key.name) >= key.max_sessions:
            self._refuse("sessions_per_key", f"All {key.max_sessions} sessions of this key are in use")
        spent = self._usage.minutes(key.name, self.clock.now_s(), self.clock.unix_s())
        if key.minutes_per_day and spent >= key.minutes_per_day:
            self._refuse(
                "minutes_per_day", f"The {key.minutes_per_day:g} minutes of this key for today (UTC) are used up"
            )

    def _admit(self, owner: str, address: str) -> None:
        """Raises `NoCapacity` where there is no room for another session, or not for another of these."""
        limits, all_of_them = self.config.limits, tuple(self._runners)
        if self.draining:
            raise NoCapacity("The server is shutting down; connect again in a moment.")
        if len(all_of_them) >= self.config.session.max_sessions:
            self._refuse("max_sessions", f"All {self.config.session.max_sessions} sessions are in use")
        of_key = sum(runner.owner == owner for runner in all_of_them) if owner and limits.sessions_per_key else 0
        if limits.sessions_per_key and of_key >= limits.sessions_per_key:
            self._refuse("sessions_per_key", f"All {limits.sessions_per_key} sessions of this key are in use")
        of_address = sum(runner.address == address for runner in all_of_them) if address else 0
        if limits.sessions_per_address and of_address >= limits.sessions_per_address:
            self._refuse("sessions_per_address", f"All {limits.sessions_per_address} sessions of this address are open")
        if not self.pool.ready:
            self._refuse("no_worker", f"No session can be opened now: {self.pool.why_not_ready}")
        engaged = sum(runner.engaged for runner in all_of_them)
        if engaged >= self.pool.slots:
            self._refuse("no_worker", "No session can be opened now: all places are taken")
        if engaged >= self.pool.capacity:
            self._refuse("load", f"No session can be opened now: {engaged} are as many as can be answered in time")

    def _refuse(self, reason: str, why: str) -> None:
        self.metrics.refused.labels(reason).inc()
        raise NoCapacity(f"{why}; try again later.")

    async def drain(self, at_once: asyncio.Event) -> None:
        """Takes no more sessions, lets answers come to their end for `http.drain_s` or until `at_once`, then ends all
        sessions: their clients are told to connect elsewhere."""
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.config.http.drain_s
        while self._runners:
            last = at_once.is_set() or loop.time() >= deadline_s
            for runner in tuple(self._runners):
                if last or not runner.answering:
                    runner.close(1001, "the server is going away")
            if last or all(runner.closed for runner in self._runners):
                return
            await asyncio.sleep(_DRAIN_POLL_S)

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
            self._usage.ended(runner.session_id, runner.end_reason, self.clock.now_s(), self.clock.unix_s())
            if self._tidying is None:
                self._tidying = asyncio.get_running_loop().call_later(_TIDY_AFTER_S, self._tidy)

    def _tidy(self) -> None:
        """What sessions that have ended took goes back to the system, beside the loop."""
        self._tidying = None
        asyncio.get_running_loop().run_in_executor(None, give_back_all)


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
