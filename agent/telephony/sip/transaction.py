"""Transactions (RFC 3261, section 17): retransmissions and their ends, for both sides, over UDP and TCP.

What comes up is new: every request once, every response that matters. Times are seconds on the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sipmessage import CSeq, Request, Response, Via

from agent.telephony.sip.message import Peer, encode, response_to

T1, T2, T4 = 0.5, 4.0, 5.0
TIMEOUT_S = 64 * T1
MAX_TRANSACTIONS = 4096
COOKIE = "z9hG4bK"

Key = tuple[str, ...]
State = Literal["trying", "proceeding", "completed", "confirmed", "terminated"]


@dataclass
class Transaction:
    """Either side's; `repeat_s` is when something is sent again, `ends_s` when the state ends by itself."""

    key: Key
    request: Request
    peer: Peer
    state: State = "trying"
    message: bytes = b""
    interval_s: float = T1
    repeat_s: float | None = None
    ends_s: float | None = None

    @property
    def is_invite(self) -> bool:
        return self.request.method == "INVITE"

    @property
    def reliable(self) -> bool:
        return self.peer.transport == "tcp"


@dataclass(frozen=True)
class NewRequest:
    """`transaction` is None for the ACK of a 2xx, which is one of its own."""

    request: Request
    source: Peer
    transaction: Transaction | None


@dataclass(frozen=True)
class NewResponse:
    """`transaction` is None for another 2xx of an INVITE whose transaction is over."""

    response: Response
    source: Peer
    transaction: Transaction | None


@dataclass(frozen=True)
class TimedOut:
    """The other side said nothing: to our request, or no ACK to our refusal."""

    transaction: Transaction
    is_client: bool


@dataclass
class Transactions:
    """`sent` collects what goes out; whoever owns the sockets empties it."""

    sent: list[tuple[bytes, Peer]] = field(default_factory=list)
    servers: dict[Key, Transaction] = field(default_factory=dict)
    clients: dict[Key, Transaction] = field(default_factory=dict)

    # --- server side ---

    def receive_request(self, request: Request, source: Peer, now_s: float) -> NewRequest | None:
        """None for what has been here before."""
        key = _server_key(request)
        known = self.servers.get(key)
        if request.method == "ACK":
            if known is not None and known.state in ("completed", "confirmed"):
                self._confirm(known, now_s)
                return None
            return NewRequest(request, source, None)
        if known is not None:
            if known.message and known.state in ("proceeding", "completed"):
                self.sent.append((known.message, known.peer))
            return None
        if len(self.servers) >= MAX_TRANSACTIONS:
            busy = response_to(request, 503, why="too many requests at once")
            busy.headers.add("Retry-After", "5")
            self.sent.append((encode(busy), source))
            return None
        transaction = Transaction(key, request, source)
        self.servers[key] = transaction
        return NewRequest(request, source, transaction)

    def invite_of(self, cancel: Request) -> Transaction | None:
        """The INVITE that a CANCEL is about."""
        return self.servers.get((*_server_key(cancel)[:-1], "INVITE"))

    def respond(self, transaction: Transaction, response: Response, now_s: float) -> None:
        if transaction.state in ("completed", "confirmed", "terminated"):
            return
        transaction.message = encode(response)
        self.sent.append((transaction.message, transaction.peer))
        if response.code < 200:
            transaction.state = "proceeding"
        elif transaction.is_invite and response.code < 300:
            # The 2xx is repeated by the dialog, end to end (section 13.3.1.4). The transaction stays a while, so that
            # an INVITE which is still on its way is not taken for another call.
            transaction.state, transaction.ends_s = "completed", now_s + TIMEOUT_S
        else:
            transaction.state = "completed"
            transaction.ends_s = now_s + (TIMEOUT_S if transaction.is_invite or not transaction.reliable else 0.0)
            if transaction.is_invite and not transaction.reliable:
                transaction.interval_s, transaction.repeat_s = T1, now_s + T1

    def _confirm(self, transaction: Transaction, now_s: float) -> None:
        transaction.state, transaction.repeat_s = "confirmed", None
        transaction.ends_s = now_s + (0.0 if transaction.reliable else T4)

    # --- client side ---

    def request(self, request: Request, peer: Peer, now_s: float) -> Transaction:
        """Sends a request (not ACK) whose topmost Via has its branch."""
        transaction = Transaction(_client_key(request), request, peer, message=encode(request))
        self.clients[transaction.key] = transaction
        self.sent.append((transaction.message, peer))
        if not transaction.reliable:
            transaction.repeat_s = now_s + T1
        transaction.ends_s = now_s + TIMEOUT_S
        return transaction

    def receive_response(self, response: Response, source: Peer, now_s: float) -> NewResponse | None:
        transaction = self.clients.get(_client_key(response))
        if transaction is None:
            is_late_2xx = response.cseq.method == "INVITE" and 200 <= response.code < 300
            return NewResponse(response, source, None) if is_late_2xx else None
        if transaction.state == "completed":
            if transaction.is_invite and response.code >= 300:
                self.sent.append((transaction.message, transaction.peer))  # the ACK again
            return None
        if response.code < 200:
            transaction.state = "proceeding"
            if transaction.is_invite:
                transaction.repeat_s = transaction.ends_s = None
            elif transaction.repeat_s is not None:
                transaction.interval_s, transaction.repeat_s = T2, now_s + T2
        elif transaction.is_invite and response.code < 300:
            self._forget_client(transaction)
        else:
            transaction.state, transaction.repeat_s = "completed", None
            wait_s = TIMEOUT_S if transaction.is_invite else T4
            transaction.ends_s = now_s + (0.0 if transaction.reliable else wait_s)
            if transaction.is_invite:
                transaction.message = encode(_ack_of_refusal(transaction.request, response))
                self.sent.append((transaction.message, transaction.peer))
        return NewResponse(response, source, transaction)

    def unreachable(self, peer: Peer, now_s: float) -> None:
        """No connection to `peer` is to be had: whatever waits for its answer waits no longer (section 8.1.3.1)."""
        for transaction in self.clients.values():
            if transaction.peer == peer and transaction.state in ("trying", "proceeding"):
                transaction.ends_s = now_s

    # --- time ---

    def poll(self, now_s: float) -> list[TimedOut]:
        timed_out: list[TimedOut] = []
        for side, is_client in ((self.servers, False), (self.clients, True)):
            for transaction in list(side.values()):
                if transaction.ends_s is not None and now_s >= transaction.ends_s:
                    unanswered = is_client and transaction.state in ("trying", "proceeding")
                    unconfirmed = not is_client and transaction.is_invite and transaction.repeat_s is not None
                    if unanswered or unconfirmed:
                        timed_out.append(TimedOut(transaction, is_client))
                    transaction.state = "terminated"
                    del side[transaction.key]
                elif transaction.repeat_s is not None and now_s >= transaction.repeat_s:
                    self.sent.append((transaction.message, transaction.peer))
                    doubled = 2 * transaction.interval_s
                    unlimited = is_client and transaction.is_invite
                    transaction.interval_s = doubled if unlimited else min(doubled, T2)
                    transaction.repeat_s = now_s + transaction.interval_s
        return timed_out

    def next_s(self) -> float | None:
        """When `poll` has something to do."""
        times = [
            at
            for side in (self.servers, self.clients)
            for transaction in side.values()
            for at in (transaction.ends_s, transaction.repeat_s)
            if at is not None
        ]
        return min(times, default=None)

    def _forget_client(self, transaction: Transaction) -> None:
        transaction.state = "terminated"
        self.clients.pop(transaction.key, None)


def _server_key(request: Request) -> Key:
    """Section 17.2.3; for peers of RFC 2543, whose branches say nothing, everything else that can tell."""
    top = request.via[0]
    method = "INVITE" if request.method == "ACK" else request.method
    branch = top.parameters.get("branch") or ""
    if branch.startswith(COOKIE):
        return (branch, top.host.lower(), str(top.port or 5060), method)
    from_tag = request.from_address.parameters.get("tag") or ""
    return (str(request.uri), from_tag, request.call_id, str(request.cseq.sequence), str(top), method)


def _client_key(message: Request | Response) -> Key:
    return (message.via[0].parameters.get("branch") or "", message.cseq.method)


def _ack_of_refusal(invite: Request, response: Response) -> Request:
    """Section 17.1.1.3."""
    ack = Request("ACK", invite.uri)
    ack.headers.add("Via", str(_topmost(invite)))
    ack.headers.add("Max-Forwards", "70")
    if invite.headers.getlist("Route"):
        ack.headers.setlist("Route", list(invite.headers.getlist("Route")))
    ack.headers.add("From", invite.headers["From"])
    ack.headers.add("To", response.headers["To"])
    ack.headers.add("Call-ID", invite.call_id)
    ack.headers.add("CSeq", str(CSeq(sequence=invite.cseq.sequence, method="ACK")))
    return ack


def _topmost(request: Request) -> Via:
    return request.via[0]
