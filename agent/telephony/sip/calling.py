"""The client side of a user agent (RFC 3261, sections 8.1, 9, 10, 13.2, 15.1.1): calls out, transfers, registration."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass, field

from sipmessage import URI, Address, AuthChallenge, CSeq, Parameters, Request, Response

from agent.ids import secret
from agent.telephony.sip import sdp
from agent.telephony.sip.answering import Answering
from agent.telephony.sip.call import (
    DEFAULT_SESSION_S,
    CallEnded,
    Credentials,
    Established,
    MediaChanged,
    Referred,
    RegistrationChanged,
    SessionTimer,
    SipCall,
    SipHappening,
)
from agent.telephony.sip.dialog import Dialog, new_tag
from agent.telephony.sip.digest import DigestError, credentials_for
from agent.telephony.sip.message import USER_AGENT, Peer, encode, with_body
from agent.telephony.sip.sdp import MEDIA_TYPE, SdpError
from agent.telephony.sip.transaction import NewResponse

RETRY_S = 30.0


@dataclass
class Registration:
    """At one registrar; kept up until `stop_registering`."""

    aor: URI
    peer: Peer
    credentials: Credentials
    expires_s: int
    call_id: str = field(default_factory=lambda: secrets.token_hex(16))
    tag: str = field(default_factory=new_tag)
    sequence: int = 0
    tried_credentials: bool = False
    due_s: float | None = None


class Calling(Answering):
    registration: Registration | None = None

    # --- calls out ---

    def dial(
        self, target: URI, peer: Peer, media: sdp.LocalMedia, caller: URI, credentials: Credentials | None = None
    ) -> SipCall:
        """Calls `target` by way of `peer`; the happenings tell what becomes of it."""
        dialog = Dialog(
            call_id=secrets.token_hex(16),
            local=Address(uri=caller, parameters=Parameters(tag=new_tag())),
            remote=Address(uri=target),
            target=target,
            peer=peer,
            us=self.us,
        )
        call = SipCall(secret("rtc"), dialog, Request("INVITE", target), "calling", media=media)
        call.credentials = credentials
        self.calls[dialog.key] = call
        self._invite(call, {"Session-Expires": str(DEFAULT_SESSION_S)})
        return call

    def _invite(self, call: SipCall, extra: dict[str, str]) -> None:
        assert call.media is not None
        request = call.dialog.request("INVITE")
        request.headers.add("Supported", "timer")
        for name, value in extra.items():
            request.headers.set(name, value)
        with_body(request, call.media.offer(), MEDIA_TYPE)
        call.invite = request
        call.transaction = self._send(request, call.dialog.peer, lambda new: self._invite_answered(call, new))

    def _invite_answered(self, call: SipCall, new: NewResponse | None) -> list[SipHappening]:
        if new is None:
            self._forget(call)
            return [CallEnded(call, 408, "nobody answered")]
        response = new.response
        if response.code < 200:
            if call.hang_up_wanted:
                self._cancel(call)
            return []
        if response.code >= 300:
            return self._call_refused(call, response)
        del self.calls[call.dialog.key]
        call.dialog.established(response)
        self.calls[call.dialog.key] = call
        call.state = "up"
        self._acknowledge(call)
        if call.hang_up_wanted:
            self.hang_up(call)
            return []
        self._take_timer(call, response)
        try:
            assert call.media is not None
            call.agreed = call.media.agree(sdp.parse(response.body))
        except SdpError as error:
            self.hang_up(call)
            return [CallEnded(call, error.status, str(error))]
        return [Established(call)]

    def _call_refused(self, call: SipCall, response: Response) -> list[SipHappening]:
        """Tried again with a name and password, or with a longer session; ended otherwise."""
        extra: dict[str, str] = {}
        if response.code in (401, 407) and call.credentials is not None and not call.tried_credentials:
            call.tried_credentials = True
            extra = _proof(response, "INVITE", str(call.dialog.target), call.credentials)
            extra["Session-Expires"] = str(DEFAULT_SESSION_S)
        shortest = response.headers.get("Min-SE") or ""
        if response.code == 422 and shortest.isdecimal() and call.invite.headers.get("Min-SE") is None:
            extra = {"Session-Expires": shortest, "Min-SE": shortest}
        if extra and not call.hang_up_wanted:
            self._invite(call, extra)
            return []
        self._forget(call)
        return [] if call.hang_up_wanted else [CallEnded(call, response.code, response.phrase)]

    def _stray_2xx(self, response: Response) -> None:
        """A 2xx again: its ACK was lost. One of somebody else who was called too is thanked and hung up on."""
        for call in self.calls.values():
            if call.dialog.call_id != response.call_id or call.dialog.local_tag != (
                response.from_address.parameters.get("tag") or ""
            ):
                continue
            if call.dialog.remote_tag == response.to_address.parameters.get("tag"):
                self.transactions.sent.append((call.ack, call.dialog.peer))
                return
            other = dataclasses.replace(call.dialog)
            other.established(response)
            ack = other.request("ACK", sequence=response.cseq.sequence)
            self.transactions.sent.append((encode(ack), other.peer))
            other.local_sequence = response.cseq.sequence
            self._send(other.request("BYE"), other.peer, lambda new: [])
            return

    def _acknowledge(self, call: SipCall) -> None:
        ack = call.dialog.request("ACK", sequence=call.invite.cseq.sequence)
        call.ack = encode(ack)
        self.transactions.sent.append((call.ack, call.dialog.peer))

    def _cancel(self, call: SipCall) -> None:
        """Section 9.1: of the INVITE's own branch."""
        invite = call.invite
        cancel = Request("CANCEL", invite.uri)
        cancel.headers.add("Via", str(invite.via[0]))
        cancel.headers.add("Max-Forwards", "70")
        if invite.headers.getlist("Route"):
            cancel.headers.setlist("Route", list(invite.headers.getlist("Route")))
        for name in ("From", "To", "Call-ID"):
            cancel.headers.add(name, invite.headers[name])
        cancel.headers.add("CSeq", str(CSeq(sequence=invite.cseq.sequence, method="CANCEL")))
        self._send(cancel, call.dialog.peer, lambda new: [])

    # --- within a call ---

    def hang_up(self, call: SipCall) -> None:
        if call.state == "offered":
            self.reject(call, 480)
        elif call.state == "calling":
            is_ringing = call.transaction is not None and call.transaction.state == "proceeding"
            if is_ringing and not call.hang_up_wanted:
                self._cancel(call)
            call.hang_up_wanted = True
        elif call.state == "answered":
            call.hang_up_wanted = True  # section 15: not before the ACK
        elif call.state == "up":
            self._send(call.dialog.request("BYE"), call.dialog.peer, lambda new: [])
            self._forget(call)

    def refer(self, call: SipCall, target: URI) -> bool:
        """Asks the other side to call somebody else (RFC 3515); False where the call is not up."""
        if call.state != "up":
            return False
        request = call.dialog.request("REFER")
        request.headers.add("Refer-To", str(Address(uri=target)))
        request.headers.add("Referred-By", str(Address(uri=call.dialog.local.uri)))

        def answered(new: NewResponse | None) -> list[SipHappening]:
            status = 408 if new is None else new.response.code
            return [Referred(call, status)] if status >= 300 else []

        self._send(request, call.dialog.peer, answered)
        return True

    def refresh(self, call: SipCall) -> None:
        """Shows that the call lives, by an UPDATE, which disturbs nothing."""
        request = call.dialog.request("UPDATE")
        request.headers.add("Supported", "timer")
        if call.timer is not None:
            request.headers.add("Session-Expires", f"{call.timer.interval_s};refresher=uac")
            call.timer.refreshed_s = self.clock.now_s()
        call.refreshing = True

        def answered(new: NewResponse | None) -> list[SipHappening]:
            if new is not None and new.response.code < 200:
                return []
            call.refreshing = False
            if new is not None and new.response.code in (405, 501):
                self._reinvite(call)
                return []
            if new is None or new.response.code in (408, 481):
                self._forget(call)
                return [CallEnded(call, 408, "the other side is gone")]
            return []

        self._send(request, call.dialog.peer, answered)

    def _reinvite(self, call: SipCall) -> None:
        """The same for whoever knows no UPDATE."""
        assert call.media is not None
        request = call.dialog.request("INVITE")
        request.headers.add("Supported", "timer")
        if call.timer is not None:
            request.headers.add("Session-Expires", f"{call.timer.interval_s};refresher=uac")
        with_body(request, call.media.offer(), MEDIA_TYPE)
        call.invite, call.refreshing = request, True

        def answered(new: NewResponse | None) -> list[SipHappening]:
            if new is not None and new.response.code < 200:
                return []
            call.refreshing = False
            if new is None or new.response.code in (408, 481):
                self._forget(call)
                return [CallEnded(call, 408, "the other side is gone")]
            if new.response.code >= 300:
                return []
            self._acknowledge(call)
            try:
                call.agreed = call.media.agree(sdp.parse(new.response.body)) if call.media is not None else None
            except SdpError as error:
                self.hang_up(call)
                return [CallEnded(call, error.status, str(error))]
            return [MediaChanged(call)]

        self._send(request, call.dialog.peer, answered)

    def _take_timer(self, call: SipCall, response: Response) -> None:
        text = response.headers.get("Session-Expires")
        if text is None:
            return
        interval, _, rest = text.partition(";")
        if interval.strip().isdecimal():
            refresher = "them" if "refresher=uas" in rest.replace(" ", "").lower() else "us"
            call.timer = SessionTimer(int(interval), refresher, self.clock.now_s())  # type: ignore[arg-type]

    # --- registration ---

    def register(self, aor: URI, peer: Peer, credentials: Credentials, expires_s: int) -> None:
        """Tells the registrar at `peer` that `aor` is reached here, again and again."""
        self.registration = Registration(aor, peer, credentials, expires_s)
        self._send_register(self.registration, expires_s, {})

    def stop_registering(self) -> None:
        registration, self.registration = self.registration, None
        if registration is not None:
            registration.tried_credentials = False
            self._send_register(registration, 0, {})

    def _send_register(self, registration: Registration, expires_s: int, extra: dict[str, str]) -> None:
        registration.sequence += 1
        registration.due_s = None
        aor, transport = registration.aor, registration.peer.transport
        request = Request("REGISTER", URI(aor.scheme, aor.host, port=aor.port))
        request.headers.add("Via", str(self.us.via(transport)))
        request.headers.add("Max-Forwards", "70")
        request.headers.add("From", str(Address(uri=aor, parameters=Parameters(tag=registration.tag))))
        request.headers.add("To", str(Address(uri=aor)))
        request.headers.add("Call-ID", registration.call_id)
        request.headers.add("CSeq", str(CSeq(sequence=registration.sequence, method="REGISTER")))
        request.headers.add("Contact", str(self.us.contact(transport)))
        request.headers.add("Expires", str(expires_s))
        request.headers.add("User-Agent", USER_AGENT)
        for name, value in extra.items():
            request.headers.set(name, value)
        self._send(request, registration.peer, lambda new: self._registered(registration, expires_s, new))

    def _registered(self, registration: Registration, asked_s: int, new: NewResponse | None) -> list[SipHappening]:
        status = 408 if new is None else new.response.code
        if new is not None and status < 200:
            return []
        if new is not None and status in (401, 407) and not registration.tried_credentials:
            registration.tried_credentials = True
            aor = registration.aor
            uri = str(URI(aor.scheme, aor.host, port=aor.port))
            proof = _proof(new.response, "REGISTER", uri, registration.credentials)
            if proof:
                self._send_register(registration, asked_s, proof)
                return []
        registration.tried_credentials = False
        granted_s = _granted_s(new.response, asked_s) if new is not None and status < 300 else 0
        if self.registration is registration:
            wait_s = max(5.0, 0.8 * granted_s) if granted_s else RETRY_S
            registration.due_s = self.clock.now_s() + wait_s
        return [RegistrationChanged(status, granted_s)]


def _proof(response: Response, method: str, uri: str, credentials: Credentials) -> dict[str, str]:
    """The header that answers a challenge; empty where it cannot be answered."""
    asked, given = "WWW-Authenticate", "Authorization"
    if response.code == 407:
        asked, given = "Proxy-Authenticate", "Proxy-Authorization"
    for text in response.headers.getlist(asked):
        try:
            challenge = AuthChallenge.parse(text)
            answer = credentials_for(challenge, method, uri, credentials.username, credentials.password)
        except (ValueError, DigestError):
            continue
        return {given: str(answer)}
    return {}


def _granted_s(response: Response, asked_s: int) -> int:
    for contact in response.contact:
        text = contact.parameters.get("expires") or ""
        if text.isdecimal():
            return int(text)
    text = response.headers.get("Expires") or ""
    return int(text) if text.isdecimal() else asked_s
