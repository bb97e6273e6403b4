"""A SIP user agent: datagrams and time in, happenings and datagrams out."""

from __future__ import annotations

import logging

from sipmessage import Request

from agent.telephony.sip.call import CallEnded, SipHappening
from agent.telephony.sip.calling import Calling
from agent.telephony.sip.message import Malformed, Peer, encode, parse, with_source

log = logging.getLogger("agogic.sip")


class UserAgent(Calling):
    def receive(self, data: bytes, source: Peer) -> list[SipHappening]:
        """One message. What is none gets the status that says so, if it was a request; other calls never notice."""
        try:
            message = parse(data)
        except Malformed as error:
            log.debug("from %s:%d: %s", source.host, source.port, error)
            if error.answer is not None:
                self.transactions.sent.append((encode(error.answer), source))
            return []
        now_s = self.clock.now_s()
        if isinstance(message, Request):
            with_source(message, source)
            new = self.transactions.receive_request(message, source, now_s)
            return self._request(new) if new is not None else []
        answered = self.transactions.receive_response(message, source, now_s)
        if answered is None:
            return []
        if answered.transaction is None:
            self._stray_2xx(message)
            return []
        return self._reacted(answered)

    def poll(self) -> list[SipHappening]:
        """To be called when `next_s` has come."""
        now_s = self.clock.now_s()
        happened: list[SipHappening] = []
        for timed_out in self.transactions.poll(now_s):
            happened += self._timed_out(timed_out)
        for call in list(self.calls.values()):
            repeated, timer = call.repeated, call.timer
            if repeated is not None and now_s >= repeated.ends_s:
                call.state = "up"  # so that a BYE may be sent
                self.hang_up(call)
                happened.append(CallEnded(call, 408, "no ACK came"))
            elif repeated is not None and now_s >= repeated.repeat_s:
                self.transactions.sent.append((repeated.message, repeated.peer))
                repeated.again(now_s)
            if timer is not None and call.state == "up" and now_s >= timer.due_s:
                if timer.refresher == "us":
                    self.refresh(call)
                else:
                    self.hang_up(call)
                    happened.append(CallEnded(call, 408, "the session timer ran out"))
        registration = self.registration
        if registration is not None and registration.due_s is not None and now_s >= registration.due_s:
            self._send_register(registration, registration.expires_s, {})
        return happened

    def next_s(self) -> float | None:
        """When `poll` has something to do if nothing comes."""
        times = [self.transactions.next_s()]
        for call in self.calls.values():
            if call.repeated is not None:
                times += [call.repeated.repeat_s, call.repeated.ends_s]
            if call.timer is not None:
                times.append(call.timer.due_s)
        if self.registration is not None:
            times.append(self.registration.due_s)
        return min((at for at in times if at is not None), default=None)
