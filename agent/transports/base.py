"""What a session needs of the connection to its client."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

TransportKind = Literal["websocket", "webrtc", "telephone"]


class Transport(Protocol):
    """Calls must neither block nor raise; a transport that cannot keep up closes itself."""

    @property
    def kind(self) -> TransportKind: ...

    @property
    def input_rate_hz(self) -> int | None:
        """Rate of the microphone where the transport fixes it; None where the session's format does."""
        ...

    def send_event(self, event: bytes) -> None:
        """One JSON object in UTF-8."""
        ...

    def close(self, code: int, reason: str) -> None:
        """The session is over; `code` is a WebSocket close code."""
        ...


@runtime_checkable
class RemotePlayer(Protocol):
    """A transport behind which sound waits to be played, so that an interruption must reach it."""

    @property
    def reports_every_s(self) -> float:
        """How much of an answer is played between two reports of what was; 0 where each frame is reported."""
        ...

    def clear_playback(self) -> None:
        """What was pulled and not played yet is to be forgotten."""
        ...
