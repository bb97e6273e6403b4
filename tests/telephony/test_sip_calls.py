"""Two user agents with a wire between them and a clock that stands still: calls, their changes, and their ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from sipmessage import URI, Request, Response

from agent.clock import ManualClock
from agent.telephony.sip.call import (
    CallEnded,
    Credentials,
    Established,
    Incoming,
    KeyPressed,
    MediaChanged,
    Referred,
    RegistrationChanged,
    SipCall,
    SipHappening,
)
from agent.telephony.sip.dialog import Local
from agent.telephony.sip.digest import DigestServer, credentials_for
from agent.telephony.sip.message import Peer, encode, parse, response_to, with_body
from agent.telephony.sip.sdp import LocalMedia
from agent.telephony.sip.user_agent import UserAgent

ANN, BOB = Peer("udp", "192.0.2.1", 5060), Peer("udp", "192.0.2.2", 5060)
TARGET = URI.parse("sip:bob@192.0.2.2")


@dataclass
class Wire:
    """Carries datagrams between the two; `loses` says which vanish."""

    clock: ManualClock = field(default_factory=ManualClock)
    passwords: dict[str, str] | None = None
    trusted: frozenset[str] = frozenset()
    max_calls: int = 8
    loses: Callable[[Request | Response], bool] = lambda message: False

    def __post_init__(self) -> None:
        auth = DigestServer("agogic", self.passwords) if self.passwords else None
        self.ann = UserAgent(Local(ANN.host, 5060, "ann"), self.clock)
        self.bob = UserAgent(
            Local(BOB.host, 5060, "bob"), self.clock, auth=auth, trusted=self.trusted, max_calls=self.max_calls
        )
        self.happened: list[tuple[str, SipHappening]] = []
        self.seen: list[str] = []

    def carry(self) -> None:
        """Until nothing is on its way."""
        for _ in range(100):
            moved = False
            for name, agent, other, source in (
                ("bob", self.ann, self.bob, ANN),
                ("ann", self.bob, self.ann, BOB),
            ):
                for data, _peer in agent.take_sent():
                    moved = True
                    message = parse(data)
                    what = message.method if isinstance(message, Request) else str(message.code)
                    self.seen.append(what)
                    if not self.loses(message):
                        self.happened += [(name, one) for one in other.receive(data, source)]
            if not moved:
                return

    def advance(self, seconds: float) -> None:
        """Time passes, and timers run when they are due."""
        end_s = self.clock.now_s() + seconds
        while True:
            self.carry()
            due = [at for at in (self.ann.next_s(), self.bob.next_s()) if at is not None]
            next_s = min([*due, end_s])
            if next_s >= end_s:
                self.clock.advance(max(0.0, end_s - self.clock.now_s()))
                break
            self.clock.advance(max(0.0, next_s - self.clock.now_s()) + 1e-6)
            for name, agent in (("ann", self.ann), ("bob", self.bob)):
                self.happened += [(name, one) for one in agent.poll()]
        self.carry()

    def of(self, kind: type) -> list[tuple[str, SipHappening]]:
        return [(name, one) for name, one in self.happened if isinstance(one, kind)]

    def dial(self, credentials: Credentials | None = None) -> SipCall:
        media = LocalMedia(ANN.host, 4000, 1)
        return self.ann.dial(TARGET, BOB, media, URI.parse("sip:ann@192.0.2.1"), credentials)

    def up(self) -> tuple[SipCall, SipCall]:
        """A call that both sides have."""
        ours = self.dial()
        self.carry()
        (_, incoming), *_ = self.of(Incoming)
        assert isinstance(incoming, Incoming)
        self.bob.accept(incoming.call, LocalMedia(BOB.host, 5000, 2))
        self.carry()
        return ours, incoming.call


def test_a_call_from_invite_to_bye() -> None:
    wire = Wire()
    ours, theirs = wire.up()
    assert {name for name, _ in wire.of(Established)} == {"ann", "bob"}
    assert ours.agreed is not None and theirs.agreed is not None
    assert (ours.agreed.host, ours.agreed.port, ours.agreed.codec.name) == (BOB.host, 5000, "G722")
    assert (theirs.agreed.host, theirs.agreed.port, theirs.agreed.codec.name) == (ANN.host, 4000, "G722")
    wire.bob.hang_up(theirs)
    wire.carry()
    ended = wire.of(CallEnded)
    assert [name for name, _ in ended] == ["ann"]
    assert not wire.ann.calls and not wire.bob.calls
    wire.advance(40)
    assert not wire.ann.transactions.clients and not wire.bob.transactions.servers
    assert wire.ann.next_s() is None and wire.bob.next_s() is None


def test_a_lossy_wire_costs_time_and_no_call() -> None:
    lost: list[str] = []

    def loses(message: Request | Response) -> bool:
        """The first of everything."""
        key = f"{message.method if isinstance(message, Request) else message.code} {message.cseq}"
        if key in lost:
            return False
        lost.append(key)
        return True

    wire = Wire(loses=loses)
    wire.dial()
    wire.advance(3)
    (_, incoming), *_ = wire.of(Incoming)
    assert isinstance(incoming, Incoming)
    wire.bob.accept(incoming.call, LocalMedia(BOB.host, 5000, 2))
    wire.advance(6)
    assert {name for name, _ in wire.of(Established)} == {"ann", "bob"}
    wire.bob.hang_up(incoming.call)
    wire.advance(6)
    assert len(wire.of(CallEnded)) == 1
    assert len(wire.of(Incoming)) == 1


def test_nobody_there_is_a_408() -> None:
    wire = Wire(loses=lambda message: True)
    wire.dial()
    wire.advance(33)
    ((name, ended),) = wire.of(CallEnded)
    assert name == "ann" and isinstance(ended, CallEnded) and ended.status == 408
    assert wire.seen.count("INVITE") == 7  # at 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5 s
    assert not wire.ann.calls


def test_without_an_ack_the_call_is_given_up() -> None:
    wire = Wire(loses=lambda message: isinstance(message, Request) and message.method == "ACK")
    wire.up()
    wire.advance(40)
    ended = [one for name, one in wire.of(CallEnded) if name == "bob"]
    assert [one.status for one in ended if isinstance(one, CallEnded)] == [408]
    assert not wire.bob.calls and not wire.ann.calls


def test_a_caller_who_gives_up_is_told_487() -> None:
    wire = Wire()
    ours = wire.dial()
    wire.carry()
    (_, incoming), *_ = wire.of(Incoming)
    assert isinstance(incoming, Incoming)
    wire.bob.ring(incoming.call)
    wire.carry()
    wire.ann.hang_up(ours)
    wire.carry()
    assert [name for name, _ in wire.of(CallEnded)] == ["bob"]
    assert "CANCEL" in wire.seen and "487" in wire.seen
    assert not wire.ann.calls and not wire.bob.calls


def test_hanging_up_before_it_rings_cancels_as_soon_as_it_may() -> None:
    wire = Wire()
    ours = wire.dial()
    wire.ann.hang_up(ours)
    wire.carry()
    assert "487" in wire.seen and not wire.ann.calls and not wire.bob.calls


@pytest.mark.parametrize("status", [486, 603, 480])
def test_a_refusal_reaches_the_caller(status: int) -> None:
    wire = Wire()
    wire.dial()
    wire.carry()
    (_, incoming), *_ = wire.of(Incoming)
    assert isinstance(incoming, Incoming)
    wire.bob.reject(incoming.call, status)
    wire.carry()
    ((name, ended),) = wire.of(CallEnded)
    assert name == "ann" and isinstance(ended, CallEnded) and ended.status == status
    assert not wire.bob.calls


def test_the_right_password_opens() -> None:
    wire = Wire(passwords={"ann": "secret"})
    wire.dial(Credentials("ann", "secret"))
    wire.carry()
    assert wire.seen[:5] == ["INVITE", "401", "ACK", "INVITE", "100"]
    assert len(wire.of(Incoming)) == 1


@pytest.mark.parametrize("credentials", [Credentials("ann", "wrong"), Credentials("eve", "secret")])
def test_a_wrong_password_is_a_403(credentials: Credentials) -> None:
    wire = Wire(passwords={"ann": "secret"})
    wire.dial(credentials)
    wire.carry()
    ((_, ended),) = wire.of(CallEnded)
    assert isinstance(ended, CallEnded) and ended.status == 403
    assert not wire.of(Incoming) and not wire.bob.calls


def test_no_password_is_a_401_unless_the_address_is_trusted() -> None:
    wire = Wire(passwords={"ann": "secret"})
    wire.dial()
    wire.carry()
    ((_, ended),) = wire.of(CallEnded)
    assert isinstance(ended, CallEnded) and ended.status == 401
    trusting = Wire(passwords={"ann": "secret"}, trusted=frozenset({ANN.host}))
    trusting.dial()
    trusting.carry()
    assert trusting.of(Incoming)
    strict = Wire(trusted=frozenset({"198.51.100.1"}))
    strict.dial()
    strict.carry()
    ((_, ended),) = strict.of(CallEnded)
    assert isinstance(ended, CallEnded) and ended.status == 403


def test_an_old_nonce_is_asked_for_again() -> None:
    server = DigestServer("agogic", {"ann": "secret"})
    answer = credentials_for(server.challenge(1000), "INVITE", "sip:bob@h", "ann", "secret")
    assert server.check(answer, "INVITE", 1001) is True
    assert server.check(answer, "BYE", 1001) is False
    assert server.check(answer, "INVITE", 2000) is None
    assert DigestServer("agogic", {"ann": "secret"}).check(answer, "INVITE", 1001) is None


def test_the_digest_of_rfc_2617s_own_example() -> None:
    from sipmessage import AuthChallenge, AuthParameters

    challenge = AuthChallenge(
        scheme="Digest",
        parameters=AuthParameters(realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"),
    )
    answer = credentials_for(challenge, "GET", "/dir/index.html", "Mufasa", "Circle Of Life")
    assert answer.parameters is not None
    assert answer.parameters["response"] == "670fd8c2df070c60b045671b8b24ff02"


def request_of(wire: Wire, call: SipCall, method: str, body: str = "", kind: str = "application/sdp") -> Request:
    request = call.dialog.request(method)
    if body:
        with_body(request, body, kind)
    return request


def answer_to(wire: Wire, request: Request) -> int:
    """What Bob says to a request of Ann's that was written by hand."""
    wire.happened += [("bob", one) for one in wire.bob.receive(encode(request), ANN)]
    codes = [message.code for data, _ in wire.bob.take_sent() if isinstance(message := parse(data), Response)]
    return codes[-1]


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_hold_and_another_codec(method: str) -> None:
    wire = Wire()
    ours, theirs = wire.up()
    held = LocalMedia(ANN.host, 4000, 1).offer().replace("sendrecv", "sendonly")
    assert answer_to(wire, request_of(wire, ours, method, held)) == 200
    assert theirs.agreed is not None and theirs.agreed.direction == "recvonly"
    if method == "INVITE":
        wire.bob.receive(encode(ours.dialog.request("ACK", sequence=ours.dialog.local_sequence)), ANN)
    narrow = LocalMedia(ANN.host, 4002, 1, preferred=("PCMA",)).offer()
    assert answer_to(wire, request_of(wire, ours, method, narrow)) == 200
    assert (theirs.agreed.codec.name, theirs.agreed.port, theirs.agreed.direction) == ("PCMA", 4002, "sendrecv")
    assert len([one for name, one in wire.of(MediaChanged) if name == "bob"]) == 2


def test_a_change_that_cannot_be_met_leaves_the_call_as_it_was() -> None:
    wire = Wire()
    ours, theirs = wire.up()
    before = theirs.agreed
    hopeless = LocalMedia(ANN.host, 4000, 1).offer().replace("RTP/AVP", "RTP/SAVP")
    assert answer_to(wire, request_of(wire, ours, "INVITE", hopeless)) == 488
    assert theirs.agreed == before and wire.bob.calls


def test_a_second_change_before_the_first_is_confirmed_has_to_wait() -> None:
    wire = Wire()
    ours, _ = wire.up()
    offer = LocalMedia(ANN.host, 4000, 1).offer()
    assert answer_to(wire, request_of(wire, ours, "INVITE", offer)) == 200
    assert answer_to(wire, request_of(wire, ours, "INVITE", offer)) == 491


def test_a_request_with_an_old_cseq_is_refused() -> None:
    wire = Wire()
    ours, _ = wire.up()
    ours.dialog.local_sequence -= 5
    assert answer_to(wire, ours.dialog.request("BYE")) == 500
    assert wire.bob.calls


def test_keys_by_info() -> None:
    wire = Wire()
    ours, _ = wire.up()
    relay = "Signal=5\r\nDuration=160\r\n"
    assert answer_to(wire, request_of(wire, ours, "INFO", relay, "application/dtmf-relay")) == 200
    assert answer_to(wire, request_of(wire, ours, "INFO", "#", "application/dtmf")) == 200
    assert answer_to(wire, request_of(wire, ours, "INFO", "x", "text/plain")) == 415
    assert [one.key for _, one in wire.of(KeyPressed) if isinstance(one, KeyPressed)] == ["5", "#"]


def test_an_offer_in_the_answer() -> None:
    """An INVITE without a description: ours goes with the 200, theirs comes with the ACK."""
    wire = Wire()
    ours = wire.dial()
    (data, _), *_ = wire.ann.take_sent()
    invite = parse(data)
    assert isinstance(invite, Request)
    invite.body = b""
    invite.headers.remove("Content-Type")
    ((incoming),) = wire.bob.receive(encode(invite), ANN)
    assert isinstance(incoming, Incoming)
    wire.bob.accept(incoming.call, LocalMedia(BOB.host, 5000, 2))
    answers = [parse(data) for data, _ in wire.bob.take_sent()]
    assert b"m=audio 5000" in answers[-1].body
    ours.dialog.established(answers[-1])  # type: ignore[arg-type]
    ack = ours.dialog.request("ACK", sequence=invite.cseq.sequence)
    with_body(ack, LocalMedia(ANN.host, 4444, 1, preferred=("PCMU",)).offer(), "application/sdp")
    assert [type(one) for one in wire.bob.receive(encode(ack), ANN)] == [Established]
    assert incoming.call.agreed is not None and incoming.call.agreed.port == 4444


def test_a_transfer() -> None:
    wire = Wire()
    ours, theirs = wire.up()
    assert wire.bob.refer(theirs, URI.parse("tel:+14155550100"))
    data, _ = wire.bob.take_sent()[0]
    refer = parse(data)
    assert isinstance(refer, Request) and refer.method == "REFER"
    assert refer.headers["Refer-To"] == "<tel:+14155550100>"
    wire.bob.receive(encode(response_to(refer, 202)), ANN)
    notify = request_of(wire, ours, "NOTIFY", "SIP/2.0 200 OK\r\n", "message/sipfrag;version=2.0")
    notify.headers.add("Event", "refer")
    assert answer_to(wire, notify) == 200
    assert [one.status for _, one in wire.of(Referred) if isinstance(one, Referred)] == [200]


def test_the_session_timer_keeps_a_call_and_ends_a_dead_one() -> None:
    wire = Wire()
    ours, theirs = wire.up()
    assert ours.timer is not None and theirs.timer is not None
    assert (ours.timer.refresher, theirs.timer.refresher) == ("us", "them")
    wire.advance(3600)
    assert "UPDATE" in wire.seen and wire.ann.calls and wire.bob.calls
    wire.loses = lambda message: True
    wire.advance(1900)
    assert not wire.ann.calls and not wire.bob.calls
    assert {name for name, _ in wire.of(CallEnded)} == {"ann", "bob"}


def test_a_flood_of_calls_is_refused_and_the_calls_that_are_up_go_on() -> None:
    wire = Wire(max_calls=3)
    _, theirs = wire.up()
    for _ in range(50):
        wire.dial()
    wire.carry()
    assert len(wire.bob.calls) == 3
    assert wire.seen.count("503") == 48
    assert theirs.state == "up"


def test_a_flood_without_end_is_answered_from_no_memory() -> None:
    from agent.telephony.sip import transaction
    from tests.telephony.test_sip_messages import PHONE, message

    wire = Wire()
    for number in range(transaction.MAX_TRANSACTIONS + 50):
        via = f"SIP/2.0/UDP 192.0.2.7:5062;branch=z9hG4bK{number}"
        wire.bob.receive(message("OPTIONS sip:bob@192.0.2.2 SIP/2.0", body="", Via=via, Call_ID=f"c{number}"), PHONE)
    assert len(wire.bob.transactions.servers) == transaction.MAX_TRANSACTIONS
    last = parse(wire.bob.take_sent()[-1][0])
    assert isinstance(last, Response) and last.code == 503 and last.headers.get("Retry-After")


def test_the_same_invite_by_two_ways_is_one_call() -> None:
    from tests.telephony.test_sip_messages import PHONE, message

    wire = Wire()
    assert len(wire.bob.receive(message(), PHONE)) == 1
    assert wire.bob.receive(message(Via="SIP/2.0/UDP 192.0.2.8;branch=z9hG4bK9"), PHONE) == []
    assert parse(wire.bob.take_sent()[-1][0]).code == 482  # type: ignore[union-attr]


class Registrar:
    """Asks for a password, grants half of what was asked for."""

    def __init__(self) -> None:
        self.auth = DigestServer("exchange", {"agogic": "secret"})
        self.granted: list[str] = []

    def answer(self, request: Request, unix_s: int) -> Response:
        proved = self.auth.check(request.authorization, "REGISTER", unix_s)
        if proved is None:
            response = response_to(request, 401)
            response.headers.add("WWW-Authenticate", str(self.auth.challenge(unix_s)))
            return response
        if not proved:
            return response_to(request, 403)
        response = response_to(request, 200)
        response.headers.add("Contact", f"{request.headers['Contact']};expires={int(request.headers['Expires']) // 2}")
        self.granted.append(request.headers["Expires"])
        return response


def test_registration_is_proved_kept_up_and_taken_back() -> None:
    clock, registrar = ManualClock(), Registrar()
    ours = UserAgent(Local(ANN.host, 5060, "agogic"), clock)
    happened: list[SipHappening] = []

    def exchange() -> None:
        for _ in range(5):
            for data, _peer in ours.take_sent():
                request = parse(data)
                assert isinstance(request, Request)
                happened.extend(ours.receive(encode(registrar.answer(request, clock.unix_s())), BOB))

    ours.register(URI.parse("sip:agogic@192.0.2.2"), BOB, Credentials("agogic", "secret"), 600)
    exchange()
    assert happened == [RegistrationChanged(200, 300)]
    clock.advance(241)
    happened += ours.poll()
    exchange()
    assert happened[-1] == RegistrationChanged(200, 300) and len(happened) == 2
    ours.stop_registering()
    exchange()
    assert registrar.granted == ["600", "600", "0"]


def test_a_registrar_that_says_no_is_asked_again_later() -> None:
    clock, registrar = ManualClock(), Registrar()
    ours = UserAgent(Local(ANN.host, 5060, "agogic"), clock)
    ours.register(URI.parse("sip:agogic@192.0.2.2"), BOB, Credentials("agogic", "wrong"), 600)
    happened: list[SipHappening] = []
    for _ in range(3):
        for data, _peer in ours.take_sent():
            request = parse(data)
            assert isinstance(request, Request)
            happened += ours.receive(encode(registrar.answer(request, clock.unix_s())), BOB)
    assert happened == [RegistrationChanged(403, 0)]
    clock.advance(31)
    ours.poll()
    assert parse(ours.take_sent()[0][0]).cseq.method == "REGISTER"
