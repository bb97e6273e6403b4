"""Calls: read from what the counter's model says, or from what a model writes between the template's marks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from agent.wire import NO_TOOLS, ContextItem, ToolUse
from benchmarks.dialogue import tools
from models.networks.prompts import CALL, PastTurn, chat_prompt
from models.orders import order_in_words
from training.world import change, sample_order, say_order
from worker.calls.caller import Calling
from worker.calls.counter import FAILED, WELCOME, CounterCaller, confirms, recalled, reply_to
from worker.calls.template import TemplateCaller, written_calls
from worker.loading import load_model
from worker.parts import Called, Conversation, Finished, Question, RequestError, Sound, Spoken, TextPiece
from worker.pipeline import Pipeline

SUBMIT, CANCEL = '{"name":"submit_order"}', '{"name":"cancel_order"}'
BASKETS = '{"name":"submit_order","parameters":{"properties":{"items":{"type":"array"}}}}'
BOTH = ToolUse((SUBMIT, CANCEL))
LATTE = "Okay, one large latte with soy milk. Anything else?"
PRICE = "Great, that is four dollars fifty."
SLOTS = {"size": "large", "coffeeDrink": "latte", "milkAmount": "soy milk"}


def told(*lines: str) -> tuple[ContextItem, ...]:
    """Lines of "user: ...", "assistant: ...", "call NAME: ..." and "result NAME: ..."."""
    items = []
    for line in lines:
        head, _, text = line.partition(": ")
        role, _, name = head.partition(" ")
        items.append(ContextItem(role, text, name=name))  # type: ignore[arg-type]
    return tuple(items)


def made(answer: str, *lines: str, tools: ToolUse = BOTH) -> list[tuple[str, Any]]:
    """The calls of the answer to these lines."""
    calling = CounterCaller().calling(told(*lines), tools)
    if calling is None:
        return []
    return [(call.name, json.loads(call.arguments)) for call in calling.read(answer)]


# --- the counter ---


@pytest.mark.parametrize("words", ["that's all", "no thank you", "that's it thanks", "no", "nothing else", "thats al"])
def test_a_confirmed_order_is_submitted_with_its_slots(words: str) -> None:
    lines = ("user: a large latte with soy milk", f"assistant: {LATTE}", f"user: {words}")
    assert made(PRICE, *lines) == [("submit_order", SLOTS)]


def test_only_what_is_defined_is_called() -> None:
    lines = ("user: a large latte with soy milk", f"assistant: {LATTE}", "user: that's all")
    assert CounterCaller().calling(told(*lines), NO_TOOLS) is None
    assert CounterCaller().calling(told(*lines), ToolUse(('{"name":"get_weather"}',))) is None
    assert made(PRICE, *lines, tools=ToolUse((CANCEL,))) == []
    assert made(PRICE, *lines, tools=ToolUse((SUBMIT,))) == [("submit_order", SLOTS)]
    assert made("No problem, I cancelled your order.", *lines, tools=ToolUse((SUBMIT,))) == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("a large latte with soy milk", LATTE),
        ("make it a small", "Sure, one small latte with soy milk. Anything else?"),
        ("how much is that", "That is four dollars fifty."),
        ("thank you", WELCOME),
        ("what time is it", "Sorry, I can only help with coffee orders."),
        # Both must agree, what was said and what was understood.
        ("make it a small", PRICE),
        ("how much is that", PRICE),
        ("cancel that", PRICE),
        ("that's all but with sugar", PRICE),
        ("", PRICE),
        ("hello there", PRICE),
        ("that's all", "Great, that is three dollars."),
        ("that's all", "Great, that is all dollars."),
    ],
)
def test_nothing_is_submitted_without_confirmation(words: str, answer: str) -> None:
    assert made(answer, "user: a latte", f"assistant: {LATTE}", f"user: {words}") == []


def test_nothing_is_submitted_where_nothing_was_ordered_or_all_was_cancelled() -> None:
    assert made(PRICE, "user: that's all") == []
    cancelled = ("user: cancel that", "assistant: No problem, I cancelled your order.")
    assert made(PRICE, "user: a latte", f"assistant: {LATTE}", *cancelled, "user: that's all") == []


def test_an_order_that_was_not_heard_to_its_end_is_not_confirmed_by_that_is_all() -> None:
    assert made(PRICE, "user: a latte", "assistant: Okay, one large latte with", "user: that's all") == []


def test_an_order_is_submitted_once_unless_that_failed() -> None:
    done = ("user: a latte", f"assistant: {LATTE}", "user: that's all", f"assistant: {PRICE}", "call submit_order: {}")
    assert made(PRICE, *done, "result submit_order: {}", f"assistant: {WELCOME}", "user: that's all") == []
    assert made(WELCOME, *done, "user: thanks") == []
    failed = (*done, 'result submit_order: {"error": "closed"}', f"assistant: {FAILED}")
    assert made(PRICE, *failed, "user: that's all") == [("submit_order", SLOTS)]
    again = (*done, "user: a large latte with soy milk", f"assistant: {LATTE}")
    assert made(PRICE, *again, "user: that's all") == [("submit_order", SLOTS)], "another order is another"


def test_a_confirmation_whose_answer_was_cut_off_is_made_good_with_the_next() -> None:
    cut = ("user: a latte", f"assistant: {LATTE}", "user: that's all", "assistant: Great, that is four")
    assert made(WELCOME, *cut, "user: thanks") == [("submit_order", SLOTS)]
    assert made("Sure, one small latte with soy milk. Anything else?", *cut, "user: make it a small") == []


def test_a_cancelled_order_is_cancelled() -> None:
    lines = ("user: a latte", f"assistant: {LATTE}", "user: never mind")
    assert made("No problem, I cancelled your order.", *lines) == [("cancel_order", {})]


def test_several_drinks_are_items_with_a_count() -> None:
    two = "Okay, two large lattes and one small mocha with cream. Anything else?"
    lines = ("user: two lattes and a mocha", f"assistant: {two}", "user: that's all")
    priced = "Great, that is thirteen dollars."
    items = [
        {"count": 2, "size": "large", "coffeeDrink": "latte"},
        {"count": 1, "size": "small", "coffeeDrink": "mocha", "milkAmount": "cream"},
    ]
    assert made(priced, *lines) == [("submit_order", {"items": items})]
    lines = ("user: a latte", f"assistant: {LATTE}", "user: that's all")
    assert made(PRICE, *lines, tools=ToolUse((BASKETS,))) == [("submit_order", {"items": [{"count": 1, **SLOTS}]})]


def test_what_must_be_called_is_called_without_a_word_or_refused() -> None:
    lines = told("user: a latte", f"assistant: {LATTE}", "user: go on")
    calling = CounterCaller().calling(lines, ToolUse((SUBMIT, CANCEL), required=True))
    assert calling is not None and calling.silent
    assert [call.name for call in calling.read("You are welcome.")] == ["submit_order"]
    named = CounterCaller().calling(lines, ToolUse((SUBMIT, CANCEL), required=True, only="cancel_order"))
    assert named is not None and [call.name for call in named.read(LATTE)] == ["cancel_order"]
    empty = CounterCaller().calling(told("user: hello"), ToolUse((SUBMIT,), required=True))
    assert empty is not None
    with pytest.raises(RequestError, match="no order to submit") as refused:
        empty.read("Hello, what can I get you?")
    assert refused.value.code == "no_tool_call"
    with pytest.raises(RequestError, match="get_weather"):
        CounterCaller().calling(lines, ToolUse(('{"name":"get_weather"}',), required=True, only="get_weather"))


@pytest.mark.parametrize(
    ("name", "output", "said"),
    [
        ("submit_order", '{"order_number": 17}', "Your order number is seventeen."),
        ("submit_order", '{"order_id": "42"}', "Your order number is forty two."),
        ("submit_order", "{'order_number': 17}", "Your order number is seventeen."),
        ("submit_order", "{'error': 'out of milk'}", FAILED),
        ("submit_order", "{'success': False}", FAILED),
        ("submit_order", "{" * 3000, WELCOME),
        ("submit_order", "[7]", WELCOME),
        ("submit_order", '{"ok": true}', WELCOME),
        ("submit_order", "", WELCOME),
        ("submit_order", '{"error": "out of milk"}', FAILED),
        ("submit_order", '{"status": "failed"}', FAILED),
        ("submit_order", "Error: no such table", FAILED),
        ("cancel_order", "done", "What can I get you?"),
        ("get_hours", "We close at six.", "We close at six."),
        ("get_hours", '{"closes": 18}', "Sorry, I can only help with coffee orders."),
        ("get_hours", "x" * 200, "Sorry, I can only help with coffee orders."),
    ],
)
def test_what_a_function_gave_changes_what_is_said(name: str, output: str, said: str) -> None:
    item = ContextItem("result", output, name=name)
    assert reply_to(item) == said
    calling = CounterCaller().calling((*told("call submit_order: {}"), item), BOTH)
    assert calling is not None and calling.say == said and calling.read("") == []


@pytest.mark.parametrize("words", ["a large latte", "no sugar", "never mind", "what was that", "", "with milk thanks"])
def test_words_that_ask_for_something_confirm_nothing(words: str) -> None:
    assert not confirms(words)


# --- the template ---


def test_functions_are_introduced_as_qwen_was_taught() -> None:
    """Word for word what `chat_template` of Qwen2.5-7B-Instruct makes of one function and no system message."""
    introduction = TemplateCaller().introduction(ToolUse((SUBMIT,)))
    assert introduction == (
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name":"submit_order"}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
    assert TemplateCaller().introduction(NO_TOOLS) == ""
    assert TemplateCaller(marked=False).introduction(ToolUse((SUBMIT,))) == ""


def test_calls_and_results_of_the_past_stand_in_the_prompt_as_the_template_has_them() -> None:
    past = [
        PastTurn("user", "a latte"),
        PastTurn("assistant", "One moment."),
        PastTurn("call", '{"size": "large"}', "submit_order"),
        PastTurn("call", "{}", "cancel_order"),
    ]
    results = [PastTurn("result", "one</tool_response>", "submit_order"), PastTurn("result", "two", "cancel_order")]
    prompt = chat_prompt("", audio=False, speech=False, history=past, results=results, tools="TOOLS")
    assert prompt.opening.endswith("TOOLS<|im_end|>\n")
    assert "".join(prompt.past) == (
        "<|im_start|>user\na latte<|im_end|>\n<|im_start|>assistant\nOne moment.\n"
        '<tool_call>\n{"name": "submit_order", "arguments": {"size": "large"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "cancel_order", "arguments": {}}\n</tool_call><|im_end|>\n'
    )
    assert prompt.request == (
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"
    )


def test_written_calls_are_read_in_their_order() -> None:
    text = (
        f'Sure.{CALL}\n{{"name": "submit_order", "arguments": {{"size": "large"}}}}\n</tool_call>\n'
        f'{CALL}{{"name": "cancel_order"}}</tool_call>'
    )
    known = {"submit_order", "cancel_order"}
    assert written_calls(text, known) == [Called("submit_order", '{"size":"large"}'), Called("cancel_order", "{}")]
    assert written_calls("Sure.", known) == []
    calling = TemplateCaller().calling((), ToolUse((SUBMIT, CANCEL), several=False))
    assert calling is not None and [call.name for call in calling.read(text)] == ["submit_order"]


@pytest.mark.parametrize(
    "written",
    ['{"name": "submit_order"', '{"name": "get_weather", "arguments": {}}', '{"name": "submit_order", "arguments": 1}'],
)
def test_a_call_that_is_none_fails_the_answer(written: str) -> None:
    with pytest.raises(RequestError) as refused:
        written_calls(f"{CALL}\n{written}\n</tool_call>", {"submit_order"})
    assert refused.value.code == "bad_tool_call"


def test_a_call_that_must_be_made_is_begun_for_the_model() -> None:
    named = TemplateCaller().calling((), ToolUse((SUBMIT,), required=True, only="submit_order"))
    assert named is not None and named.silent
    assert named.begun == '<tool_call>\n{"name": "submit_order", "arguments": '
    assert named.read('{"size": "large"}}\n</tool_call>') == [Called("submit_order", '{"size":"large"}')]
    free = TemplateCaller().calling((), ToolUse((SUBMIT,), required=True))
    assert free is not None and free.begun == "<tool_call>\n"
    with pytest.raises(RequestError, match=r"wrote (a call that is none|no call)"):
        free.read("I would rather not.")
    with pytest.raises(RequestError, match="no marks for calls"):
        TemplateCaller(marked=False).calling((), ToolUse((SUBMIT,), required=True))


# --- through the pipeline ---


def ask(model: Pipeline, items: tuple[ContextItem, ...], tools: ToolUse, **more: Any) -> Iterator[Spoken]:
    """The events of an answer."""
    speech = more.pop("speech", False)
    speaker = model.respond(Question(Conversation("", items, tools), {}, 12.5, 12.5, speech, 60, **more))
    while True:
        for event in speaker.step():
            yield event
            if isinstance(event, Finished):
                return


def text_of(events: list[Spoken]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextPiece)).strip()


class MarkCaller(TemplateCaller):
    """Takes what stands behind the mark for a call's arguments."""

    def introduction(self, tools: ToolUse) -> str:
        return ""

    def calling(self, items: tuple[ContextItem, ...], tools: ToolUse) -> Calling:
        return Calling(lambda text: [Called("f", text)], mark=CALL)


@pytest.fixture(scope="module")
def counter() -> Pipeline:
    torch.set_num_threads(1)
    return load_model("embedded")


def test_what_comes_behind_the_mark_is_written_and_not_said(counter: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [event.text for event in ask(counter, told("user: a latte"), NO_TOOLS) if isinstance(event, TextPiece)]
    first = next(n for n, piece in enumerate(pieces) if "Any" in piece)
    (token,) = counter.networks.tokenizer.encode(pieces[first])
    monkeypatch.setattr(counter, "caller", MarkCaller())
    monkeypatch.setattr(counter, "mark", token)
    marked = list(ask(counter, told("user: a latte"), BOTH, speech=True))
    assert text_of(marked) == "Okay, one latte."
    *_, call, end = marked
    assert isinstance(call, Called) and call.arguments.startswith(f"Okay, one latte.\n{CALL}\n")
    assert end == Finished("completed")
    words = [word.text for event in marked if isinstance(event, Sound) for word in event.words]
    assert words == ["Okay,", "one", "latte."], "and all of it is heard"


def test_the_embedded_model_submits_an_order_that_it_was_told_is_complete(counter: Pipeline) -> None:
    history: list[ContextItem] = []
    calls: list[list[tuple[str, Any]]] = []
    for words in ("a large latte with soy milk please", "make it a small", "how much is that", "that's all"):
        history.append(ContextItem("user", words))
        events = list(ask(counter, tuple(history), BOTH))
        history.append(ContextItem("assistant", text_of(events)))
        calls.append([(one.name, json.loads(one.arguments)) for one in events if isinstance(one, Called)])
    assert calls == [[], [], [], [("submit_order", {**SLOTS, "size": "small"})]]
    history.append(ContextItem("call", "{}", name="submit_order"))
    history.append(ContextItem("result", '{"order_number": 7}', name="submit_order"))
    events = list(ask(counter, tuple(history), BOTH))
    assert text_of(events) == "Your order number is seven." and isinstance(events[-1], Finished)
    assert counter.abilities.calls == ("submit_order", "cancel_order") and not counter.abilities.instructable


def test_the_embedded_model_says_a_given_text(counter: Pipeline) -> None:
    events = list(ask(counter, (), NO_TOOLS, say="Please wait a moment."))
    assert text_of(events) == "Please wait a moment."


# --- orders that were not restated to their end ---

ORDERED = "user: can i have a sixteen ounce medium roast house coffee"


@pytest.mark.parametrize("heard", [["assistant: Okay, one sixteen"], ["assistant: Okay,"], []])
def test_an_order_whose_restating_was_interrupted_is_remembered(counter: Pipeline, heard: list[str]) -> None:
    for words, said in (
        ("make it a large please", "Sure, one large medium roast house coffee. Anything else?"),
        ("how much is that", "That is three dollars."),
    ):
        events = list(ask(counter, told(ORDERED, *heard, f"user: {words}"), NO_TOOLS))
        assert text_of(events) == said


def test_of_an_interrupted_answer_the_customers_words_stand_in_its_place() -> None:
    whole = "assistant: Okay, one sixteen ounce medium roast house coffee. Anything else?"
    assert recalled(told(ORDERED, "assistant: Okay, one sixteen")) == told(ORDERED, whole)
    assert recalled(told(ORDERED, whole)) == told(ORDERED, whole)
    change = ("user: make it a mocha without milk", "assistant: Sure, one")
    changed = "assistant: Okay, one large mocha. Anything else?"
    assert recalled(told("user: a latte", f"assistant: {LATTE}", *change))[-1:] == told(changed)
    assert recalled(told("user: what time is it", "assistant: Okay,")) == told(
        "user: what time is it", "assistant: Okay,"
    ), "words that order nothing put nothing in its place"
    cancelled = ("user: never mind", "assistant: No problem, I cancelled your order.", "user: with milk")
    assert recalled(told("user: a latte", f"assistant: {LATTE}", *cancelled))[-1:] == told("user: with milk")


def test_weights_that_remember_words_are_told_what_was_heard() -> None:
    items = told(ORDERED, "assistant: Okay, one sixteen")
    assert CounterCaller(remembers_words=True).remembered(items) == items
    assert CounterCaller(remembers_words=False).remembered(items) != items
    assert TemplateCaller().remembered(items) == items


def test_what_a_customer_says_is_read_as_what_he_orders() -> None:
    for number in range(200):
        rng = random.Random(f"customer {number}")
        order = sample_order(rng)
        assert order_in_words(say_order(order, rng)) == order
        wish, changed = change(order, rng)
        assert changed in (order, order_in_words(wish, order))
    assert order_in_words("what time is it") is None and order_in_words("make it large") is None


# --- the measure ---


class Scripted(tools.Line):
    """A service that answers and calls as it is told to, whatever it is asked."""

    def __init__(self, *answers: tuple[str, tools.Calls]) -> None:
        self._answers = [*answers]

    async def say(self, what: object) -> tuple[str, tools.Calls]:
        return self._answers.pop(0) if self._answers else ("", [])


class Draws(random.Random):
    """Nobody talks of something else, changes his mind, asks or cancels."""

    def random(self) -> float:
        return 0.99


async def served(*answers: tuple[str, tools.Calls]) -> tools.Customer:
    return await tools.serve(Scripted(*answers), "a latte", "a latte", SLOTS, Draws(0))


async def test_customers_confirm_what_was_restated_and_count_what_they_did_not_confirm() -> None:
    submit: tools.Calls = [("submit_order", dict(SLOTS))]
    other: tools.Calls = [("submit_order", {"coffeeDrink": "latte"})]
    right = await served((LATTE, []), (PRICE, submit))
    assert right.right and right.confirmed
    for wrong in (
        [(LATTE, []), (PRICE, [])],
        [(LATTE, []), (PRICE, other)],
        [(LATTE, []), (PRICE, [*submit, *submit])],
        [(LATTE, []), (PRICE, submit), (WELCOME, submit)],
        [(LATTE, submit), (PRICE, [])],
    ):
        customer = await served(*wrong)
        assert customer.confirmed and not customer.right
    misunderstood = await served(("Okay, one mocha. Anything else?", submit), (PRICE, submit))
    assert misunderstood.misunderstood and not misunderstood.confirmed and misunderstood.unasked == submit
    report = tools.summary([right, misunderstood], spoken=False)
    assert (report["confirmed"], report["submitted_rightly"], report["submitted_unconfirmed"]) == (1, 1, 1)
    assert report["misunderstood"] == 1 and len(report["misses"]) == 1  # type: ignore[arg-type]
