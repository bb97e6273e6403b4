"""One service's part in what a cluster agrees on about keys: it asks before it believes (`agent.cluster.ledger`).

A key without limits of its own, and an ephemeral one that is known here and good for many sessions, are asked about by
nobody: they open sessions as on one machine. Where the store does not answer within `ASK_S`, nobody waits for it until
it has answered again: limits count at this service alone meanwhile, and what cannot be known is refused for a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import msgspec

from agent.cluster.ledger import Admit, Code, Look, Mint, Reply, Report, Shared, Visiting
from agent.cluster.messages import ControlError
from agent.ids import secret
from agent.server.auth import ClientSecret, Grant, Unauthorized
from agent.server.keys import digest

if TYPE_CHECKING:
    from agent.server.service import Service

log = logging.getLogger("agogic.cluster")

ASK_S = 1.0
BEAT_S = 1.0
"""The store hears of us at least so often."""
APART_S = 0.05
LOOKS_PER_S = 50.0
"""Ephemeral keys that are unknown here, asked for; in a burst twice as many."""
_MOST_BYTES = 1024 * 1024


class LedgerStore(Protocol):
    async def ledger(self, data: bytes) -> bytes:
        """Raises `ControlError`."""
        ...


class Unanswered(Exception):
    """It cannot be known now; the message says what."""


class SharedKeys:
    """Of one service; `run` beside it."""

    def __init__(self, service: Service, store: LedgerStore) -> None:
        self._service = service
        self._store = store
        self._name = secret("service")
        self._number = 0
        self._life = ""
        self._answers = True
        self._news = asyncio.Event()
        self._looks, self._looked_s = 2 * LOOKS_PER_S, service.clock.now_s()

    def ended(self, name: str) -> None:
        """A session of this key is over: others may wait for its place."""
        if name in self._service.keys.limited:
            self._news.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            try:
                await self._report()
            except Unanswered as error:
                log.debug("%s", error)
            await asyncio.sleep(APART_S)

    # --- what a service asks ---

    async def learn(self, key: str) -> None:
        """An ephemeral key that another service minted is known here afterwards. Raises `Unanswered`."""
        if self._service.auth.knows(key):
            return
        now_s = self._service.clock.now_s()
        self._looks = min(2 * LOOKS_PER_S, self._looks + LOOKS_PER_S * (now_s - self._looked_s))
        self._looked_s = now_s
        if self._looks < 1:
            raise Unanswered("too many ephemeral keys are asked for that are unknown here")
        self._looks -= 1
        reply = await self._ask(Look(digest(key)))
        if reply.code == "settling":
            raise Unanswered("what other services have minted is not known yet")
        if reply.secret is not None:
            try:
                self._service.auth.adopt(_secret(key, reply.secret))
            except Unauthorized as error:
                raise Unanswered(str(error)) from error

    async def mint(self, minted: ClientSecret) -> bool:
        """Others know it from now on; False where the cluster has too many. Raises `Unanswered`."""
        return (await self._ask(Mint([_shared(minted)]))).code != "full"

    async def admit(self, session: str, grant: Grant) -> Code:
        """Whether this session, which is open here already, may be, or why not. Raises `Unanswered` where that is to be
        known."""
        key = grant.key
        limits = (key.max_sessions, key.minutes_per_day) if key is not None else (0, 0.0)
        once = grant.secret.value if grant.secret is not None and grant.secret.single_use else ""
        if not once and not any(limits):
            return ""
        self._number += 1
        asked = Admit(self._name, self._number, session, grant.name, *limits, digest(once) if once else "")
        try:
            reply = await self._ask(asked)
        except Unanswered:
            if once:
                raise
            return ""
        if reply.code in ("unknown", "settling"):
            raise Unanswered("it cannot be told now whether this ephemeral key was used")
        return reply.code

    # --- inside ---

    async def _ask(self, asked: Mint | Look | Admit) -> Reply:
        if not self._answers:
            raise Unanswered("the store of this cluster does not answer")
        return await self._told(asked)

    async def _told(self, asked: Mint | Look | Admit | Report) -> Reply:
        try:
            async with asyncio.timeout(ASK_S):
                data = await self._store.ledger(msgspec.msgpack.encode(asked))
        except (ControlError, TimeoutError) as error:
            why = str(error) or f"nothing for {ASK_S:g} s"
            if self._answers:
                log.warning("keys are not shared now, and limits count at this service alone: %s", why)
            self._answers = False
            raise Unanswered("the store of this cluster does not answer") from error
        reply = msgspec.msgpack.decode(data, type=Reply)
        if reply.life != self._life:
            self._news.set()
        return reply

    async def _report(self) -> None:
        """Raises `Unanswered`."""
        service, unix_s = self._service, self._service.clock.unix_s()
        self._number += 1
        report = service.visits()
        visits = {visit.session: Visiting(visit.name, began_unix_s, waits) for visit, began_unix_s, waits in report}
        reply = await self._told(Report(self._name, self._number, unix_s // 86_400, service.spent_s(), visits))
        if reply.life != self._life:
            for some in self._known():
                await self._told(Mint(some, again=self._life != ""))
            self._life = reply.life
        if not self._answers:
            log.warning("keys are shared again")
        self._answers = True
        for session in reply.end:
            service.end_kept(session)

    def _known(self) -> Iterator[list[Shared]]:
        some: list[Shared] = []
        size = 0
        for each in self._service.auth.alive():
            shared = _shared(each)
            some.append(shared)
            size += len(shared.session) + len(shared.digest)
            if size > _MOST_BYTES:
                yield some
                some, size = [], 0
        if some:
            yield some


def _shared(minted: ClientSecret) -> Shared:
    session = msgspec.json.encode(minted.session) if minted.session is not None else b""
    return Shared(digest(minted.value), minted.expires_at, session, minted.single_use, minted.used, minted.minted_by)


def _secret(key: str, shared: Shared) -> ClientSecret:
    session = msgspec.json.decode(shared.session) if shared.session else None
    return ClientSecret(
        key, shared.expires_at, session, len(shared.session), shared.single_use, shared.used, shared.minted_by
    )
