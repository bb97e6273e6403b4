"""What clients ask of items: to create, show, truncate and delete them."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from agent.dialogue.briefing import Briefing
from agent.dialogue.captions import Captions
from agent.dialogue.client_requests import ReadItem, new_item
from agent.dialogue.conversation import (
    MAX_ITEM_CHARACTERS,
    AssistantMessage,
    Conversation,
    Item,
    UserMessage,
    text_length,
)
from agent.dialogue.effects import Outbox
from agent.dialogue.item_sound import SoundShown
from agent.dialogue.listening import Listening
from agent.dialogue.notes import IMAGES
from agent.dialogue.speaking import Speaking
from agent.ids import Ids
from agent.json_object import JsonObject
from agent.protocol import client_events as client
from agent.protocol import server_events as events
from agent.protocol.errors import ProtocolError
from agent.protocol.items import ItemReference


class ItemRequests:
    """All of them raise `ProtocolError` for what cannot be done."""

    def __init__(
        self,
        outbox: Outbox,
        ids: Ids,
        conversation: Conversation,
        captions: Captions,
        listening: Listening,
        briefing: Briefing,
        speaking: Speaking,
    ) -> None:
        self._outbox = outbox
        self._ids = ids
        self._conversation = conversation
        self._captions = captions
        self._listening = listening
        self._briefing = briefing
        self._speaking = speaking
        self._shown = SoundShown()

    def forget_shown(self) -> None:
        """Nobody asks for the same sound again at once."""
        self._shown.forget()

    def create(self, event: client.ItemCreate, items: tuple[ReadItem | ItemReference, ...]) -> None:
        (read,) = items
        assert isinstance(read, ReadItem)
        if read.parsed.id is not None and self._is_ours(read.parsed.id):
            raise ProtocolError(
                "invalid_value",
                f"The id {read.parsed.id} is given by the server; choose another, or leave it out.",
                param="item.id",
            )
        item = new_item(read, self._conversation, self._ids, [], "item")
        if text_length(item) > MAX_ITEM_CHARACTERS:
            raise ProtocolError("invalid_value", f"An item may have {MAX_ITEM_CHARACTERS} characters.", param="item")
        previous = self._conversation.add(item, event.previous_item_id)
        notes: JsonObject | UnsetType = UNSET
        if isinstance(item, UserMessage) and item.images:
            notes = {"notes": [IMAGES]}
        self._outbox.send(events.ItemAdded(item=item.as_dict(), previous_item_id=previous, x_agogic=notes))
        self._outbox.send(events.ItemDone(item=item.as_dict(), previous_item_id=previous))

    def retrieve(self, event: client.ItemRetrieve, *, with_sound: bool) -> None:
        """`with_sound` is False where messages must stay small, over WebRTC."""
        item = self._find(event.item_id, "retrieve")
        if isinstance(item, UserMessage) and item.spoken and item.pcm is not None and with_sound:
            pcm, shown = item.pcm, self._shown
            self._outbox.send_large(lambda: events.ItemRetrieved(item=item.with_audio(shown.of(pcm))), 4 * pcm.nbytes)
        else:
            self._outbox.send(events.ItemRetrieved(item=item.as_dict()))

    def truncate(self, event: client.ItemTruncate) -> None:
        item = self._find(event.item_id, "truncate")
        if not isinstance(item, AssistantMessage) or item.modality != "audio":
            raise ProtocolError("invalid_value", "Only spoken assistant messages can be truncated.", param="item_id")
        if event.content_index != 0:
            raise ProtocolError(
                "invalid_value",
                f"Invalid value for 'content_index': the item has one part, 0, and no {event.content_index}.",
                param="content_index",
            )
        self._stop_if_active(item)
        end_ms = item.truncate(event.audio_end_ms)
        self._outbox.send(events.ItemTruncated(item_id=item.id, content_index=0, audio_end_ms=end_ms))

    def delete(self, event: client.ItemDelete) -> None:
        item = self._find(event.item_id, "delete")
        self._stop_if_active(item)
        self._conversation.remove(item)
        if isinstance(item, UserMessage):
            self._captions.drop(item)
            self._briefing.drop_utterance(item.utterance)
            self._sever(item)
        self._outbox.send(events.ItemDeleted(item_id=item.id))

    def _sever(self, gone: UserMessage) -> None:
        """What went on with an item that is deleted is heard again without it, and at once where its words are still to
        come."""
        for item in self._conversation.items:
            if isinstance(item, UserMessage) and gone.id in item.continues:
                item.continues = tuple(identity for identity in item.continues if identity != gone.id)
                self._briefing.drop_utterance(item.utterance)
                item.utterance = None
                if item in self._captions.unfinished():
                    self._briefing.hand_over(item)

    def _is_ours(self, item_id: str) -> bool:
        """An id that the server has not given yet, or to an item that the conversation does not hold yet."""
        utterance, answer = self._listening.open, self._speaking.active
        announced = (utterance and utterance.item_id, answer and answer.item.id)
        return item_id in announced or self._ids.is_to_come(item_id)

    def _find(self, item_id: str, verb: str) -> Item:
        item = self._conversation.find(item_id)
        if item is None:
            raise ProtocolError(f"item_{verb}_invalid_item_id", f"No such item: {item_id[:100]}", param="item_id")
        return item

    def _stop_if_active(self, item: Item) -> None:
        if self._speaking.active is not None and self._speaking.active.item is item:
            self._speaking.cancel("client_cancelled")
