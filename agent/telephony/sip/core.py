"""What both sides of a user agent share: its calls, its transactions, and how a call within a dialog ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from sipmessage import Request, Response

from agent.clock import Clock
from agent.telephony.sip.call import SipCall, SipHappening
from agent.telephony.sip.dialog import Local, new_tag
from agent.telephony.sip.digest import DigestServer
from agent.telephony.sip.message import Peer
from agent.telephony.sip.transaction import NewResponse, TimedOut, Transaction, Transactions

# What a response to one of our requests means; None is a time-out.
Reaction = Callable[[NewResponse | None], list[SipHappening]]


class Core(ABC):
    """`auth` challenges whoever calls from an address that is not `trusted`; without both, everybody may call."""

    def __init__(
        self,
        us: Local,
        clock: Clock,
        *,
        auth: DigestServer | None = None,
        trusted: frozenset[str] = frozenset(),
        max_calls: int = 64,
    ) -> None:
        self.us = us
        self.clock = clock
        self.auth = auth
        self.trusted = trusted
        self.max_calls = max_calls
        self.calls: dict[tuple[str, str, str], SipCall] = {}
        self.transactions = Transactions()
        self.tag = new_tag()  # for answers outside of any dialog
        self._reactions: dict[tuple[str, ...], Reaction] = {}

    def take_sent(self) -> list[tuple[bytes, Peer]]:
        """What is to go out, in order."""
        sent, self.transactions.sent = self.transactions.sent, []
        return sent

    @abstractmethod
    def hang_up(self, call: SipCall) -> None:
        """Ends a call in whatever state it is."""

    def _reply(self, transaction: Transaction, response: Response) -> None:
        self.transactions.respond(transaction, response, self.clock.now_s())

    def _send(self, request: Request, peer: Peer, reaction: Reaction) -> Transaction:
        transaction = self.transactions.request(request, peer, self.clock.now_s())
        self._reactions[transaction.key] = reaction
        return transaction

    def _reacted(self, new: NewResponse) -> list[SipHappening]:
        if new.transaction is None:
            return []
        if new.response.code < 200:
            reaction = self._reactions.get(new.transaction.key)
        else:
            reaction = self._reactions.pop(new.transaction.key, None)
        return reaction(new) if reaction is not None else []

    def _timed_out(self, timed_out: TimedOut) -> list[SipHappening]:
        reaction = self._reactions.pop(timed_out.transaction.key, None) if timed_out.is_client else None
        return reaction(None) if reaction is not None else []

    def _call_of(self, message: Request) -> SipCall | None:
        tags = (message.to_address.parameters.get("tag") or "", message.from_address.parameters.get("tag") or "")
        return self.calls.get((message.call_id, *tags))

    def _forget(self, call: SipCall) -> None:
        call.state, call.repeated, call.timer = "ended", None, None
        self.calls.pop(call.dialog.key, None)
