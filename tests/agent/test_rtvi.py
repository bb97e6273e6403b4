"""RTVI's messages from a conversation's events, and events from RTVI's messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent import wire
from agent.protocol.rtvi import MAX_MESSAGE_BYTES, Rtvi, peer_left
from tests.agent.test_tools import SUBMIT, called, typed
from tests.support.session_driver import SessionDriver
from tests.support.situations import LONG


class Client:
    """A conversation whose client speaks RTVI. `got`: what it was told, in order."""

    def __init__(self, **more: Any) -> None:
        self.driver = SessionDriver(transport="webrtc", **more)
        self.rtvi = Rtvi("1.2.3", lambda: 0.0)
        self.got: list[dict[str, Any]] = []
        self._taken = 0

    def send(self, kind: str, data: Any = None, **more: Any) -> None:
        self.say(json.dumps({"id": "m1", "label": "rtvi-ai", "type": kind, "data": data, **more}))

    def say(self, text: str) -> None:
        events, replies = self.rtvi.to_session(text)
        self.got += [json.loads(reply) for reply in replies]
        for event in events:
            self.driver.send(**json.loads(event))
        self.hear()

    def hear(self) -> list[dict[str, Any]]:
        """What has come since; each is a message as RTVI has it."""
        fresh = [
            json.loads(message) for event in self.driver.events[self._taken :] for message in self.rtvi.to_client(event)
        ]
        self._taken = len(self.driver.events)
        assert all(message["label"] == "rtvi-ai" for message in fresh)
        self.got += fresh
        return fresh

    def types(self) -> list[str]:
        return [message["type"] for message in self.got]

    def data(self, kind: str) -> list[Any]:
        return [message.get("data") for message in self.got if message["type"] == kind]


def test_a_spoken_turn_as_rtvi_tells_it() -> None:
    client = Client(reply="Okay, one latte.", transcript="a latte")
    client.driver.speak(0.5)
    client.driver.hush(3.5)
    client.hear()
    order = client.types()
    assert order[:2] == ["user-started-speaking", "user-stopped-speaking"]
    turn = ["bot-llm-started", "bot-tts-started", "bot-started-speaking", "bot-output", "bot-llm-stopped"]
    assert [kind for kind in order if kind in turn] == turn
    assert order[-2:] == ["bot-stopped-speaking", "bot-tts-stopped"]
    assert client.data("user-transcription") == [
        {"text": "a latte", "final": True, "timestamp": "1970-01-01T00:00:00.000+00:00", "user_id": ""}
    ]
    assert "".join(data["text"] for data in client.data("bot-tts-text")) == "Okay, one latte."
    (output,) = client.data("bot-output")
    assert output["text"] == "Okay, one latte." and output["spoken_status"] == "completed"


def test_ready_is_answered_by_the_version_that_is_served() -> None:
    client = Client()
    client.send("client-ready", {"version": "2.1.0", "about": {"library": "x"}})
    (ready,) = client.got
    assert (ready["type"], ready["id"]) == ("bot-ready", "m1")
    assert ready["data"] == {"version": "2.1.0", "about": {"library": "agogic", "library_version": "1.2.3"}}
    client.send("client-ready", {"version": "1.4.0"})
    assert "RTVI 1.4.0 is not served" in client.data("error-response")[0]["error"]


def test_text_interrupts_and_is_answered_as_it_asks_for() -> None:
    client = Client(reply=LONG)
    client.send("send-text", {"content": "a latte"})
    client.driver.advance(1.0)
    client.hear()
    assert client.types()[-1] != "bot-stopped-speaking" and "bot-started-speaking" in client.types()
    client.driver.reply = "Sure."
    client.send("send-text", {"content": "with milk", "options": {"audio_response": False}})
    client.driver.advance(0.2)
    client.hear()
    assert client.types().count("bot-stopped-speaking") == 1
    assert client.data("bot-output")[-1] == {
        "text": "Sure.", "aggregated_by": "sentence", "will_be_spoken": False, "spoken_status": "new",
    }  # fmt: skip
    *_, ask = client.driver.asked(wire.Respond)
    assert not ask.speech and ask.context[-1].text == "with milk"
    before = len(client.driver.asked(wire.Respond))
    client.send("send-text", {"content": "and sugar", "options": {"run_immediately": False}})
    assert len(client.driver.asked(wire.Respond)) == before
    assert client.data("error") == []


def test_functions_are_called_and_their_results_go_back() -> None:
    client = Client(reply=None, settings={"tools": [SUBMIT], "output_modalities": ["text"]})
    ask = typed(client.driver, "that is all")
    client.driver.worker(*called(ask, ("submit_order", '{"size":"large"}')))
    client.hear()
    assert client.data("llm-function-call-started") == [{"function_name": "submit_order"}]
    (call,) = client.data("llm-function-call-in-progress")
    assert (call["function_name"], call["arguments"]) == ("submit_order", {"size": "large"})
    given = {**call, "result": {"order_number": 7}}
    client.send("llm-function-call-result", given)
    (stopped,) = client.data("llm-function-call-stopped")
    assert stopped["result"] == {"order_number": 7} and not stopped["cancelled"]
    *_, ask = client.driver.asked(wire.Respond)
    assert [item.role for item in ask.context][-2:] == ["call", "result"]
    assert client.data("error") == []


def test_errors_of_the_session_are_told() -> None:
    client = Client()
    client.send("llm-function-call-result", {"tool_call_id": "none", "result": "x"})
    (error,) = client.data("error")
    assert "none" in error["error"] and error["fatal"] is False


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("ping: 1700000000000", None),
        ('{"type": "signalling", "message": {"type": "trackStatus", "receiver_index": 0, "enabled": true}}', None),
        ('{"label": "rtvi-ai", "id": "a", "type": "ui-snapshot", "data": {"tree": {}}}', None),
        ("nonsense", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"label": "rtvi-ai", "type": 1}', "none of RTVI's"),
        ("x" * (MAX_MESSAGE_BYTES + 1), "bytes"),
        ('{"label": "rtvi-ai", "id": "a", "type": "client-message", "data": {"t": "x"}}', "'client-message'"),
        ('{"label": "rtvi-ai", "id": "a", "type": "send-text", "data": {}}', "content"),
        ('{"label": "rtvi-ai", "id": "a", "type": "send-text", "data": {"content": 1}}', "content"),
    ],
)
def test_what_is_no_message_is_answered_or_nothing(text: str, answer: str | None) -> None:
    client = Client()
    client.hear()
    client.say(text)
    assert len(client.got) == (answer is not None)
    if answer is not None:
        assert answer in client.got[0]["data"]["error"]
    assert not client.driver.of("error") and not client.rtvi.is_over


def test_the_bot_can_be_told_to_leave_and_says_when_it_does() -> None:
    client = Client()
    client.send("disconnect-bot", {})
    assert client.rtvi.is_over
    assert json.loads(peer_left())["message"] == {"type": "peerLeft"}
