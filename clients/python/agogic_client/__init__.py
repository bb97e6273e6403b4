"""Spoken conversations with an agogic server."""

from agogic_client.call import Call, connect
from agogic_client.conversation import Answer, Conversation, Event, Turn, Word
from agogic_client.errors import CallError
from agogic_client.sound import RATE_HZ, read_sound, write_wav

__all__ = [
    "RATE_HZ",
    "Answer",
    "Call",
    "CallError",
    "Conversation",
    "Event",
    "Turn",
    "Word",
    "connect",
    "read_sound",
    "write_wav",
]
