"""Messages that are hard to read, and such that are none: each gets the answer that RFC 3261 has for it.

Written from RFC 4475's descriptions of what servers stumble over.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sipmessage import Response

from agent.clock import ManualClock
from agent.telephony.sip.call import Incoming
from agent.telephony.sip.dialog import Local
from agent.telephony.sip.message import Malformed, Peer, StreamFraming, encode, parse
from agent.telephony.sip.user_agent import UserAgent

PHONE = Peer("udp", "192.0.2.7", 5062)
SDP = (
    "v=0\r\no=- 1 1 IN IP4 192.0.2.7\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\n"
    "m=audio 4000 RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\n"
)


def message(
    start: str = "INVITE sip:agent@192.0.2.1 SIP/2.0", body: str = SDP, drop: tuple[str, ...] = (), **change: str
) -> bytes:
    """A good INVITE, but for what is said; header names have _ for -."""
    method = start.split(" ")[0]
    fields = {
        "Via": "SIP/2.0/UDP 192.0.2.7:5062;branch=z9hG4bK1;rport",
        "Max-Forwards": "70",
        "From": "<sip:phone@192.0.2.7>;tag=a",
        "To": "<sip:agent@192.0.2.1>",
        "Call-ID": "c1@192.0.2.7",
        "CSeq": f"1 {method}",
        "Contact": "<sip:phone@192.0.2.7:5062>",
        "Content-Type": "application/sdp",
        "Content-Length": str(len(body.encode())),
    }
    fields |= {name.replace("_", "-"): value for name, value in change.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if name not in drop]
    return "\r\n".join([start, *lines, "", ""]).encode() + body.encode()


def agent() -> UserAgent:
    return UserAgent(Local("192.0.2.1", 5060), ManualClock())


def answers(data: bytes) -> list[int]:
    """Statuses that one message is answered with."""
    ours = agent()
    ours.receive(data, PHONE)
    return [status_of(sent) for sent, _ in ours.take_sent()]


def status_of(data: bytes) -> int:
    """Of a response, which repeats what was wrong with its request."""
    version, status, _ = data.split(b" ", 2)
    assert version == b"SIP/2.0"
    return int(status)


GOOD = {
    "as it should be": message(),
    "compact names and odd case": message().replace(b"Via:", b"v:").replace(b"Call-ID:", b"i :").replace(b"To:", b"t:"),
    "folded lines": message(Subject="far\r\n  away").replace(b"From: ", b"From:\r\n "),
    "spaces around everything": message(Via="SIP / 2.0 / UDP   192.0.2.7:5062 ; branch = z9hG4bK1 ; rport"),
    "a quoted name with everything in it": message(From='"J \\"R\\" <x>;,:" <sip:phone@192.0.2.7>;tag=a'),
    "unknown headers": message(X_New="1, 2, 3", Weird_Header="%%%"),
    "escaped characters in the user": message("INVITE sip:%61gent%20x@192.0.2.1 SIP/2.0"),
    "many parameters": message(To="<sip:agent@192.0.2.1;user=phone;x=y>;z=1"),
    "two Vias in one line": message(Via="SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK1, SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK0"),
    "a body longer than it says": message() + b"\r\ntrailing octets",
    "no Content-Length over UDP": message(drop=("Content-Length",)),
    "no Max-Forwards, as RFC 2543 had it": message(drop=("Max-Forwards",)),
    "a branch of RFC 2543": message(Via="SIP/2.0/UDP 192.0.2.7:5062"),
    "empty lines in front": b"\r\n\r\n" + message(),
    "a tel URI": message("INVITE tel:+14155550100 SIP/2.0"),
    "an IPv6 address": message(Contact="<sip:phone@[2001:db8::9]:5062>"),
    "a display name in UTF-8": message(From='"Jürgen" <sip:phone@192.0.2.7>;tag=a'),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_hard_messages_are_calls_all_the_same(name: str) -> None:
    happened = agent().receive(GOOD[name], PHONE)
    assert [type(one) for one in happened] == [Incoming]


BAD = {
    "no Via": (message(drop=("Via",)), []),
    "no Call-ID": (message(drop=("Call-ID",)), []),
    "no CSeq": (message(drop=("CSeq",)), []),
    "no Contact": (message(drop=("Contact",)), [400]),
    "a CSeq of another method": (message(CSeq="1 OPTIONS"), [400]),
    "a CSeq beyond 31 bits": (message(CSeq="36893488147419103232 INVITE"), [400]),
    "a negative CSeq": (message(CSeq="-1 INVITE"), [400]),
    "a body shorter than it says": (message(Content_Length="9999"), [400]),
    "a negative Content-Length": (message(Content_Length="-999"), [400]),
    "Max-Forwards beyond 255": (message(Max_Forwards="300"), [400]),
    "two Call-IDs": (message().replace(b"CSeq", b"Call-ID: c2\r\nCSeq"), [400]),
    "another version": (message("INVITE sip:agent@192.0.2.1 SIP/7.0"), [505]),
    "angle brackets around the request URI": (message("INVITE <sip:agent@192.0.2.1> SIP/2.0"), [400]),
    "spaces in the request line": (message("INVITE  sip:agent@192.0.2.1  SIP/2.0"), [400]),
    "spaces in the request URI": (message("INVITE sip:agent@192.0.2.1; lr SIP/2.0"), [400]),
    "an unknown scheme": (message("INVITE nobodyKnows:this SIP/2.0"), [416]),
    "http as the scheme": (message("INVITE http://example.com SIP/2.0"), [416]),
    "an unterminated quoted name": (message(From='"Joe <sip:phone@192.0.2.7>;tag=a'), [400]),
    "a broken Contact": (message(Contact="<sip:phone@"), [400]),
    "a header without a colon": (message().replace(b"CSeq", b"no colon here\r\nCSeq"), [400]),
    "an option nobody knows": (message(Require="nothingSupportsThis, nothingElse"), [420]),
    "a reliable provisional response wanted": (message(Require="100rel"), [420]),
    "another kind of body": (message(Content_Type="application/unknown"), [415]),
    "an encoded body": (message(Content_Encoding="gzip"), [415]),
    "a session of ten seconds": (message(Session_Expires="10", Supported="timer"), [422]),
    "an unknown method": (message("NEWMETHOD sip:agent@192.0.2.1 SIP/2.0"), [501]),
    "a method that is not served": (message("REGISTER sip:192.0.2.1 SIP/2.0", body=""), [405]),
    "a BYE of no call": (message("BYE sip:agent@192.0.2.1 SIP/2.0", body="", To="<sip:a@192.0.2.1>;tag=x"), [481]),
    "a CANCEL of nothing": (message("CANCEL sip:agent@192.0.2.1 SIP/2.0", body=""), [481]),
    "an ACK of nothing": (message("ACK sip:agent@192.0.2.1 SIP/2.0", body=""), []),
    "bytes that are no UTF-8": (message().replace(b"Max-Forwards: 70", b"Subject: \xa0\xff"), [400]),
    "no header's end": (b"INVITE sip:a@b SIP/2.0\r\nVia: x", []),
    "noise": (bytes(range(256)), []),
    "a response out of the blue": (message("SIP/2.0 200 OK", CSeq="1 INVITE"), []),
    "a status that is none": (message("SIP/2.0 4294967301 better not break", CSeq="1 INVITE"), []),
    "no audio": (message(body=SDP.replace("m=audio", "m=video")), [488]),
    "no codec in common": (message(body=SDP.replace(" 0 8 101", " 3 18")), [488]),
    "a port that is none": (message(body=SDP.replace("4000", "99999")), [400]),
    "no connection line": (message(body=SDP.replace("c=IN IP4 192.0.2.7\r\n", "")), [400]),
    "multicast": (message(body=SDP.replace("c=IN IP4 192.0.2.7", "c=IN IP4 224.2.1.1/127")), [488]),
    "no description at all": (message(body="hello"), [400]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_gets_its_status(name: str) -> None:
    data, wanted = BAD[name]
    assert answers(data) == wanted


def test_an_ack_is_never_answered_however_wrong() -> None:
    assert answers(message("ACK sip:agent@192.0.2.1 SIP/2.0", CSeq="1 INVITE")) == []


def test_responses_go_where_the_request_came_from() -> None:
    """Behind NAT the Via names an address that nobody outside can reach (RFC 3581)."""
    ours = agent()
    ours.receive(message(Via="SIP/2.0/UDP 10.0.0.5:5060;branch=z9hG4bK1;rport"), PHONE)
    sent, peer = ours.take_sent()[0]
    assert peer == PHONE
    top = parse(sent).via[0]
    assert top.parameters["received"] == "192.0.2.7" and top.parameters["rport"] == "5062"


def test_options_says_what_is_served() -> None:
    ours = agent()
    ours.receive(message("OPTIONS sip:agent@192.0.2.1 SIP/2.0", body=""), PHONE)
    answer = parse(ours.take_sent()[0][0])
    assert isinstance(answer, Response) and answer.code == 200
    assert "INVITE" in (answer.headers.get("Allow") or "")
    assert "application/sdp" in (answer.headers.get("Accept") or "")


def test_messages_out_of_a_stream_however_it_is_cut() -> None:
    whole = message() + b"\r\n\r\n" + message("OPTIONS sip:a@192.0.2.1 SIP/2.0", body="") + message()
    for size in (1, 7, 100, len(whole)):
        framing = StreamFraming()
        found = [one for at in range(0, len(whole), size) for one in framing.receive(whole[at : at + size])]
        assert [parse(one).cseq.method for one in found] == ["INVITE", "OPTIONS", "INVITE"]


@pytest.mark.parametrize(
    "data", [message(drop=("Content-Length",)), b"x" * 70_000, message(Content_Length="9" * 9) + b"x"]
)
def test_a_stream_that_cannot_be_followed_ends(data: bytes) -> None:
    with pytest.raises(Malformed):
        StreamFraming().receive(data)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 700), cut=st.integers(0, 40), put=st.binary(max_size=20))
def test_no_mutation_of_a_message_is_more_than_an_answer(at: int, cut: int, put: bytes) -> None:
    whole = message(Record_Route="<sip:proxy@192.0.2.9;lr>", Session_Expires="1800;refresher=uac")
    data = whole[:at] + put + whole[at + cut :]
    ours = agent()
    ours.receive(data, PHONE)
    for sent, _ in ours.take_sent():
        assert 100 <= status_of(sent) < 700


def test_what_we_write_we_read() -> None:
    first = parse(message())
    again = parse(encode(first))
    assert encode(again) == encode(first)
