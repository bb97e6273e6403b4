"""The service: what all connections share, and the birth and death of sessions.

A session is let in where it can count on a place on a worker: those that need one, or used one in the last half minute,
are as many as there are places at most. Who only holds a connection open does not count.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Coroutine
from typing import NoReturn, Protocol

import msgspec

from agent.clock import Clock, SystemClock
from agent.cluster.copies import Store
from agent.cluster.neighbours import Neighbours
from agent.cluster.shared_keys import LedgerStore, SharedKeys, Unanswered
from agent.cluster.store import Owner
from agent.config import ConfigError, ServerConfig, secrets_of
from agent.dialogue.session import Session
from agent.ids import Ids
from agent.memory import give_back_all
from agent.protocol.errors import ProtocolError
from agent.protocol.session_object import SessionSettings, default_settings, updated
from agent.recording.recorder import Recorder
from agent.recording.session import RecordedSession
from agent.server.auth import TOO_MANY_SECRETS, USED, Authenticator, ClientSecret, Grant, Unauthorized
from agent.server.budget import Budget
from agent.server.fairness import LoopShare
from agent.server.keeper import Keeper, ResumeRefused
from agent.server.keys import KeyRing, NamedKey
from agent.server.metrics import Metrics
from agent.server.models import Models, ServedModel
from agent.server.runner import SessionRunner
from agent.server.usage import Usage, Visit
from agent.server.workers import NotReplaced, WorkerPool
from agent.telemetry import start as start_telemetry
from agent.telemetry.moments import TurnMoments
from agent.transports.base import RemotePlayer, Transport
from agent.turn.silero import SileroVad

log = logging.getLogger("agogic.service")

JsonObject = dict[str, object]
RETRY_AFTER_S = 2
CODE_GOES_ON = 1012  # to our clients no farewell: they come back by their token
_DRAIN_POLL_S = 0.05
_TIDY_AFTER_S = 2.0


class NoCapacity(Exception):
    """No session can be opened now; the message says why, and trying again later may help."""


class ClusterStore(Store, LedgerStore, Protocol):
    """What services of a cluster share."""


class Service:
    def __init__(
        self,
        config: ServerConfig,
        models: Models | WorkerPool,
        clock: Clock | None = None,
        store: ClusterStore | None = None,
    ) -> None:
        """`models`: all that are served, or the workers of the only one. `store`: where other services find our
        sessions and ephemeral keys, and we theirs. Raises `ConfigError` where sessions are to be recorded, or telemetry
        to be sent, and cannot be."""
        self.config = config
        self.models = models if isinstance(models, Models) else Models([ServedModel("", 1.0, models)])
        self.clock = clock or SystemClock()
        self.keys = KeyRing(config.http.api_keys, config.http.keys_file)
        self.admins = KeyRing(config.http.admin_keys)
        self.auth = Authenticator(self.keys, self.clock)
        self._usage = Usage()
        self.metrics = Metrics()
        self.telemetry = start_telemetry(config.telemetry, self.metrics.registry, self.clock.now_s)
        self.share = LoopShare()
        self.recorder = Recorder(config.recording, secrets_of(config)) if config.recording.folder else None
        self.calls: dict[str, SessionRunner] = {}
        self.stopping = asyncio.Event()
        self.at_once = asyncio.Event()
        self.keeper: Keeper[SessionRunner] = Keeper(config.session.resume_s, config.session.max_kept)
        self.neighbours = Neighbours(self, store) if store is not None and self.recorder is None else None
        self.auth.has_neighbours = self.neighbours is not None
        self.shared_keys = SharedKeys(self, store) if store is not None else None
        self._budget = Budget(
            config.limits, lambda key: self.keeper.make_room(lambda kept: key is None or kept.owner == key)
        )
        self._runners: set[SessionRunner] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[object]] = set()
        self._tidying: asyncio.TimerHandle | None = None

    @property
    def draining(self) -> bool:
        """Whether the server was told to go: it takes no more sessions."""
        return self.stopping.is_set()

    @property
    def session_count(self) -> int:
        return len(self._runners)

    @property
    def held_bytes(self) -> int:
        """What all sessions hold in memory, as far as it is counted."""
        return self._budget.held

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
        it, or let us `host` it. `address`: of the client, as far as it is known; `model`: the name it asks for.

        Raises `NoCapacity`, or `ProtocolError` if the session object does not fit.
        """
        effective = self.settings(grant.session, settings)
        owner = grant.owner
        source = "" if address is None or _is_loopback(address) else address
        asked = self._asked(model, settings, grant.session)
        if grant.key is not None:
            self._within_limits(grant.key, asked or model)
        self._admit(owner, source)
        served = self._with_room(asked, grant.key)
        self.auth.redeem(grant)
        kind = Session if self.recorder is None else RecordedSession
        session = kind(
            self.config,
            effective,
            transport=transport.kind,
            clock=self.clock,
            ids=Ids(),
            vad=SileroVad(),
            model=served.shown,
            input_hz=transport.input_rate_hz,
            reports_every_s=transport.reports_every_s if isinstance(transport, RemotePlayer) else None,
            max_idle_s=max_idle_s,
            abilities=served.pool.abilities,
            finest_hz=grant.key.finest_hz if grant.key is not None else None,
        )
        if self.recorder is not None and isinstance(session, RecordedSession):
            session.record(self.recorder)
        runner = self.runner_of(session, transport, served, Owner.of(grant), source)
        log.info("%s: opened over %s", session.id, transport.kind)
        return runner

    def runner_of(
        self, session: Session, transport: Transport, served: ServedModel, owner: Owner, address: str
    ) -> SessionRunner:
        """What runs a session that was just made."""
        neighbours = self.neighbours if transport.kind != "telephone" else None
        runner = SessionRunner(
            session,
            transport,
            served,
            self.clock,
            self.metrics,
            self._budget.open(owner.owner),
            self.share,
            self._ended,
            self.keeper,
            owner=owner.owner,
            key_name=owner.key_name,
            address=address,
            recorded=self.recorder.kind if self.recorder is not None else None,
            changed=neighbours.changed if neighbours is not None else None,
            moments=TurnMoments(session.id, self.telemetry.turn if self.telemetry is not None else None),
        )
        self._runners.add(runner)
        self._usage.began(Visit(session.id, owner.key_name, transport.kind, served.shown, self.clock.now_s()))
        self.metrics.sessions.labels(transport.kind).inc()
        self.metrics.model_sessions.labels(served.shown).inc()
        if neighbours is not None:
            neighbours.opened(runner, owner)
        return runner

    def host(self, runner: SessionRunner) -> None:
        """Runs it to its end, which may come later than that of the connection by which it began."""
        task = asyncio.create_task(runner.run(), name=f"session {runner.session_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def fetch(self, token: str, after: str, grant: Grant) -> None:
        """Where the session of this token is a neighbour's, it is ours from now on."""
        if self.neighbours is not None and not self.draining and not self.keeper.knows(token):
            await self.neighbours.fetch(token, after, grant)

    def resumable(self, token: str, after: str, grant: Grant) -> SessionRunner:
        """The session that goes on by this token after that event. Raises `ResumeRefused`, or `NoCapacity` where the
        server is about to stop."""
        if self.draining:
            raise NoCapacity("The server is shutting down; connect again in a moment.")
        try:
            found = self.keeper.find(token, grant.owner, after)
        except ResumeRefused as refused:
            self.metrics.resumed.labels(refused.code).inc()
            raise
        return found

    # --- keys, where several services have them ---

    async def learn(self, key: str) -> None:
        """If another service minted this ephemeral key, it is known here afterwards. Raises `NoCapacity` where that
        cannot be told now."""
        if self.shared_keys is not None:
            try:
                await self.shared_keys.learn(key)
            except Unanswered as error:
                self._refuse("keys_unknown", f"This ephemeral key cannot be checked now: {error}")

    async def share_secret(self, minted: ClientSecret) -> None:
        """Other services know it from now on. Raises `NoCapacity`, or `Unauthorized` where there are too many; then it
        is none."""
        if self.shared_keys is None:
            return
        try:
            fits = await self.shared_keys.mint(minted)
        except Unanswered as error:
            self.auth.forget(minted)
            self._refuse("keys_unknown", f"No ephemeral key can be minted now: {error}")
        if not fits:
            self.auth.forget(minted)
            raise Unauthorized(TOO_MANY_SECRETS)

    async def confirm(self, runner: SessionRunner, grant: Grant) -> None:
        """What was just opened holds in the whole cluster. Raises `NoCapacity` or `Unauthorized`; then whoever opened
        the session is to abandon it."""
        if self.shared_keys is None:
            return
        key, once = grant.key, grant.secret if grant.secret is not None and grant.secret.single_use else None
        try:
            code = await self.shared_keys.admit(runner.session_id, grant)
        except Unanswered as error:
            if once is not None:
                once.used = False
            self._refuse("keys_unknown", f"This ephemeral key cannot be checked now: {error}")
        if code == "used":
            raise Unauthorized(USED)
        if code and once is not None:
            once.used = False
        if code and key is not None:
            self._refuse_key(key, code)

    def visits(self) -> list[tuple[Visit, int, bool]]:
        """Open sessions of keys that have limits, when each began (unix), and whether it waits for its client."""
        limited, now_s, now_unix_s = self.keys.limited, self.clock.now_s(), self.clock.unix_s()
        waiting = {runner.session_id for runner in self._runners if self.keeper.waits(runner)} if limited else ()
        return [
            (visit, now_unix_s - round(now_s - visit.began_s), visit.session in waiting)
            for visit in self._usage.open_sessions()
            if visit.name in limited
        ]

    def spent_s(self) -> dict[str, float]:
        """Today, by keys that have limits, on sessions that are over."""
        limited = self.keys.limited
        spent = self._usage.spent_s(self.clock.unix_s())
        return {name: seconds for name, seconds in spent.items() if name in limited}

    def end_kept(self, session: str) -> None:
        """Its room is needed at another service, unless its client has come back."""
        self.keeper.make_room(lambda runner: runner.session_id == session)

    def _within_limits(self, key: NamedKey, model: str | None) -> None:
        """Raises `NoCapacity` where a key has used up what it may, `ProtocolError` for a model that is not for it."""
        if key.models and model is not None and model not in key.models:
            raise ProtocolError(
                "model_not_allowed",
                f"This key opens {' or '.join(key.models)} only, not {model[:64]!r}.",
                param="model",
            )
        if key.max_sessions and self._is_full(key.max_sessions, lambda runner: runner.key_name == key.name):
            self._refuse_key(key, "sessions")
        spent = self._usage.minutes(key.name, self.clock.now_s(), self.clock.unix_s())
        if key.minutes_per_day and spent >= key.minutes_per_day:
            self._refuse_key(key, "minutes")

    def roll(self) -> None:
        """Replaces all workers, one after the other, by what is configured now; the log says what came of it."""

        async def rolled() -> None:
            try:
                await self.models.roll()
                log.warning("all workers were replaced")
            except (ConfigError, NotReplaced) as error:
                log.error("not all workers were replaced: %s", error)

        self.perform(rolled())

    def perform(self, work: Coroutine[None, None, object]) -> asyncio.Task[object]:
        """Does something to models or workers to its end, whoever stops waiting for it."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    async def end_all(self) -> None:
        """Whatever still runs, at once."""
        ending = (*self._running, *self._working)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _admit(self, owner: str, address: str) -> None:
        """Raises `NoCapacity` where there is no room for another session, or not for another of these."""
        limits = self.config.limits
        if self.draining:
            raise NoCapacity("The server is shutting down; connect again in a moment.")
        if self._is_full(self.config.session.max_sessions, lambda runner: True):
            self._refuse("max_sessions", f"All {self.config.session.max_sessions} sessions are in use")
        if owner and limits.sessions_per_key and self._is_full(limits.sessions_per_key, lambda r: r.owner == owner):
            self._refuse("sessions_per_key", f"All {limits.sessions_per_key} sessions of this key are in use")
        here = limits.sessions_per_address
        if address and here and self._is_full(here, lambda runner: runner.address == address):
            self._refuse("sessions_per_address", f"All {here} sessions of this address are open")

    def _asked(self, model: str | None, *sessions: JsonObject | None) -> str | None:
        """The name of a model that is asked for: in the address or, if that names none of ours, in session objects."""
        names = (model, *(session.get("model") for session in sessions if session is not None))
        return next((name for name in names if isinstance(name, str) and self.models.has(name)), None)

    def _with_room(self, name: str | None, key: NamedKey | None) -> ServedModel:
        """The model for a new session that asks for this name. Raises `NoCapacity`."""
        refusals = []
        for served in self.models.choose(name, key.models if key is not None else ()):
            refusal = self._no_room(served)
            if refusal is None:
                return served
            refusals.append(refusal)
        if not refusals:
            raise ProtocolError("model_not_allowed", "No model is served that this key opens.", param="model")
        self._refuse(*refusals[0])

    def _no_room(self, served: ServedModel) -> tuple[str, str] | None:
        """Why no more sessions can be opened with this model now."""
        pool = served.pool
        if not pool.ready:
            return "no_worker", f"No session can be opened now: {pool.why_not_ready}"
        engaged = sum(runner.engaged for runner in self._runners if not runner.closed and runner.model is served)
        if engaged >= pool.slots:
            return "no_worker", "No session can be opened now: all places are taken"
        if engaged >= pool.capacity:
            return "load", f"No session can be opened now: {engaged} are as many as can be answered in time"
        return None

    @property
    def has_room(self) -> bool:
        """Whether one more session may be open, whoever's it is."""
        return not self._is_full(self.config.session.max_sessions, lambda runner: True)

    def _is_full(self, limit: int, of: Callable[[SessionRunner], bool]) -> bool:
        """Whether as many of these are open as may be, and none of them waits for its client and can be ended."""
        while sum(of(runner) for runner in self._runners if not runner.closed) >= limit:
            if not self.keeper.make_room(of):
                return True
        return False

    def _refuse_key(self, key: NamedKey, code: str) -> NoReturn:
        if code == "sessions":
            self._refuse("sessions_per_key", f"All {key.max_sessions} sessions of this key are in use")
        self._refuse("minutes_per_day", f"The {key.minutes_per_day:g} minutes of this key for today (UTC) are used up")

    def _refuse(self, reason: str, why: str) -> NoReturn:
        self.metrics.refused.labels(reason).inc()
        raise NoCapacity(f"{why}; try again later.")

    def stop(self, *, at_once: bool = False) -> None:
        """The server is to go: no more sessions are taken, and whoever runs it is to `drain`. The second time, or if it
        is to be `at_once`, nothing is waited for."""
        if at_once or self.stopping.is_set():
            self.at_once.set()
        self.stopping.set()

    async def drain(self) -> None:
        """Lets turns that have begun come to the end of their answers, for `http.drain_s` or until `at_once`, then ends
        all sessions: their clients are told to connect elsewhere. Whoever is at nothing is told at once. In a cluster
        sessions are left to the other services, and their clients go on there."""
        self.stopping.set()
        self.models.close()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.config.http.drain_s
        while self._runners:
            last = self.at_once.is_set() or loop.time() >= deadline_s
            others = self.neighbours
            if not any(self._may_go(runner, last) for runner in self._runners) or not (others and await others.flush()):
                others = None
            for runner in tuple(self._runners):
                if self._may_go(runner, last):
                    if others is not None and others.leave(runner):
                        runner.close(CODE_GOES_ON, "the session goes on at another server")
                    else:
                        runner.close(1001, "the server is going away")
            if last or all(runner.closed for runner in self._runners):
                return
            await asyncio.sleep(_DRAIN_POLL_S)

    def _may_go(self, runner: SessionRunner, last: bool) -> bool:
        return not runner.closed and (last or not runner.in_turn or self.keeper.waits(runner))

    def read_gauges(self) -> None:
        """Brings the metrics up to date that nobody counts as they happen."""
        metrics = self.metrics
        metrics.kept.set(self.keeper.count)
        metrics.held.set(self.held_bytes)
        metrics.ready.set(self.models.ready and not self.draining)
        metrics.gauge(self.models)

    def session_snapshot(self, settings: SessionSettings) -> JsonObject:
        """A session object that no session has yet, for `client_secrets`."""
        preview: JsonObject = {"type": "realtime", "object": "realtime.session", "id": Ids().new("sess")}
        rendered: JsonObject = msgspec.to_builtins(settings)
        return preview | {"model": self.models.default.shown} | rendered

    def _ended(self, runner: SessionRunner) -> None:
        if runner in self._runners:
            self._runners.discard(runner)
            self.keeper.ended(runner)
            if self.neighbours is not None:
                self.neighbours.ended(runner)
            for call_id in [key for key, value in self.calls.items() if value is runner and runner.forgets_calls]:
                del self.calls[call_id]
            self.metrics.sessions.labels(runner.transport_kind).dec()
            self.metrics.model_sessions.labels(runner.model_name).dec()
            log.info("%s: ended", runner.session_id)
            self._usage.ended(runner.session_id, runner.end_reason, self.clock.now_s(), self.clock.unix_s())
            if self.shared_keys is not None:
                self.shared_keys.ended(runner.key_name)
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
