"""Functions: what may be defined, which of them an answer may call, its calls as events, and the results."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from agent import wire
from tests.support.conformance import check
from tests.support.session_driver import SessionDriver, answer
from tests.support.situations import LONG, PUSH_TO_TALK

SUBMIT: dict[str, Any] = {
    "type": "function",
    "name": "submit_order",
    "description": "Sends an order off",
    "parameters": {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]},
}
CANCEL: dict[str, Any] = {"type": "function", "name": "cancel_order"}
NAMED = {"type": "function", "name": "submit_order"}
TRANSPORTS: list[Literal["websocket", "webrtc"]] = ["websocket", "webrtc"]
ARGUMENTS = '{"size":"large"}'


def having(*tools: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tools": list(tools), **more}


def called(ask: wire.Respond, *calls: tuple[str, str], text: str = "Okay.") -> list[wire.Message]:
    """The worker's messages of an answer that says `text` and calls these functions with these arguments."""
    *said, done = answer(ask, text)
    return [*said, *(wire.ToolCall(ask.session, ask.generation, name, given) for name, given in calls), done]


def typed(driver: SessionDriver, text: str, **response: Any) -> wire.Respond:
    """The request that the worker gets for the answer to a line that was typed."""
    content = [{"type": "input_text", "text": text}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    driver.send(type="response.create", response=response)
    ask = driver.asked(wire.Respond)[-1]
    assert isinstance(ask, wire.Respond)
    return ask


def ordering(*calls: tuple[str, str], **more: Any) -> SessionDriver:
    """A conversation whose only answer, a written one, made these calls."""
    driver = SessionDriver(reply=None, settings=having(SUBMIT, CANCEL, output_modalities=["text"], **more))
    driver.worker(*called(typed(driver, "that is all"), *calls))
    return driver


def roles(ask: wire.Respond) -> list[str]:
    return [item.role for item in ask.context]


# --- definitions ---


def test_what_is_defined_is_shown_and_reaches_the_worker() -> None:
    driver = SessionDriver(reply=None)
    (updated,) = driver.send(type="session.update", session={"type": "realtime", **having(SUBMIT, CANCEL)})
    assert updated["session"]["tools"] == [SUBMIT, CANCEL]
    assert updated["session"]["tool_choice"] == "auto"
    driver.speak(0.5)
    driver.hush(0.6)
    (start,), (ask, *_) = driver.asked(wire.StartUtterance), driver.asked(wire.Respond)
    assert start.tools == ask.tools
    assert [json.loads(one) for one in ask.tools.definitions] == [
        {key: value for key, value in tool.items() if key != "type"} for tool in (SUBMIT, CANCEL)
    ]
    assert (ask.tools.required, ask.tools.only, ask.tools.several) == (False, "", True)


@pytest.mark.parametrize(
    ("tools", "param", "said"),
    [
        ([SUBMIT, CANCEL, SUBMIT], "tools[2].name", "two functions are called 'submit_order'"),
        ([{**CANCEL, "name": "cancel order"}], "tools[0].name", "regex '^[a-zA-Z0-9_-]{1,64}$'"),
        ([{**CANCEL, "name": ""}], "tools[0].name", "regex '^[a-zA-Z0-9_-]{1,64}$'"),
        ([{"type": "function"}], "tools[0].name", "name"),
        ([{"type": "web_search"}], "tools[0].type", "web_search"),
        ([{**CANCEL, "parameters": {"type": "string"}}], "tools[0].parameters.type", "'object', not 'string'"),
        ([{**CANCEL, "parameters": {"properties": []}}], "tools[0].parameters.properties", "object of schemas"),
        ([{**CANCEL, "parameters": {"properties": {"a": 1}}}], "tools[0].parameters.properties.a", "object"),
        ([{**CANCEL, "parameters": {"required": "a"}}], "tools[0].parameters.required", "list of names"),
    ],
)
def test_a_definition_that_cannot_be_called_is_refused_by_name(
    tools: list[dict[str, Any]], param: str, said: str
) -> None:
    driver = SessionDriver()
    for where, event in (
        ("session", {"type": "session.update", "session": {"type": "realtime", "tools": tools}}),
        ("response", {"type": "response.create", "response": {"tools": tools}}),
    ):
        (refused,) = driver.send(**event)
        assert refused["type"] == "error" and refused["error"]["type"] == "invalid_request_error"
        assert refused["error"]["param"] == f"{where}.{param}"
        assert said in refused["error"]["message"]
    check(driver.events)


def test_definitions_have_a_longest_length() -> None:
    tools = [{**CANCEL, "name": f"f{number}", "description": "x" * 100_000} for number in range(6)]
    driver = SessionDriver()
    for event in (
        {"type": "response.create", "response": {"tools": tools}},
        {"type": "session.update", "session": {"type": "realtime", "tools": tools}},
    ):
        (refused,) = driver.send(**event)
        assert refused["error"]["code"] == "invalid_value" and "524288" in refused["error"]["message"]


def test_mcp_tools_are_left_out_and_none_of_them_can_be_chosen() -> None:
    driver = SessionDriver()
    mcp = {"type": "mcp", "server_label": "shop", "server_url": "https://shop.example"}
    (updated,) = driver.send(type="session.update", session={"type": "realtime", **having(mcp, CANCEL)})
    assert updated["session"]["tools"] == [CANCEL]
    choice = {"type": "mcp", "server_label": "shop"}
    (refused,) = driver.send(type="session.update", session={"type": "realtime", "tool_choice": choice})
    assert refused["error"]["param"] == "session.tool_choice"


# --- choice ---


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", (2, False, "")),
        ("none", (0, False, "")),
        ("required", (2, True, "")),
        (NAMED, (2, True, "submit_order")),
    ],
)
def test_the_choice_decides_what_an_answer_may_and_must_call(
    choice: str | dict[str, str], expected: tuple[int, bool, str]
) -> None:
    driver = SessionDriver(reply=None)
    (updated,) = driver.send(
        type="session.update", session={"type": "realtime", **having(SUBMIT, CANCEL, tool_choice=choice)}
    )
    assert updated["session"]["tool_choice"] == choice
    plain = SessionDriver(reply=None, settings=having(SUBMIT, CANCEL))
    for ask in (typed(driver, "hello"), typed(plain, "hello", tool_choice=choice)):
        assert (len(ask.tools.definitions), ask.tools.required, ask.tools.only) == expected


def test_a_choice_of_what_is_not_defined_is_refused() -> None:
    driver = SessionDriver(settings=having(CANCEL))
    for event, param in (
        ({"type": "session.update", "session": {"type": "realtime", "tool_choice": NAMED}}, "session.tool_choice"),
        ({"type": "response.create", "response": {"tool_choice": NAMED}}, "response.tool_choice"),
        ({"type": "response.create", "response": {"tools": [], "tool_choice": "required"}}, "response.tool_choice"),
        ({"type": "response.create", "response": {"tool_choice": "sometimes"}}, "response.tool_choice"),
    ):
        (refused,) = driver.send(**event)
        assert refused["error"]["param"] == param
    check(driver.events)


def test_what_a_response_defines_replaces_what_the_session_does_for_that_response_alone() -> None:
    driver = SessionDriver(reply=None, settings=having(SUBMIT, tool_choice=NAMED))
    own = typed(driver, "hello", tools=[CANCEL], parallel_tool_calls=False)
    assert [json.loads(one)["name"] for one in own.tools.definitions] == ["cancel_order"]
    assert (own.tools.required, own.tools.only, own.tools.several) == (False, "", False)
    driver.worker(*called(own))
    driver.advance(3.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    after = typed(driver, "hello")
    assert (after.tools.required, after.tools.only, after.tools.several) == (True, "submit_order", True)


def test_a_choice_whose_function_is_taken_away_is_none_any_more() -> None:
    driver = SessionDriver(settings=having(SUBMIT, CANCEL, tool_choice=NAMED))
    (updated,) = driver.send(type="session.update", session={"type": "realtime", "tools": [CANCEL]})
    assert updated["session"]["tool_choice"] == "auto"


# --- calls ---


def test_a_call_is_an_item_behind_what_was_said() -> None:
    driver = ordering(("submit_order", ARGUMENTS))
    kinds = driver.types()
    first = kinds.index("response.output_item.done")
    assert kinds[first:-1] == [
        "response.output_item.done",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    begun, done = driver.last("response.output_item.added"), driver.last("response.output_item.done")
    assert (begun["output_index"], begun["item"]["status"], begun["item"]["arguments"]) == (1, "in_progress", "")
    message, call = driver.last("response.done")["response"]["output"]
    assert done["item"] == call
    assert (call["type"], call["name"], call["arguments"], call["status"]) == (
        "function_call",
        "submit_order",
        ARGUMENTS,
        "completed",
    )
    assert driver.last("conversation.item.added")["previous_item_id"] == message["id"]
    told = driver.last("response.function_call_arguments.done")
    assert (told["call_id"], told["name"], told["arguments"]) == (call["call_id"], "submit_order", ARGUMENTS)
    (kept,) = driver.send(type="conversation.item.retrieve", item_id=call["id"])
    assert kept["item"] == call
    check(driver.events)


def test_long_arguments_come_in_pieces() -> None:
    arguments = json.dumps({"note": "€" * 3000}, ensure_ascii=False)
    driver = ordering(("submit_order", arguments))
    deltas = driver.of("response.function_call_arguments.delta")
    assert len(deltas) == 2 and "".join(event["delta"] for event in deltas) == arguments
    assert len({(event["item_id"], event["call_id"], event["output_index"]) for event in deltas}) == 1
    check(driver.events)


def test_several_calls_of_a_turn_stand_in_their_order() -> None:
    driver = ordering(("submit_order", ARGUMENTS), ("cancel_order", "{}"))
    message, one, two = driver.last("response.done")["response"]["output"]
    assert [one["name"], two["name"]] == ["submit_order", "cancel_order"]
    assert one["call_id"] != two["call_id"] and one["id"] != two["id"]
    assert [event["output_index"] for event in driver.of("response.output_item.added")] == [0, 1, 2]
    added = driver.of("conversation.item.added")[-2:]
    assert [event["previous_item_id"] for event in added] == [message["id"], one["id"]]
    check(driver.events)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_spoken_answer_is_heard_before_its_calls_are_told(transport: Literal["websocket", "webrtc"]) -> None:
    driver = SessionDriver(transport=transport, reply=None, settings=having(SUBMIT))
    driver.speak(0.5)
    driver.hush(0.6)
    driver.worker(*called(driver.asked(wire.Respond)[-1], ("submit_order", ARGUMENTS), text="Great, that is all."))
    driver.hush(0.8)
    assert driver.of("response.output_item.added") and not driver.of("response.function_call_arguments.done")
    driver.hush(2.0)
    kinds = driver.types()
    assert kinds.index("response.output_audio_transcript.done") < kinds.index("response.function_call_arguments.delta")
    assert [item["type"] for item in driver.last("response.done")["response"]["output"]] == ["message", "function_call"]
    check(driver.events)


def test_an_answer_that_says_nothing_is_its_calls_alone() -> None:
    driver = SessionDriver(reply=None, settings=having(SUBMIT, tool_choice="required"))
    driver.worker(*called(typed(driver, "go"), ("submit_order", ARGUMENTS), text=""))
    driver.advance(1.0)
    (call,) = driver.last("response.done")["response"]["output"]
    assert call["name"] == "submit_order" and driver.last("response.output_item.added")["output_index"] == 0
    check(driver.events)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_answer_that_is_interrupted_calls_nothing(transport: Literal["websocket", "webrtc"]) -> None:
    driver = SessionDriver(transport=transport, reply=None, settings=having(SUBMIT))
    driver.speak(0.5)
    driver.hush(0.6)
    driver.worker(*called(driver.asked(wire.Respond)[-1], ("submit_order", ARGUMENTS), text=LONG))
    driver.hush(1.5)
    driver.interrupt(0.5)
    assert driver.last("response.done")["response"]["status"] == "cancelled"
    assert [item["type"] for item in driver.last("response.done")["response"]["output"]] == ["message"]
    assert not driver.of("response.function_call_arguments.done")
    driver.hush(0.6)
    again = driver.asked(wire.Respond)[-1]
    assert "call" not in roles(again) and again.tools.definitions
    driver.worker(*called(again, ("submit_order", ARGUMENTS)))
    driver.hush(1.5)
    assert len(driver.of("response.function_call_arguments.done")) == 1
    check(driver.events)


def test_an_answer_begun_early_calls_once_the_turn_has_ended_and_never_if_it_goes_on() -> None:
    driver = SessionDriver(reply=None, settings=having(SUBMIT))
    driver.speak(0.6)
    driver.hush(0.3)
    (early,) = driver.asked(wire.Respond)
    driver.worker(*called(early, ("submit_order", ARGUMENTS)))
    assert not driver.of("response.created")
    driver.speak(0.4)
    driver.hush(0.3)
    later = driver.asked(wire.Respond)[-1]
    assert later.generation != early.generation
    driver.worker(*called(later, ("submit_order", '{"size":"small"}')))
    driver.hush(1.5)
    (told,) = driver.of("response.function_call_arguments.done")
    assert told["arguments"] == '{"size":"small"}'
    check(driver.events)


def test_an_answer_that_must_call_and_has_nothing_to_call_fails() -> None:
    driver = SessionDriver(reply=None, settings=having(SUBMIT, tool_choice="required"))
    ask = typed(driver, "hello")
    stats = wire.ResponseStats()
    done = wire.ResponseDone(ask.session, ask.generation, "failed", "there is no order", stats, code="no_tool_call")
    driver.worker(done)
    ended = driver.last("response.done")["response"]
    assert ended["status"] == "failed"
    assert ended["status_details"]["error"]["code"] == "no_tool_call"
    assert ended["status_details"]["error"]["type"] == "invalid_request_error"
    check(driver.events)


# --- results ---


def result(call_id: str, output: str = '{"order_number": 7}') -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def test_a_result_is_what_the_next_answer_answers() -> None:
    driver = ordering(("submit_order", ARGUMENTS))
    call_id = driver.last("response.function_call_arguments.done")["call_id"]
    driver.send(type="conversation.item.create", item=result(call_id))
    driver.send(type="response.create")
    ask = driver.asked(wire.Respond)[-1]
    assert [(item.role, item.text, item.name) for item in ask.context] == [
        ("user", "that is all", ""),
        ("assistant", "Okay.", ""),
        ("call", ARGUMENTS, "submit_order"),
        ("result", '{"order_number": 7}', "submit_order"),
    ]
    check(driver.events)


def test_a_result_of_no_call_is_refused_and_leaves_no_item() -> None:
    driver = ordering(("submit_order", ARGUMENTS))
    before = len(driver.of("conversation.item.added"))
    (refused,) = driver.send(type="conversation.item.create", item=result("call_of_nobody"))
    assert refused["error"]["code"] == "invalid_tool_call_id"
    assert refused["error"]["param"] == "item.call_id"
    assert refused["error"]["message"] == "Tool call ID 'call_of_nobody' not found in conversation."
    (refused,) = driver.send(type="response.create", response={"input": [result("call_of_nobody")]})
    assert refused["error"]["param"] == "response.input[0].call_id"
    assert len(driver.of("conversation.item.added")) == before
    check(driver.events)


def test_a_call_that_was_deleted_takes_no_result_any_more() -> None:
    driver = ordering(("submit_order", ARGUMENTS))
    call = driver.last("response.done")["response"]["output"][1]
    driver.send(type="conversation.item.delete", item_id=call["id"])
    (refused,) = driver.send(type="conversation.item.create", item=result(call["call_id"]))
    assert refused["error"]["code"] == "invalid_tool_call_id"


def test_a_result_may_come_after_the_user_went_on_speaking() -> None:
    driver = SessionDriver(reply=None, settings=having(SUBMIT))
    driver.worker(*called(typed(driver, "that is all"), ("submit_order", ARGUMENTS)))
    driver.advance(1.0)
    call_id = driver.last("response.function_call_arguments.done")["call_id"]
    driver.speak(0.5)
    driver.send(type="conversation.item.create", item=result(call_id))
    driver.hush(0.6)
    assert roles(driver.asked(wire.Respond)[-1]) == ["user", "assistant", "call", "result", "user"]
    check(driver.events)


# --- out of band ---


def test_a_call_out_of_band_is_told_and_stands_in_no_conversation() -> None:
    driver = SessionDriver(reply=None, settings={**PUSH_TO_TALK, "output_modalities": ["text"]})
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a large one"}]}
    response = {"conversation": "none", "tools": [SUBMIT], "tool_choice": "required", "metadata": {"topic": "order"}}
    driver.send(type="response.create", response={**response, "input": [said]})
    (ask,) = driver.asked(wire.Respond)
    assert ask.tools.required and roles(ask) == ["user"]
    driver.worker(*called(ask, ("submit_order", ARGUMENTS), text=""))
    (call,) = driver.last("response.done")["response"]["output"]
    assert call["arguments"] == ARGUMENTS and not driver.of("conversation.item.added")
    (refused,) = driver.send(type="conversation.item.create", item=result(call["call_id"]))
    assert refused["error"]["code"] == "invalid_tool_call_id"
    # Its result is known beside the call.
    made = {"type": "function_call", "call_id": call["call_id"], "name": "submit_order", "arguments": ARGUMENTS}
    driver.send(
        type="response.create", response={"conversation": "none", "input": [said, made, result(call["call_id"])]}
    )
    assert roles(driver.asked(wire.Respond)[-1]) == ["user", "call", "result"]
    check(driver.events)
