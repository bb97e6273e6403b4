"""The server side of a user agent (RFC 3261, sections 8.2, 11, 13.3, 15.1.2): what is done with each request."""

from __future__ import annotations

import re

from sipmessage import MediaType, Request, Response

from agent.ids import secret
from agent.telephony.sip import sdp
from agent.telephony.sip.call import (
    MIN_SESSION_S,
    CallEnded,
    Established,
    Incoming,
    KeyPressed,
    MediaChanged,
    Referred,
    Repeated2xx,
    SessionTimer,
    SipCall,
    SipHappening,
)
from agent.telephony.sip.core import Core
from agent.telephony.sip.dialog import Dialog
from agent.telephony.sip.message import METHODS, response_to, with_body
from agent.telephony.sip.sdp import MEDIA_TYPE, SdpError
from agent.telephony.sip.transaction import NewRequest, Transaction

_KNOWN_METHODS = (*METHODS, "REGISTER", "SUBSCRIBE", "MESSAGE", "REFER", "PRACK", "PUBLISH")
_SUPPORTED = {"timer"}
_SIGNAL = re.compile(r"(?:signal\s*=\s*)?([0-9*#A-D])\s*(?:$|[\r\n])", re.IGNORECASE)


class Answering(Core):
    """Requests in, responses out."""

    # --- the application's side ---

    def ring(self, call: SipCall) -> None:
        if call.state == "offered" and call.transaction is not None:
            self._reply(call.transaction, self._response(call, 180))

    def accept(self, call: SipCall, media: sdp.LocalMedia) -> None:
        """The call is taken; its sound goes to `media`. Raises `SdpError` where both have no codec in common."""
        if call.state != "offered" or call.transaction is None:
            return
        call.media = media
        response = self._response(call, 200)
        if call.offer is None:
            with_body(response, media.offer(), MEDIA_TYPE)
            call.awaits_answer = True
        else:
            call.agreed = media.agree(call.offer)
            with_body(response, media.answer(call.offer, call.agreed), MEDIA_TYPE)
        self._agree_on_timer(call, call.invite, response)
        self._accept_invite(call, call.transaction, response)
        call.state = "answered"

    def reject(self, call: SipCall, status: int) -> None:
        """Refuses a call that was not accepted yet."""
        if call.state == "offered" and call.transaction is not None:
            response = self._response(call, status)
            if status == 503:
                response.headers.add("Retry-After", "5")
            self._reply(call.transaction, response)
            self._forget(call)

    # --- requests ---

    def _request(self, new: NewRequest) -> list[SipHappening]:
        request, transaction = new.request, new.transaction
        if transaction is None:
            return self._acked(request)
        if request.method not in METHODS:
            return self._refuse(transaction, 405 if request.method in _KNOWN_METHODS else 501)
        if request.method == "CANCEL":
            return self._cancelled(transaction)
        unknown = [option for option in _tokens(request, "Require") if option not in _SUPPORTED]
        if unknown:
            response = response_to(request, 420, to_tag=self.tag)
            response.headers.add("Unsupported", ", ".join(unknown))
            self._reply(transaction, response)
            return []
        if request.to_address.parameters.get("tag") is not None:
            return self._within_dialog(request, transaction)
        if request.method == "INVITE":
            return self._invited(new, transaction)
        if request.method == "OPTIONS":
            self._reply(transaction, self._capabilities(request))
            return []
        return self._refuse(transaction, 481)

    def _invited(self, new: NewRequest, transaction: Transaction) -> list[SipHappening]:
        """Somebody wants to talk. The checks stand in the order of section 8.2."""
        request = new.request
        if request.uri.scheme not in ("sip", "sips", "tel"):
            return self._refuse(transaction, 416)
        same = (request.call_id, request.from_address.parameters.get("tag"), request.cseq.sequence)
        if any(
            (call.invite.call_id, call.invite.from_address.parameters.get("tag"), call.invite.cseq.sequence) == same
            for call in self.calls.values()
        ):
            return self._refuse(transaction, 482)
        if not self._is_admitted(request, transaction, new.source.host):
            return []
        if len(self.calls) >= self.max_calls:
            busy = response_to(request, 503, to_tag=self.tag, why="all lines are in use")
            busy.headers.add("Retry-After", "5")
            self._reply(transaction, busy)
            return []
        interval_s = _session_expires(request)
        if interval_s is not None and interval_s < MIN_SESSION_S:
            short = response_to(request, 422, to_tag=self.tag)
            short.headers.add("Min-SE", str(MIN_SESSION_S))
            self._reply(transaction, short)
            return []
        try:
            offer = self._description(request)
            dialog = Dialog.of_invite(request, new.source, self.us)
        except SdpError as error:
            return self._refuse(transaction, error.status, str(error))
        except ValueError as error:
            return self._refuse(transaction, 400, str(error))
        call = SipCall(secret("rtc"), dialog, request, "offered", transaction, offer)
        self.calls[dialog.key] = call
        self._reply(transaction, response_to(request, 100))
        return [Incoming(call)]

    def _is_admitted(self, request: Request, transaction: Transaction, host: str) -> bool:
        """Challenges or refuses whoever is neither trusted nor proved."""
        if host in self.trusted or (self.auth is None and not self.trusted):
            return True
        if self.auth is None:
            self._refuse(transaction, 403, "this address is not trusted here")
            return False
        try:
            proved = self.auth.check(request.authorization, request.method, self.clock.unix_s())
        except ValueError:
            proved = False
        if proved is None:
            challenge = response_to(request, 401, to_tag=self.tag)
            challenge.headers.add("WWW-Authenticate", str(self.auth.challenge(self.clock.unix_s())))
            self._reply(transaction, challenge)
        elif not proved:
            self._refuse(transaction, 403, "wrong name or password")
        return bool(proved)

    def _within_dialog(self, request: Request, transaction: Transaction) -> list[SipHappening]:
        call = self._call_of(request)
        if call is None:
            return self._refuse(transaction, 481)
        if not call.dialog.takes(request):
            return self._refuse(transaction, 500, "the CSeq is not the next")
        if request.method == "BYE":
            self._reply(transaction, response_to(request, 200))
            if call.state == "offered" and call.transaction is not None:
                self._reply(call.transaction, self._response(call, 487))
            self._forget(call)
            return [CallEnded(call, 200, "the other side hung up")]
        if request.method in ("INVITE", "UPDATE"):
            return self._changed(call, request, transaction)
        if request.method == "INFO":
            return self._informed(call, request, transaction)
        if request.method == "NOTIFY":
            return self._notified(call, request, transaction)
        self._reply(transaction, self._capabilities(request))
        return []

    def _changed(self, call: SipCall, request: Request, transaction: Transaction) -> list[SipHappening]:
        """re-INVITE and UPDATE: hold, another codec, another address, or a sign of life."""
        if call.refreshing:
            return self._refuse(transaction, 491)
        if (
            call.media is None
            or call.state not in ("answered", "up")
            or (call.repeated is not None and request.method == "INVITE")
        ):
            return self._refuse(transaction, 491)
        try:
            offer = self._description(request)
            agreed = call.media.agree(offer) if offer is not None else None
        except SdpError as error:
            return self._refuse(transaction, error.status, str(error))
        response = response_to(request, 200)
        response.headers.add("Contact", str(self.us.contact(call.dialog.peer.transport)))
        if request.contact:
            call.dialog.target = request.contact[0].uri
        call.dialog.peer = transaction.peer
        if offer is not None and agreed is not None:
            with_body(response, call.media.answer(offer, agreed), MEDIA_TYPE)
        elif request.method == "INVITE":
            with_body(response, call.media.offer(), MEDIA_TYPE)
            call.awaits_answer = True
        self._agree_on_timer(call, request, response)
        if request.method == "INVITE":
            self._accept_invite(call, transaction, response)
        else:
            self._reply(transaction, response)
        if agreed is None:
            return []
        call.agreed = agreed
        return [MediaChanged(call)]

    def _acked(self, request: Request) -> list[SipHappening]:
        call = self._call_of(request)
        if call is None or call.repeated is None:
            return []
        call.repeated = None
        is_first = call.state == "answered"
        call.state = "up"
        if call.awaits_answer and call.media is not None:
            call.awaits_answer = False
            try:
                answer = self._description(request)
                if answer is None:
                    raise SdpError(488, "the ACK brought no answer")
                call.agreed = call.media.agree(answer)
            except SdpError as error:
                self.hang_up(call)
                return [CallEnded(call, error.status, str(error))]
            if not is_first:
                return [MediaChanged(call)]
        if is_first and call.hang_up_wanted:
            self.hang_up(call)
            return []
        return [Established(call)] if is_first else []

    def _cancelled(self, transaction: Transaction) -> list[SipHappening]:
        invite = self.transactions.invite_of(transaction.request)
        if invite is None:
            return self._refuse(transaction, 481)
        self._reply(transaction, response_to(transaction.request, 200, to_tag=self.tag))
        call = next((call for call in self.calls.values() if call.transaction is invite), None)
        if call is None or call.state != "offered":
            return []
        self._reply(invite, self._response(call, 487))
        self._forget(call)
        return [CallEnded(call, 487, "the caller gave up")]

    def _informed(self, call: SipCall, request: Request, transaction: Transaction) -> list[SipHappening]:
        kind = _media_type(request)
        if kind not in ("application/dtmf-relay", "application/dtmf", ""):
            return self._refuse(transaction, 415)
        self._reply(transaction, response_to(request, 200))
        found = _SIGNAL.search(request.body.decode("ascii", "replace")) if kind else None
        return [KeyPressed(call, found[1].upper())] if found else []

    def _notified(self, call: SipCall, request: Request, transaction: Transaction) -> list[SipHappening]:
        self._reply(transaction, response_to(request, 200))
        event = (request.headers.get("Event") or "").partition(";")[0].strip().lower()
        found = re.match(rb"SIP/2\.0 (\d{3})", request.body)
        if event != "refer" or found is None or int(found[1]) < 200:
            return []
        return [Referred(call, int(found[1]))]

    # --- small things ---

    def _accept_invite(self, call: SipCall, transaction: Transaction, response: Response) -> None:
        self._reply(transaction, response)
        call.repeated = Repeated2xx.sent(transaction.message, transaction.peer, self.clock.now_s())

    def _response(self, call: SipCall, status: int) -> Response:
        response = response_to(call.invite, status, to_tag=call.dialog.local_tag)
        if status < 300:
            response.headers.add("Contact", str(self.us.contact(call.dialog.peer.transport)))
            routes = call.invite.headers.getlist("Record-Route")
            if routes:
                response.headers.setlist("Record-Route", list(routes))
        return response

    def _agree_on_timer(self, call: SipCall, request: Request, response: Response) -> None:
        """The other side refreshes if it can and nobody said otherwise (RFC 4028, section 9)."""
        interval_s = _session_expires(request)
        if interval_s is None:
            if call.timer is not None:
                call.timer.refreshed_s = self.clock.now_s()
            return
        wants_us = "refresher=uas" in (request.headers.get("Session-Expires") or "").replace(" ", "").lower()
        they_can = "timer" in _tokens(request, "Supported")
        refresher = "uas" if wants_us or not they_can else "uac"
        response.headers.add("Session-Expires", f"{interval_s};refresher={refresher}")
        if they_can:
            response.headers.add("Require", "timer")
        call.timer = SessionTimer(interval_s, "us" if refresher == "uas" else "them", self.clock.now_s())

    def _capabilities(self, request: Request) -> Response:
        response = response_to(request, 200, to_tag=self.tag)
        response.headers.add("Accept", f"{MEDIA_TYPE}, application/dtmf-relay")
        response.headers.add("Supported", "timer")
        return response

    def _description(self, request: Request) -> sdp.Description | None:
        """Raises `SdpError`, with 415 for a body that is none."""
        if not request.body:
            return None
        if _media_type(request) != MEDIA_TYPE or request.headers.get("Content-Encoding") not in (None, "identity"):
            raise SdpError(415, f"only {MEDIA_TYPE} is read here")
        return sdp.parse(request.body)

    def _refuse(self, transaction: Transaction, status: int, why: str = "") -> list[SipHappening]:
        response = response_to(transaction.request, status, to_tag=self.tag, why=why)
        if status == 415:
            response.headers.add("Accept", f"{MEDIA_TYPE}, application/dtmf-relay")
        if status in (491, 500):
            response.headers.add("Retry-After", "1")
        self._reply(transaction, response)
        return []


def _tokens(request: Request, name: str) -> list[str]:
    return [token.strip().lower() for value in request.headers.getlist(name) for token in value.split(",") if token]


def _media_type(request: Request) -> str:
    try:
        kind: MediaType | None = request.content_type
    except ValueError:
        return "?"
    return kind.mime_type.lower() if kind is not None else ""


def _session_expires(request: Request) -> int | None:
    text = (request.headers.get("Session-Expires") or "").partition(";")[0].strip()
    return int(text) if text.isdecimal() and len(text) < 10 else None
