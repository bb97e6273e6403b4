"""A call as its user agent keeps it, and what a user agent tells whoever carries the sound.

called:   offered ─(accept)─► answered ─(ACK)─► up ─(BYE)─► ended
calling:  calling ─(2xx)─────────────────────► up
offered and calling end by a refusal, a CANCEL or a time-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sipmessage import Request

from agent.telephony.sip.dialog import Dialog
from agent.telephony.sip.message import Peer
from agent.telephony.sip.sdp import Agreed, Description, LocalMedia
from agent.telephony.sip.transaction import T1, T2, TIMEOUT_S, Transaction

State = Literal["offered", "answered", "calling", "up", "ended"]
MIN_SESSION_S = 90
DEFAULT_SESSION_S = 1800


@dataclass(frozen=True)
class Credentials:
    username: str
    password: str


@dataclass
class SessionTimer:
    """RFC 4028: who has to show, within `interval_s`, that the call still lives."""

    interval_s: int
    refresher: Literal["us", "them"]
    refreshed_s: float

    @property
    def due_s(self) -> float:
        """When we refresh, or give the other side up."""
        if self.refresher == "us":
            return self.refreshed_s + self.interval_s / 2
        return self.refreshed_s + self.interval_s - min(32.0, self.interval_s / 3)


@dataclass
class Repeated2xx:
    """Our 2xx to an INVITE, sent again until the ACK comes (section 13.3.1.4)."""

    message: bytes
    peer: Peer
    repeat_s: float
    ends_s: float
    interval_s: float = T1

    @classmethod
    def sent(cls, message: bytes, peer: Peer, now_s: float) -> Repeated2xx:
        return cls(message, peer, now_s + T1, now_s + TIMEOUT_S)

    def again(self, now_s: float) -> None:
        self.interval_s = min(2 * self.interval_s, T2)
        self.repeat_s = now_s + self.interval_s


@dataclass
class SipCall:
    """`invite` is the latest INVITE of the call, ours or theirs. `agreed` is in effect once both sides have spoken."""

    id: str
    dialog: Dialog
    invite: Request
    state: State
    transaction: Transaction | None = None
    offer: Description | None = None
    media: LocalMedia | None = None
    agreed: Agreed | None = None
    credentials: Credentials | None = None
    tried_credentials: bool = False
    awaits_answer: bool = False  # our 2xx carried an offer; the ACK brings the answer
    repeated: Repeated2xx | None = None
    ack: bytes = b""  # of the last 2xx we got, should it come again
    refreshing: bool = False  # a re-INVITE or UPDATE of ours is under way
    hang_up_wanted: bool = False  # before it was possible
    timer: SessionTimer | None = None

    @property
    def caller(self) -> str:
        return str(self.dialog.remote.uri)


@dataclass(frozen=True)
class Incoming:
    """Somebody calls: `ring`, `accept` or `reject`."""

    call: SipCall


@dataclass(frozen=True)
class Established:
    call: SipCall


@dataclass(frozen=True)
class MediaChanged:
    """Another codec, another address, hold or its end: `call.agreed` says what."""

    call: SipCall


@dataclass(frozen=True)
class KeyPressed:
    """By SIP INFO; keys by RTP are none of SIP's business."""

    call: SipCall
    key: str


@dataclass(frozen=True)
class Referred:
    """What became of our REFER."""

    call: SipCall
    status: int


@dataclass(frozen=True)
class CallEnded:
    """Not by us. `status` is a SIP status where a request failed, 200 for a BYE, 487 for a CANCEL."""

    call: SipCall
    status: int
    reason: str


@dataclass(frozen=True)
class RegistrationChanged:
    """`status` is the registrar's answer, 408 where there was none."""

    status: int
    expires_s: int


SipHappening = Incoming | Established | MediaChanged | KeyPressed | Referred | CallEnded | RegistrationChanged
