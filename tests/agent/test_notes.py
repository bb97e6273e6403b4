"""What of a client's wishes has no effect with a model is said; and what is said instead of invented orders."""

from __future__ import annotations

from typing import Any

import pytest

from agent import wire
from agent.wire import Abilities
from tests.support.conformance import check
from tests.support.session_driver import SessionDriver

COUNTER = Abilities(instructable=False, calls=("submit_order", "cancel_order"))
DEAF = Abilities(instructable=True, calls=())
SUBMIT = {"type": "function", "name": "submit_order"}
WEATHER = {"type": "function", "name": "get_weather"}
NO_INSTRUCTIONS = "instructions have no effect: this model answers as it was trained"
NEVER_WEATHER = "get_weather: never called; this model calls submit_order, cancel_order"


def updated(driver: SessionDriver, **session: Any) -> dict[str, Any]:
    (event,) = driver.send(type="session.update", session={"type": "realtime", **session})
    shown: dict[str, Any] = event["session"]
    return shown


def say(driver: SessionDriver, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})


def asked(driver: SessionDriver, **response: Any) -> wire.Respond:
    driver.send(type="response.create", response=response)
    ask = driver.asked(wire.Respond)[-1]
    assert isinstance(ask, wire.Respond)
    driver.advance(4.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    return ask


def context(ask: wire.Respond) -> list[tuple[str, str]]:
    return [(item.role, item.text) for item in ask.context]


# --- notes ---


@pytest.mark.parametrize(
    ("abilities", "session", "notes"),
    [
        (COUNTER, {}, None),
        (COUNTER, {"tools": [SUBMIT]}, None),
        (COUNTER, {"instructions": "Be brief."}, [NO_INSTRUCTIONS]),
        (COUNTER, {"tools": [SUBMIT, WEATHER]}, [NEVER_WEATHER]),
        (COUNTER, {"instructions": "Hi.", "tools": [WEATHER]}, [NO_INSTRUCTIONS, NEVER_WEATHER]),
        (COUNTER, {"tool_choice": "required"}, ["tool_choice has no effect yet: no function is defined"]),
        (DEAF, {"instructions": "Be brief.", "tools": [WEATHER]},
         ["get_weather: never called; this model calls no function"]),
        (Abilities(), {"instructions": "Be brief.", "tools": [WEATHER], "tool_choice": "required"}, None),
    ],
)  # fmt: skip
def test_the_session_says_what_has_no_effect_and_nothing_else(
    abilities: Abilities, session: dict[str, Any], notes: list[str] | None
) -> None:
    shown = updated(SessionDriver(abilities=abilities), **session)
    assert shown["x_agogic"].get("notes") == notes
    for name, value in session.items():
        assert shown[name] == value, "what a client has set it finds again"


def test_a_session_that_begins_with_such_wishes_is_told_at_once() -> None:
    driver = SessionDriver(abilities=COUNTER, settings={"instructions": "Be brief."}, worker=False)
    assert driver.last("session.created")["session"]["x_agogic"]["notes"] == [NO_INSTRUCTIONS]
    check(driver.events)


def test_a_session_that_is_sent_back_as_it_came_is_taken() -> None:
    driver = SessionDriver(abilities=COUNTER)
    shown = updated(driver, instructions="Be brief.")
    again = updated(driver, **{key: value for key, value in shown.items() if key != "type"})
    assert again == shown
    assert "notes" not in updated(driver, instructions="")["x_agogic"]


def test_a_response_says_what_of_its_own_wishes_has_no_effect() -> None:
    driver = SessionDriver(abilities=COUNTER)
    say(driver, "a latte")
    asked(driver, instructions="Answer in French.", tools=[WEATHER])
    for kind in ("response.created", "response.done"):
        assert driver.last(kind)["response"]["x_agogic"]["notes"] == [NO_INSTRUCTIONS, NEVER_WEATHER]
    say(driver, "a latte")
    asked(driver)
    assert "notes" not in driver.last("response.done")["response"]["x_agogic"]
    check(driver.events)


def test_a_picture_is_taken_and_said_to_have_no_effect() -> None:
    driver = SessionDriver(abilities=COUNTER)
    content = [
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_text", "text": "a latte"},
    ]
    added, _ = driver.send(
        type="conversation.item.create", item={"type": "message", "role": "user", "content": content}
    )
    assert added["type"] == "conversation.item.added"
    assert added["x_agogic"]["notes"] == ["images have no effect: this model listens and reads, it does not see"]
    assert {part["type"] for part in added["item"]["content"]} == {"input_image", "input_text"}
    assert context(asked(driver)) == [("user", "a latte")]
    assert not driver.of("error")
    check(driver.events)


# --- a given text ---


@pytest.mark.parametrize(
    ("instructions", "text"),
    [
        ('Say "Please wait a moment."', "Please wait a moment."),
        ("Say exactly: Please wait a moment", "Please wait a moment"),
        ("You are a helpful barista.\nPlease say the following: 'One moment.'", "One moment."),
        ("Greet the user with a joke.", ""),
        ("Be brief and say what you think.", ""),
    ],
)
def test_instructions_that_ask_for_a_text_get_it_from_a_model_that_reads_none(instructions: str, text: str) -> None:
    ask = asked(SessionDriver(abilities=COUNTER), instructions=instructions)
    assert ask.say == text
    ask = asked(SessionDriver(), instructions=instructions)
    assert (ask.say, ask.instructions) == ("", instructions), "who follows instructions is given them"


def test_a_text_to_be_said_is_said_whatever_came_before_and_answers_nothing() -> None:
    driver = SessionDriver(abilities=COUNTER, reply="Please wait.")
    say(driver, "a latte")
    first = asked(driver, x_agogic={"say": "Please wait."})
    assert first.say == "Please wait."
    assert context(asked(driver))[-1] == ("user", "a latte"), "the order is still to be answered"
    check(driver.events)


@pytest.mark.parametrize("text", ["", "x" * 2001])
def test_a_text_to_be_said_has_bounds(text: str) -> None:
    driver = SessionDriver()
    (refused,) = driver.send(type="response.create", response={"x_agogic": {"say": text}})
    assert refused["error"]["param"] == "response.x_agogic.say"


# --- nobody has said anything since the last answer ---


def test_an_answer_to_nothing_new_asks_back_and_invents_no_order() -> None:
    """It is told the opening instead of the order again, and is not told of that answer later."""
    driver = SessionDriver(abilities=COUNTER, reply="Okay, one latte.")
    say(driver, "a latte")
    asked(driver)
    driver.reply = "Hello, what can I get you?"
    opening = driver.config.session.opening
    again = asked(driver)
    assert context(again) == [("user", "a latte"), ("assistant", "Okay, one latte."), ("user", opening)]
    say(driver, "with milk")
    assert context(asked(driver)) == [
        ("user", "a latte"),
        ("assistant", "Okay, one latte."),
        ("user", "with milk"),
    ], "the order is still what was said last"
    check(driver.events)


def test_a_system_message_behind_the_users_turn_does_not_stand_in_its_way() -> None:
    driver = SessionDriver(abilities=COUNTER)
    say(driver, "a latte")
    note = [{"type": "input_text", "text": "The shop closes at six."}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "system", "content": note})
    assert context(asked(driver)) == [("system", "The shop closes at six."), ("user", "a latte")]


def test_a_model_that_follows_instructions_follows_them_where_nobody_has_spoken() -> None:
    ask = asked(SessionDriver(), instructions="Greet the caller by name: Anna.")
    assert context(ask) == [("user", "")]
