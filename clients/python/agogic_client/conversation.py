"""The conversation as it is heard: server events in, turns out. Knows no socket and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agogic_client.sound import write_wav

Event = dict[str, Any]
Status = Literal["open", "done", "interrupted", "failed"]


@dataclass(frozen=True)
class Word:
    text: str
    start_s: float
    end_s: float


@dataclass
class Turn:
    """What one side said. tokens: code and duration in frames of 80 ms, of an answer; heard_ms: how long each token is
    that a spoken question was merged to; pcm: an answer's sound, 16 bit mono at 24 kHz."""

    id: str
    role: Literal["user", "assistant"]
    status: Status = "open"
    text: str = ""
    words: list[Word] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    heard_ms: list[int] = field(default_factory=list)
    pcm: bytearray = field(default_factory=bytearray)
    response_id: str | None = None


@dataclass(frozen=True)
class Answer:
    """A finished answer. report: `x_agogic` of `response.done`, with rates, words and milliseconds."""

    text: str
    words: tuple[Word, ...]
    pcm: bytes
    status: str
    report: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """A WAV file."""
        write_wav(path, self.pcm)


class Conversation:
    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.user_speaking = False
        self.responding = False
        self.report: dict[str, Any] = {}

    def find(self, item_id: str) -> Turn | None:
        return next((turn for turn in reversed(self.turns) if turn.id == item_id), None)

    def answer_of(self, response: dict[str, Any]) -> Answer:
        turn = next((turn for turn in reversed(self.turns) if turn.response_id == response["id"]), None)
        report = response.get("x_agogic") or {}
        if turn is None:
            return Answer("", (), b"", response["status"], report)
        return Answer(turn.text.strip(), tuple(turn.words), bytes(turn.pcm), response["status"], report)

    def apply(self, event: Event, sound: bytes = b"") -> None:
        """`sound`: the samples of an audio delta, decoded."""
        match event["type"]:
            case "input_audio_buffer.speech_started":
                self.user_speaking = True
                self._begin_user(event)
            case "input_audio_buffer.speech_stopped":
                self.user_speaking = False
            case "x_agogic.input_transcript":
                self._understood(event, "open")
            case "x_agogic.input_tokens":
                self._turn(event["item_id"], "user").heard_ms = list(event["durations_ms"])
            case "conversation.item.input_audio_transcription.completed":
                self._understood(event, "done")
            case "conversation.item.input_audio_transcription.failed":
                self._turn(event["item_id"], "user").status = "failed"
            case "conversation.item.added":
                self._added(event["item"])
            case "conversation.item.deleted":
                self.turns = [turn for turn in self.turns if turn.id != event["item_id"]]
            case "conversation.item.truncated":
                self._truncated(event["item_id"], event["audio_end_ms"] / 1000)
            case "response.created":
                self.responding = True
            case "response.output_item.added" if event["item"]["type"] == "message":
                self._turn(event["item"]["id"], "assistant").response_id = event.get("response_id")
            case "response.output_audio.delta":
                turn = self._turn(event["item_id"], "assistant")
                turn.pcm += sound
                turn.tokens += [tuple(token) for token in event.get("x_agogic", {}).get("tokens", [])]
            case "response.output_audio_transcript.delta":
                self._word(event)
            case "response.output_text.delta":
                self._turn(event["item_id"], "assistant").text += event["delta"]
            case "response.done":
                self._done(event["response"])

    def _turn(self, item_id: str, role: Literal["user", "assistant"]) -> Turn:
        turn = self.find(item_id)
        if turn is None:
            turn = Turn(item_id, role)
            self.turns.append(turn)
        return turn

    def _begin_user(self, event: Event) -> None:
        """What looked like the end of a turn may have been a pause: its line goes on under the new id."""
        earlier = self.find(event.get("x_agogic", {}).get("continues", ""))
        if earlier is None:
            self._turn(event["item_id"], "user")
        else:
            earlier.id, earlier.status = event["item_id"], "open"

    def _understood(self, event: Event, status: Status) -> None:
        turn = self._turn(event["item_id"], "user")
        if turn.status == "done":
            return
        if status == "done" or len(event["transcript"]) >= len(turn.text):
            turn.text = event["transcript"]
        turn.status = status

    def _added(self, item: dict[str, Any]) -> None:
        if item["type"] != "message" or item["role"] not in ("user", "assistant"):
            return
        written = [part["text"] for part in item.get("content") or [] if part["type"] == "input_text"]
        if written:
            turn = self._turn(item["id"], item["role"])
            turn.text, turn.status = " ".join(written), "done"

    def _word(self, event: Event) -> None:
        turn = self._turn(event["item_id"], "assistant")
        turn.text += event["delta"]
        if "start_time" in event:
            turn.words.append(Word(event["delta"].strip(), event["start_time"], event["end_time"]))

    def _truncated(self, item_id: str, heard_s: float) -> None:
        turn = self.find(item_id)
        if turn is None:
            return
        turn.status = "interrupted"
        turn.words = [word for word in turn.words if word.start_s < heard_s]
        turn.text = " ".join(word.text for word in turn.words)

    def _done(self, response: dict[str, Any]) -> None:
        self.responding = False
        turn = next((turn for turn in reversed(self.turns) if turn.response_id == response["id"]), None)
        endings: dict[str, Status] = {"cancelled": "interrupted", "failed": "failed"}
        if turn is not None and turn.status == "open":
            turn.status = endings.get(response["status"], "done")
        if response["status"] == "completed" and response.get("x_agogic"):
            self.report = response["x_agogic"]
