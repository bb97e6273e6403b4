"""What services of one cluster owe each other: copies of their sessions, and the way by which a client whose service is
gone goes on at another.

    the client brings a token that is unknown here ──► the store has a copy ──► a session is made of it, waiting for its
    client as if the connection had been lost here ──► it is resumed as every other
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from agent.cluster.copies import Copies, Store
from agent.cluster.messages import ControlError
from agent.cluster.store import Claimed, Owner
from agent.dialogue.restoring import CopyError, read_head, restore
from agent.dialogue.session import Session
from agent.ids import Ids, secret
from agent.server.auth import Grant
from agent.server.keeper import ResumeRefused
from agent.turn.silero import SileroVad

if TYPE_CHECKING:
    from agent.server.runner import SessionRunner
    from agent.server.service import Service

log = logging.getLogger("agogic.cluster")

FLUSH_S = 1.0


class _Away:
    """In place of the connection that the other service had."""

    def __init__(self, kind: Literal["websocket", "webrtc", "telephone"]) -> None:
        self.kind = kind
        self.input_rate_hz: int | None = None

    def send_event(self, event: bytes) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


class Neighbours:
    """Of one service; `run` beside it."""

    def __init__(self, service: Service, store: Store) -> None:
        self.name = secret("service")
        self._service = service
        self._copies: Copies[SessionRunner] = Copies(store, self.name, service.keeper.tokens)

    async def run(self) -> None:
        await self._copies.run()

    def opened(self, runner: SessionRunner, owner: Owner) -> None:
        self._copies.opened(runner, owner)

    def changed(self, runner: SessionRunner) -> None:
        self._copies.changed(runner)

    def ended(self, runner: SessionRunner) -> None:
        self._copies.ended(runner)

    async def flush(self) -> bool:
        """Whether sessions can be left to others now."""
        return await self._copies.flush(FLUSH_S)

    def leave(self, runner: SessionRunner) -> bool:
        """Leaves this session to whichever service its client comes to; False where it cannot be."""
        return self._copies.leave(runner)

    async def fetch(self, token: str, after: str, grant: Grant) -> None:
        """Takes the session of this token over, if a neighbour has one for that owner. What cannot be had is not there;
        raises `ResumeRefused` where the key that opened it is not good any more."""
        try:
            claimed = await self._copies.claim(token, grant.owner)
        except ControlError as error:
            log.warning("no session can be taken over now: %s", error)
            return
        # The answer took a while: somebody else may have come with the same token.
        if claimed is None or self._service.keeper.knows(token):
            return
        by = claimed.owner.key_sha256
        if by and self._service.keys.by_digest(by, self._service.clock.unix_s()) is None:
            raise ResumeRefused("resume_token_unknown", "The key that opened this session is not valid any more.")
        try:
            runner = self._adopt(claimed, after)
        except CopyError as error:
            log.error("%s cannot go on here: %s", claimed.session, error)
            return
        self._service.keeper.adopt(runner, token)
        runner.adopt()
        self._service.host(runner)
        log.info("%s: taken over from another service", claimed.session)

    def _adopt(self, claimed: Claimed, after: str) -> SessionRunner:
        assert claimed.parts is not None
        service = self._service
        served = service.models.default
        head, settings = read_head(claimed.parts)
        session = Session(
            service.config,
            settings,
            transport=head.transport,
            clock=service.clock,
            ids=Ids(head.stem),
            vad=SileroVad(),
            model=served.shown,
            abilities=served.pool.abilities,
            finest_hz=head.finest_hz,
        )
        restore(session, head, claimed.parts, after, service.clock)
        return service.runner_of(session, _Away(head.transport), served, claimed.owner, "")
