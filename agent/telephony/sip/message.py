"""SIP messages (RFC 3261, section 7): bytes to requests and responses that can be trusted, and back.

`sipmessage` reads header fields; what stands here is what a server owes the network: folded lines, stream framing, and
a proper status for every request that is not one (RFC 4475 collects them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sipmessage import URI, Address, CSeq, Headers, Message, Request, Response, Via
from sipmessage.message import COMPACT_FORMS

MAX_MESSAGE_BYTES = 65_536
USER_AGENT = "agogic"
METHODS = ("INVITE", "ACK", "CANCEL", "BYE", "OPTIONS", "INFO", "UPDATE", "NOTIFY")
ALLOW = ", ".join(METHODS)
PHRASES = {
    100: "Trying", 180: "Ringing", 200: "OK", 202: "Accepted", 400: "Bad Request", 401: "Unauthorized",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 415: "Unsupported Media Type",
    416: "Unsupported URI Scheme", 420: "Bad Extension", 422: "Session Interval Too Small",
    480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist", 482: "Loop Detected",
    483: "Too Many Hops", 486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here",
    491: "Request Pending", 500: "Server Internal Error", 501: "Not Implemented", 503: "Service Unavailable",
    505: "Version Not Supported", 513: "Message Too Large", 603: "Decline",
}  # fmt: skip
_ONCE = ("call-id", "cseq", "from", "to", "max-forwards", "content-length", "content-type")
_NEEDED = ("via", "from", "to", "call-id", "cseq")
_REQUEST_LINE = re.compile(r"([^ \t]+) ([^ \t]+) SIP/(\d+\.\d+)")
_STATUS_LINE = re.compile(r"SIP/2\.0 ([1-6]\d\d)(?: (.*))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class Peer:
    """Where a message came from or goes to."""

    transport: Literal["udp", "tcp"]
    host: str
    port: int


class Malformed(Exception):
    """No message that can be worked with. `answer` is what to tell the sender, where there is anybody to tell."""

    def __init__(self, why: str, answer: Response | None = None) -> None:
        super().__init__(why)
        self.answer = answer


def parse(data: bytes) -> Request | Response:
    """One whole message. Raises `Malformed`."""
    head, separator, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not separator:
        raise Malformed("the header does not end")
    lines = re.sub(r"\r\n[ \t]+", " ", head.decode("utf-8", "replace")).split("\r\n")
    headers = Headers()
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name = name.strip()
        if colon and name and name.isascii():
            headers.add(COMPACT_FORMS.get(name.lower(), name), value.strip())
    status = _STATUS_LINE.fullmatch(lines[0])
    if status is not None:
        return _checked_response(Response(int(status[1]), status[2] or ""), headers, body)
    if lines[0].startswith("SIP/"):
        raise Malformed(f"no status line: {lines[0][:60]!r}")
    refuse = _Refusal(lines[0], headers)
    if any(not line.partition(":")[1] or not line.partition(":")[0].strip() for line in lines[1:]):
        raise refuse(400, "a header line has no colon")
    try:
        head.decode()
    except UnicodeDecodeError as error:
        raise refuse(400, "the header is no UTF-8") from error
    start = _REQUEST_LINE.fullmatch(lines[0])
    if start is None:
        raise refuse(400, f"no request line: {lines[0][:60]!r}")
    method, uri, version = start.groups()
    if version != "2.0":
        raise refuse(505, f"SIP version {version}")
    return _checked_request(method, uri, headers, body, refuse)


class _Refusal:
    """Makes the response to a request that cannot be read further than its headers."""

    def __init__(self, start: str, headers: Headers) -> None:
        self._is_ack = start.startswith("ACK ")  # which is never answered
        self._headers = headers

    def __call__(self, status: int, why: str) -> Malformed:
        headers = self._headers
        if self._is_ack or any(headers.get(name) is None for name in _NEEDED):
            return Malformed(why)
        response = Response(status, PHRASES[status])
        response.headers.setlist("Via", list(headers.getlist("Via")))
        for name in ("From", "To", "Call-ID", "CSeq"):
            response.headers.add(name, headers[name])
        response.headers.add("Warning", f'399 {USER_AGENT} "{_quotable(why)}"')
        response.headers.add("Content-Length", "0")
        try:
            Via.parse_many(headers["Via"])
        except ValueError:
            return Malformed(why)
        return Malformed(why, response)


def _checked_request(method: str, uri: str, headers: Headers, body: bytes, refuse: _Refusal) -> Request:
    for name in _NEEDED:
        if headers.get(name) is None:
            raise refuse(400, f"there is no {name}")
    for name in _ONCE:
        if len(headers.getlist(name)) > 1:
            raise refuse(400, f"{name} stands there more than once")
    try:
        parsed = URI.parse(uri)
    except ValueError as error:
        scheme = _SCHEME.match(uri)
        known = scheme is not None and scheme[0].lower() in ("sip:", "sips:", "tel:")
        raise refuse(416 if scheme is not None and not known else 400, f"request URI {uri[:60]!r}") from error
    request = Request(method, parsed)
    request.headers = headers
    try:
        _check_fields(request)
        hops = headers.get("Max-Forwards")
        if hops is not None and not (hops.isdecimal() and int(hops) <= 255):
            raise ValueError(f"Max-Forwards {hops[:20]!r}")
        if request.cseq.method != method:
            raise ValueError(f"CSeq is of {request.cseq.method[:20]}, the request is {method[:20]}")
        if headers.get("Contact") is not None and headers["Contact"] != "*":
            _ = request.contact
        request.body = _body(headers, body)
    except ValueError as error:
        raise refuse(400, str(error)) from error
    return request


def _checked_response(response: Response, headers: Headers, body: bytes) -> Response:
    response.headers = headers
    try:
        if any(headers.get(name) is None for name in _NEEDED):
            raise ValueError("a header field is missing")
        _check_fields(response)
        response.body = _body(headers, body)
    except ValueError as error:
        raise Malformed(str(error)) from error
    return response


def _check_fields(message: Message) -> None:
    """Raises ValueError unless everything that a transaction and a dialog need can be read."""
    cseq: CSeq = message.cseq
    if cseq.sequence >= 2**31:
        raise ValueError(f"CSeq {cseq.sequence} is too large")
    if not message.via or not message.call_id:
        raise ValueError("Via or Call-ID is empty")
    _ = (message.from_address, message.to_address)


def _body(headers: Headers, body: bytes) -> bytes:
    """As long as the header says; a datagram may be longer, not shorter. Raises ValueError."""
    length = headers.get("Content-Length")
    if length is None:
        return body
    if not length.isdecimal() or len(length) > 9:
        raise ValueError(f"Content-Length {length[:20]!r}")
    if int(length) > len(body):
        raise ValueError("the body is shorter than Content-Length says")
    return body[: int(length)]


class StreamFraming:
    """Messages out of a TCP stream (section 18.3). Raises `Malformed` where the stream can only be closed."""

    def __init__(self) -> None:
        self._data = bytearray()

    def receive(self, data: bytes) -> list[bytes]:
        self._data += data
        messages: list[bytes] = []
        while True:
            while self._data[:2] == b"\r\n":
                del self._data[:2]
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                break
            found = re.search(rb"\r\n(?:content-length|l)[ \t]*:[ \t]*(\d{1,9})[ \t]*\r\n", self._data[: end + 2], re.I)
            if found is None:
                raise Malformed("over TCP a message needs a Content-Length")
            size = end + 4 + int(found[1])
            if size > MAX_MESSAGE_BYTES:
                raise Malformed(f"a message of {size} bytes is too long")
            if len(self._data) < size:
                break
            messages.append(bytes(self._data[:size]))
            del self._data[:size]
        if len(self._data) > MAX_MESSAGE_BYTES:
            raise Malformed("a message does not end")
        return messages


def response_to(request: Request, status: int, *, to_tag: str | None = None, why: str = "") -> Response:
    """A response with what section 8.2.6 wants; `to_tag` goes into a To that has none."""
    response = Response(status, PHRASES.get(status, "Unknown"))
    response.headers.setlist("Via", list(request.headers.getlist("Via")))
    response.headers.add("From", request.headers["From"])
    to = request.to_address
    if to_tag is not None and to.parameters.get("tag") is None:
        response.headers.add("To", str(with_tag(to, to_tag)))
    else:
        response.headers.add("To", request.headers["To"])
    response.headers.add("Call-ID", request.call_id)
    response.headers.add("CSeq", request.headers["CSeq"])
    if status == 405 or status == 200:
        response.headers.add("Allow", ALLOW)
    if why:
        response.headers.add("Warning", f'399 {USER_AGENT} "{_quotable(why)}"')
    response.headers.add("Server", USER_AGENT)
    return response


def with_tag(address: Address, tag: str) -> Address:
    return Address(uri=address.uri, name=address.name, parameters=address.parameters.replace(tag=tag))


def with_source(request: Request, source: Peer) -> None:
    """Adds `received` and `rport` to the topmost Via, so that answers find their way through NAT (RFC 3581)."""
    top, *rest = request.via
    changes: dict[str, str | None] = {"received": source.host}
    if "rport" in top.parameters:
        changes["rport"] = str(source.port)
    marked = Via(transport=top.transport, host=top.host, port=top.port, parameters=top.parameters.replace(**changes))
    request.headers.setlist("Via", [str(marked), *(str(via) for via in rest)])


def encode(message: Request | Response) -> bytes:
    """With a Content-Length that is true."""
    message.headers.set("Content-Length", str(len(message.body)))
    return bytes(message)


def with_body(message: Request | Response, body: str, content_type: str) -> None:
    message.body = body.encode()
    message.headers.set("Content-Type", content_type)


def _quotable(text: str) -> str:
    return re.sub(r"[^\x20\x21\x23-\x5b\x5d-\x7e]", "?", text)[:120]
