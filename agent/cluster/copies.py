"""Copies of our sessions, brought to the store of the cluster as they change, and sessions of others taken over.

One message at a time is on its way, and whatever happens meanwhile goes with the next: a copy is as old as that takes.
What a client is told of its session waits for it (`agent.cluster.holding`), the sound of an answer does not; what a
client received of that and the copy does not know is told by the ids of its events (`agent.dialogue.copying`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from agent.cluster.holding import Outgoing
from agent.cluster.messages import ControlError
from agent.cluster.store import Answer, Batch, Claim, Claimed, Owner, Update, digest
from agent.dialogue.copying import Changes, Copier
from agent.dialogue.session import Session

log = logging.getLogger("agogic.cluster")

APART_S = 0.02
"""Between two messages at least."""
BEAT_S = 1.0
"""The store hears of us at least so often."""
AGAIN_S = 0.5


class Store(Protocol):
    """Both raise `ControlError`."""

    async def update(self, data: bytes) -> bytes: ...

    async def claim(self, data: bytes) -> bytes: ...


class Copied(Protocol):
    """A session as it is copied."""

    session: Session
    out: Outgoing

    @property
    def session_id(self) -> str: ...

    def moved(self) -> None:
        """Another service has it: it is over here."""
        ...


S = TypeVar("S", bound=Copied)


class Copies(Generic[S]):
    """`tokens` gives those by which a session may be resumed. `run` brings the copies until cancelled."""

    def __init__(self, store: Store, service: str, tokens: Callable[[S], list[str]]) -> None:
        self._store = store
        self._service = service
        self._tokens = tokens
        self._copiers: dict[S, tuple[Copier, Owner]] = {}
        self._whole: set[S] = set()
        self._dirty: dict[S, None] = {}
        self._ended: list[str] = []
        self._news = asyncio.Event()
        self._life = ""
        self._bringing = asyncio.Lock()

    @property
    def count(self) -> int:
        return len(self._copiers)

    def opened(self, session: S, owner: Owner) -> None:
        """From now on it is copied."""
        self._copiers[session] = (Copier(session.session), owner)
        self._whole.add(session)
        self.changed(session)

    def changed(self, session: S) -> None:
        if session in self._copiers:
            self._dirty[session] = None
            self._news.set()

    def ended(self, session: S) -> None:
        """There is nothing left to resume."""
        if self._copiers.pop(session, None) is not None:
            self._dirty.pop(session, None)
            self._whole.discard(session)
            self._ended.append(session.session_id)
            self._news.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._news.wait()
            except TimeoutError:
                pass
            try:
                await self.bring()
            except ControlError as error:
                log.warning("sessions are not copied now: %s", error)
                await asyncio.sleep(AGAIN_S)
            await asyncio.sleep(APART_S)

    async def bring(self) -> None:
        """All that changed since the last time. Raises `ControlError`; then everything is brought anew."""
        async with self._bringing:
            await self._bring()

    async def flush(self, within_s: float) -> bool:
        """Whether the store has all that had happened when this was called."""
        try:
            async with asyncio.timeout(within_s):
                await self.bring()
        except (ControlError, TimeoutError) as error:
            log.warning("sessions cannot be left to other services: %s", error or "the store does not answer")
            return False
        return True

    def leave(self, session: S) -> bool:
        """Its copy stays for whoever claims it, and what its client was not told yet is told there. False where there
        is none."""
        if session not in self._copiers or session in self._whole:
            return False
        self._forget(session)
        session.out.drop()
        return True

    async def _bring(self) -> None:
        self._news.clear()
        ended, self._ended = self._ended, []
        dirty, self._dirty = list(self._dirty), {}
        updates = [self._update(session) for session in dirty]
        updates += [Update(name, [], Owner(""), Changes(), ended=True) for name in ended]
        try:
            data = await self._store.update(msgspec.msgpack.encode(Batch(self._service, updates)))
        except (ControlError, asyncio.CancelledError):
            self._ended = ended + self._ended
            self._anew(dirty)
            raise
        self._heed(msgspec.msgpack.decode(data, type=Answer))
        for session in dirty:
            if session in self._copiers and session not in self._whole:
                session.out.copied()

    async def claim(self, token: str, owner: str) -> Claimed | None:
        """The copy of the session that this token resumes, which is ours from now on; None where there is none. Raises
        `ControlError`."""
        asked = msgspec.msgpack.encode(Claim(self._service, digest(token), owner))
        claimed = msgspec.msgpack.decode(await self._store.claim(asked), type=Claimed)
        return claimed if claimed.parts is not None else None

    def _update(self, session: S) -> Update:
        copier, owner = self._copiers[session]
        whole = session in self._whole
        self._whole.discard(session)
        session.out.copying()
        tokens = [digest(token) for token in self._tokens(session)]
        return Update(session.session_id, tokens, owner, copier.changes(), whole=whole)

    def _heed(self, answer: Answer) -> None:
        if self._life not in ("", answer.life):
            self._anew(list(self._copiers))
        self._life = answer.life
        by_id = {session.session_id: session for session in self._copiers}
        self._anew([by_id[name] for name in answer.unknown if name in by_id])
        for name in answer.full:
            log.error("%s is not copied any more: the store is full", name)
            self._forget(session := by_id.get(name))
            if session is not None:
                session.out.let_go()
        for name in answer.moved:
            session = by_id.get(name)
            self._forget(session)
            if session is not None:
                log.info("%s goes on at another service", name)
                session.moved()

    def _anew(self, sessions: list[S]) -> None:
        """All of them is to be brought."""
        for session in sessions:
            if session in self._copiers:
                self._copiers[session] = (Copier(session.session), self._copiers[session][1])
                self._whole.add(session)
                self.changed(session)

    def _forget(self, session: S | None) -> None:
        if session is not None:
            self._copiers.pop(session, None)
            self._dirty.pop(session, None)
            self._whole.discard(session)
