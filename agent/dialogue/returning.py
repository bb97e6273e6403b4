"""A client comes back: it gets what it missed, and answers that nobody can hear any more hold what was heard."""

from __future__ import annotations

from agent.dialogue.conversation import Conversation
from agent.dialogue.effects import Outbox
from agent.dialogue.sent import Mark, Sent, SentEvents
from agent.dialogue.speaking import Speaking
from agent.protocol import server_events as events


class Returning:
    """What was sent meets what is being said."""

    def __init__(self, outbox: Outbox, sent: SentEvents, conversation: Conversation, speaking: Speaking) -> None:
        self._outbox = outbox
        self._sent = sent
        self._conversation = conversation
        self._speaking = speaking

    def go_on(self, resumed: events.SessionResumed, after: str, *, server_plays: bool, replayed: bool) -> None:
        """It begins with `resumed`, behind `after`, the last event that the client has; it must still be known.
        `replayed`: sound travels in events as before, so that what was missed of it comes again."""
        missed, mark = self._sent.after(after), self._sent.mark_of(after)
        self._outbox.send_first(resumed, after)
        for sent in missed:
            if sent.repeats and (replayed or not sent.is_sound):
                self._outbox.again(sent)
        if not replayed:
            self._sent.forget_sound()
            self._forget_unheard(missed, mark)
        self._speaking.go_on(mark, server_plays=server_plays, replayed=replayed)

    def _forget_unheard(self, missed: list[Sent], mark: Mark) -> None:
        """Answers that ended while nobody heard them, and cannot be heard any more, hold what was heard of them."""
        answer = self._speaking.active
        spoken = dict.fromkeys(sent.mark.item for sent in missed if sent.mark.item is not None)
        for item in spoken:
            had = mark.samples if item is mark.item else 0
            is_over = answer is None or item is not answer.item
            if is_over and item.audio_samples > had and self._conversation.find(item.id) is item:
                end_ms = item.truncate(-(-had * 1000 // item.sample_rate_hz))
                self._outbox.send(events.ItemTruncated(item_id=item.id, content_index=0, audio_end_ms=end_ms))
