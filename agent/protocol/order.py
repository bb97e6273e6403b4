"""The order of server events as an automaton: what must have happened before, and what may not follow."""

from __future__ import annotations

from typing import Any

# Of whichever event: what it must hold by its type is checked elsewhere.
Event = dict[str, Any]


class OutOfOrder(Exception):
    """An event came where it may not; the message says which, and why."""


class Order:
    """Of one connection, from its first event on."""

    def __init__(self) -> None:
        self.open_response: str | None = None
        self.closed: set[str] = set()
        self.items_in_response: set[str] = set()
        self.closed_parts: set[str] = set()
        self.item_ids: set[str] = set()
        self.speaking: str | None = None
        self.audible: str | None = None

    def take(self, event: Event) -> None:
        kind = event["type"]
        if kind.startswith("response."):
            self._response(kind, event)
        elif kind == "conversation.item.added":
            previous = event["previous_item_id"]
            _must(previous is None or previous in self.item_ids, f"{kind}: unknown predecessor {previous}")
            self.item_ids.add(event["item"]["id"])
        elif kind == "conversation.item.deleted":
            _must(event["item_id"] in self.item_ids, f"{kind} of an item nobody was told of")
        elif kind == "input_audio_buffer.committed":
            _must(event["item_id"] not in self.item_ids, f"{kind} of an item that exists already")
        elif kind == "conversation.item.done":
            _must(event["item"]["id"] in self.item_ids, f"{kind} before added")
        elif kind == "input_audio_buffer.speech_started":
            _must(self.speaking is None, "speech_started twice")
            self.speaking = event["item_id"]
        elif kind == "input_audio_buffer.speech_stopped":
            _must(self.speaking == event["item_id"], "speech_stopped without its start")
            self.speaking = None
        elif kind == "input_audio_buffer.cleared":
            self.speaking = None
        elif kind == "output_audio_buffer.started":
            _must(self.audible is None, "a second response is audible before the first one ended")
            self.audible = event["response_id"]
        elif kind == "output_audio_buffer.stopped":
            _must(self.audible == event["response_id"], f"{kind} of a response that is not audible")
            self.audible = None
        elif kind == "output_audio_buffer.cleared":
            # Nothing may have been audible: it answers every wish to clear.
            _must(self.audible in (None, event["response_id"]), f"{kind} of another response than the audible one")
            self.audible = None
        elif kind.startswith("conversation.item.input_audio_transcription."):
            _must(event["item_id"] in self.item_ids, f"{kind} before its item")

    def _response(self, kind: str, event: Event) -> None:
        identity = event["response"]["id"] if "response" in event else event["response_id"]
        _must(identity not in self.closed, f"{kind} for a closed response")
        if kind == "response.created":
            _must(self.open_response is None, "two responses at once")
            self.open_response = identity
            return
        _must(self.open_response == identity, f"{kind} before response.created")
        if kind == "response.done":
            self.closed.add(identity)
            self.open_response = None
        elif kind == "response.output_item.added":
            self.items_in_response.add(event["item"]["id"])
        elif "item_id" in event:
            _must(event["item_id"] in self.items_in_response, f"{kind} before output_item.added")
            if kind.endswith(".delta"):
                _must(event["item_id"] not in self.closed_parts, f"{kind} after its done")
            elif kind in ("response.output_audio.done", "response.output_text.done"):
                self.closed_parts.add(event["item_id"])


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise OutOfOrder(otherwise)
