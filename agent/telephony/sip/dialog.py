"""Dialogs (RFC 3261, section 12): what two user agents know of a call, and the requests within it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from sipmessage import URI, Address, CSeq, Parameters, Request, Response, Via

from agent.telephony.sip.message import USER_AGENT, Peer, with_tag
from agent.telephony.sip.transaction import COOKIE


def new_tag() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Local:
    """How others reach us, for Via and Contact."""

    host: str
    port: int
    user: str = "agogic"

    def via(self, transport: str, branch: str | None = None) -> Via:
        parameters = Parameters(branch=branch or COOKIE + secrets.token_hex(12), rport=None)
        return Via(transport=transport.upper(), host=_bracketed(self.host), port=self.port, parameters=parameters)

    def contact(self, transport: str) -> Address:
        parameters = Parameters(transport="tcp") if transport == "tcp" else Parameters()
        uri = URI("sip", _bracketed(self.host), user=self.user, port=self.port, parameters=parameters)
        return Address(uri=uri)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@dataclass
class Dialog:
    """`peer` is where requests are sent to: behind NAT that is where the other side's come from."""

    call_id: str
    local: Address  # with our tag
    remote: Address  # with theirs, once there is one
    target: URI
    peer: Peer
    us: Local
    local_sequence: int = field(default_factory=lambda: secrets.randbelow(10_000) + 1)
    remote_sequence: int | None = None
    routes: list[Address] = field(default_factory=list)

    @classmethod
    def of_invite(cls, invite: Request, source: Peer, us: Local) -> Dialog:
        """The called side's. Raises ValueError where the INVITE has no Contact."""
        if not invite.contact:
            raise ValueError("an INVITE needs a Contact")
        dialog = cls(
            call_id=invite.call_id,
            local=with_tag(invite.to_address, new_tag()),
            remote=invite.from_address,
            target=invite.contact[0].uri,
            peer=source,
            us=us,
            remote_sequence=invite.cseq.sequence,
        )
        dialog.routes = _record_route(invite)
        return dialog

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.call_id, self.local_tag, self.remote_tag)

    @property
    def local_tag(self) -> str:
        return self.local.parameters.get("tag") or ""

    @property
    def remote_tag(self) -> str:
        return self.remote.parameters.get("tag") or ""

    def established(self, response: Response) -> None:
        """The calling side's, by a 2xx."""
        self.remote = response.to_address
        self.routes = list(reversed(_record_route(response)))
        if response.contact:
            self.target = response.contact[0].uri

    def request(self, method: str, *, sequence: int | None = None) -> Request:
        """A request within the dialog; an ACK has the sequence of its INVITE."""
        if sequence is None:
            self.local_sequence += 1
            sequence = self.local_sequence
        request = Request(method, self.target)
        request.headers.add("Via", str(self.us.via(self.peer.transport)))
        request.headers.add("Max-Forwards", "70")
        for route in self.routes:
            request.headers.add("Route", str(route))
        request.headers.add("From", str(self.local))
        request.headers.add("To", str(self.remote))
        request.headers.add("Call-ID", self.call_id)
        request.headers.add("CSeq", str(CSeq(sequence=sequence, method=method)))
        if method in ("INVITE", "UPDATE", "REFER"):
            request.headers.add("Contact", str(self.us.contact(self.peer.transport)))
        request.headers.add("User-Agent", USER_AGENT)
        return request

    def takes(self, request: Request) -> bool:
        """Whether the request's sequence is the next; then it is remembered."""
        if self.remote_sequence is not None and request.cseq.sequence <= self.remote_sequence:
            return False
        self.remote_sequence = request.cseq.sequence
        return True


def _record_route(message: Request | Response) -> list[Address]:
    return [route for value in message.headers.getlist("Record-Route") for route in Address.parse_many(value)]
