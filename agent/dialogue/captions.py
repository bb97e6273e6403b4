"""What the user was understood to say, as the protocol's transcription events.

The recogniser may revise what it wrote, the protocol's deltas only append: so a delta is sent only while the new text
continues the old, and `completed` carries the truth. Nothing is sent before the utterance is committed. A model
without a recogniser writes down what it has heard later, after its answer: `completed` waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.dialogue.conversation import UserMessage
from agent.protocol import server_events as events
from agent.protocol.server_events import ServerEvent
from agent.turn.silero import SAMPLE_RATE_HZ


@dataclass
class _Caption:
    item: UserMessage
    seconds: float
    wanted: bool
    encoded: bool = False
    sent: str = ""
    begun: tuple[UserMessage, ...] = ()


class Captions:
    """Utterances whose final transcript is still to come. They leave when it does, or when their item is deleted."""

    def __init__(self) -> None:
        self._open: dict[str, _Caption] = {}  # by item, whose utterance may be another when it is heard again

    def committed(self, item: UserMessage, *, wanted: bool, begun: Sequence[UserMessage] = ()) -> None:
        """The item is heard as its `utterance`, perhaps once more. `begun`: the items that the utterance begins with,
        whose words are theirs and not the item's."""
        caption = self._open.get(item.id)
        if caption is None:
            samples = item.pcm.size if item.pcm is not None else 0
            caption = self._open[item.id] = _Caption(item, samples / SAMPLE_RATE_HZ, wanted)
        caption.begun, caption.encoded = tuple(begun), False

    def heard(self, utterance: int, text: str, *, final: bool) -> list[ServerEvent]:
        """`text` is the whole transcript so far."""
        caption = self._of(utterance)
        if caption is None:
            return []
        text = rest_of(text, [item.words for item in caption.begun])
        caption.item.transcript = text
        if final:
            del self._open[caption.item.id]
        if not caption.wanted:
            return []
        happened: list[ServerEvent] = []
        if text.startswith(caption.sent) and len(text) > len(caption.sent):
            delta, caption.sent = text[len(caption.sent) :], text
            happened.append(events.TranscriptionDelta(item_id=caption.item.id, delta=delta))
        if final:
            usage: dict[str, object] = {"type": "duration", "seconds": round(caption.seconds, 3)}
            happened.append(events.TranscriptionCompleted(item_id=caption.item.id, transcript=text, usage=usage))
        return happened

    def encoded(self, utterance: int) -> None:
        """The worker has heard all of it; what is still open then is written down when the worker finds the time."""
        caption = self._of(utterance)
        if caption is not None:
            caption.encoded = True

    def failed(self, utterance: int | None, message: str) -> list[ServerEvent]:
        """The worker will not say any more about this utterance; None: about all that are open."""
        failed = [caption for caption in self._open.values() if utterance in (None, caption.item.utterance)]
        return self._fail(failed, message)

    def worker_lost(self) -> list[ServerEvent]:
        """The next worker hears again what this one had not; of what was to be written down later only the newest,
        for it has no room to hear many at once."""
        late = [caption for caption in list(self._open.values())[:-1] if caption.encoded]
        return self._fail(late, "The worker was lost before it wrote this down.")

    def _of(self, utterance: int) -> _Caption | None:
        return next((caption for caption in self._open.values() if caption.item.utterance == utterance), None)

    def _fail(self, failed: list[_Caption], message: str) -> list[ServerEvent]:
        error: dict[str, object] = {"type": "server_error", "code": "transcription_failed", "message": message}
        for caption in failed:
            del self._open[caption.item.id]
        return [
            events.TranscriptionFailed(item_id=caption.item.id, error=error) for caption in failed if caption.wanted
        ]

    def unfinished(self) -> list[UserMessage]:
        return [caption.item for caption in self._open.values()]

    def drop(self, item: UserMessage) -> None:
        self._open.pop(item.id, None)


def rest_of(text: str, begun: Sequence[str]) -> str:
    """What `text` says behind what its beginning was understood as before: the recogniser may have revised that, so the
    beginning is the one that differs from it in fewest words."""
    said, words = " ".join(begun).split(), text.split()
    if not said:
        return text
    # Row by row of the edit distance; the last row tells how far each beginning of `words` is from `said`.
    distances = list(range(len(words) + 1))
    for number, word in enumerate(said, start=1):
        diagonal, distances[0] = distances[0], number
        for index, other in enumerate(words, start=1):
            changed = diagonal + (word != other)
            diagonal = distances[index]
            distances[index] = min(changed, distances[index] + 1, distances[index - 1] + 1)
    end = min(range(len(words) + 1), key=lambda index: (distances[index], abs(index - len(said))))
    return " ".join(words[end:])
