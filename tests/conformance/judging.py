"""What is demanded of each step of the play: of the events that went by, and of what the client knows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.protocol.order import Order, OutOfOrder
from agent.recording.against import Came, skeleton
from models.orders import parse_basket
from tests.conformance.tap import Heard
from tests.support.conformance import SDK_TYPES, Conformance

JsonObject = dict[str, Any]
GOLDEN = Path(__file__).parents[1] / "agent" / "golden" / "realtime_traces.json"
_TURN = "input_audio_buffer.speech_started"
_END = "response.done"


def golden(name: str, sender: str = "server") -> list[str]:
    """Types of a golden trace in order, sound and its words as one, without what may come at any time."""
    trace = json.loads(GOLDEN.read_text())["traces"][name]
    return skeleton(Came(0.0, entry["event"]) for entry in trace if entry["dir"] == sender)


def order_of(events: Sequence[JsonObject]) -> list[str]:
    return skeleton(Came(0.0, event) for event in events)


def missing(wanted: Sequence[str], found: Sequence[str]) -> str:
    """The first of `wanted` that is not in `found` in its order, with whatever else between; "" where all are."""
    rest = iter(found)
    return next((kind for kind in wanted if kind not in rest), "")


@dataclass
class Verdict:
    """Of one step. `found_wrong` is empty where it holds."""

    step: str
    found_wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def demand(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.found_wrong.append(otherwise)


def turn_of_the_golden_trace() -> list[str]:
    """From the first speech to the end of the answer, as every spoken turn is."""
    kinds = golden("voice_turn")
    return kinds[kinds.index(_TURN) : kinds.index(_END) + 1]


def interruption_of_the_golden_trace() -> list[str]:
    """From the speech that interrupts to the end of what is interrupted."""
    kinds = golden("barge_in_websocket")
    second = kinds.index(_TURN, kinds.index(_TURN) + 1)
    return kinds[second : kinds.index(_END) + 1]


def call_of_the_golden_trace() -> list[str]:
    """From the call's item to the end of the answer that calls."""
    kinds = golden("tool_call")
    # In how many pieces the arguments come says nothing.
    return kinds[kinds.index("response.function_call_arguments.done") : kinds.index(_END) + 1]


def in_order(heard: Sequence[Heard], *, is_ours: bool) -> list[str]:
    """What is wrong with the server's events of each connection: their order, and, of our own server, their shape."""
    wrong: list[str] = []
    for number in sorted({one.connection for one in heard}):
        order, conformance = Order(), Conformance()
        for one in heard:
            if one.connection != number or one.sender != "server":
                continue
            try:
                if is_ours:
                    conformance.take(one.event)
                elif one.kind in SDK_TYPES:
                    order.take(one.event)
            except (AssertionError, OutOfOrder, ValueError, KeyError) as error:
                wrong.append(f"{one.step}: {one.kind}: {error}")
                break
    return wrong


@dataclass(frozen=True)
class Acted:
    """One step as it went: what the client says of it (`play`), and what went by at the tap."""

    step: str
    report: JsonObject
    heard: Sequence[Heard]

    def server(self) -> list[JsonObject]:
        return [one.event for one in self.heard if one.sender == "server"]

    def client(self, kind: str) -> list[JsonObject]:
        return [one.event for one in self.heard if one.sender == "client" and one.kind == kind]

    def responses(self) -> list[JsonObject]:
        return [event["response"] for event in self.server() if event["type"] == _END]

    def said(self) -> str:
        """The last words of the agent that the client knows of."""
        return next((text for role, text in reversed(self.report["history"]) if role == "assistant" and text), "")


def judge(acted: Acted, *, knows_counter: bool) -> Verdict:
    """`knows_counter`: it is the embedded model, so what it says is known as well."""
    verdict = Verdict(acted.step)
    report = acted.report
    verdict.demand(not report["failure"], report["failure"])
    verdict.demand(not report["errors"], f"the client was told of errors: {report['errors']}")
    verdict.demand(not report.get("outside"), f"the client tried to leave this machine: {report.get('outside')}")
    verdict.demand(report["sound_bytes"] > 0, "the client played no sound")
    errors = [event["error"] for event in acted.server() if event["type"] == "error"]
    # To whom the protocol's word for "there was nothing to cancel" is an answer, it is one.
    refused = [error["message"] for error in errors if error["code"] != "response_cancel_not_active"]
    verdict.demand(not refused, f"the server refused: {refused}")
    _STEPS.get(acted.step, _spoken_turn)(acted, verdict)
    if knows_counter:
        _judge_words(acted, verdict)
    return verdict


def _spoken_turn(acted: Acted, verdict: Verdict) -> None:
    absent = missing(turn_of_the_golden_trace(), order_of(acted.server()))
    verdict.demand(not absent, f"no turn as in the golden trace: {absent} is not where it should be")
    verdict.demand(any(one["status"] == "completed" for one in acted.responses()), "no answer was completed")
    last = [role for role, text in acted.report["history"] if text][-2:]
    verdict.demand(last == ["user", "assistant"], f"the client's history does not end in a turn: {last}")


def _shown(acted: Acted, verdict: Verdict) -> None:
    """A picture, and a spoken turn behind it."""
    parts = [part for event in acted.client("conversation.item.create") for part in event["item"].get("content", [])]
    verdict.demand("input_image" in [part["type"] for part in parts], "the client showed no picture")
    _spoken_turn(acted, verdict)


def _interrupted(acted: Acted, verdict: Verdict) -> None:
    absent = missing(interruption_of_the_golden_trace(), order_of(acted.server()))
    verdict.demand(not absent, f"no interruption as in the golden trace: {absent} is not where it should be")
    cancelled = [one for one in acted.responses() if one["status"] == "cancelled"]
    reasons = [(one.get("status_details") or {}).get("reason") for one in cancelled]
    verdict.demand(reasons == ["turn_detected"], f"responses were cancelled for {reasons}")
    truncations = acted.client("conversation.item.truncate")
    verdict.demand(bool(truncations), "the client truncated nothing")
    told = [event["audio_end_ms"] for event in acted.server() if event["type"] == "conversation.item.truncated"]
    verdict.demand(len(told) >= len(truncations), f"{len(truncations)} truncations, {len(told)} answers to them")
    verdict.demand(acted.report["interruptions"] >= 1, "the client did not notice the interruption")


def _called(acted: Acted, verdict: Verdict) -> None:
    absent = missing(call_of_the_golden_trace(), order_of(acted.server()))
    verdict.demand(not absent, f"no call as in the golden trace: {absent} is not where it should be")
    calls = acted.report["calls"]
    verdict.demand([name for name, _ in calls] == ["submit_order"], f"the client was made to call {calls}")
    outputs = [event for event in acted.client("conversation.item.create") if "output" in event["item"]]
    verdict.demand(len(outputs) == 1, f"the client sent {len(outputs)} results")
    verdict.demand(acted.responses()[-1]["status"] == "completed" if acted.responses() else False, "no answer to it")


def _came_back(acted: Acted, verdict: Verdict) -> None:
    connections = {one.connection for one in acted.heard}
    created = [event for event in acted.server() if event["type"] == "session.created"]
    verdict.demand(bool(created), f"no new session: connections {sorted(connections)}")
    _spoken_turn(acted, verdict)


def _unasked(acted: Acted, verdict: Verdict) -> None:
    """An answer that nobody spoke for."""
    kinds = turn_of_the_golden_trace()
    absent = missing(kinds[kinds.index("response.created") :], order_of(acted.server()))
    verdict.demand(not absent, f"no answer as in the golden trace: {absent} is not where it should be")


def _joined(acted: Acted, verdict: Verdict) -> None:
    """Both halves are one question, and a client that knows no deletion has no words of it twice."""
    statuses = [one["status"] for one in acted.responses()]
    verdict.demand(statuses == ["cancelled", "completed"], f"its pause was not taken for its end: {statuses}")
    kind = "conversation.item.input_audio_transcription.completed"
    halves = [event["transcript"] for event in acted.server() if event["type"] == kind]
    verdict.demand(len(halves) == 2, f"transcripts of {len(halves)} items instead of two halves")
    gone = [event for event in acted.server() if event["type"] == "conversation.item.deleted"]
    verdict.demand(not gone, "items that the client had been told of were deleted")
    users = [text for role, text in acted.report["history"] if role == "user" and text]
    first = halves[0].split() if halves else []
    held = " ".join(users).split()
    times = sum(held[at : at + len(first)] == first for at in range(len(held)))
    verdict.demand(not first or times == 1, f"the client holds {halves[:1]} {times} times: {users}")


_STEPS = {
    "greeting": _unasked,
    "second_turn": _shown,
    "joined": _joined,
    "interruption": _interrupted,
    "tool": _called,
    "given": _unasked,
    "reconnect": _came_back,
}
_RESTATED = "Okay, one large light roast americano. Anything else?"
# What the embedded model says at the end of each step.
_WORDS = {
    "turn": _RESTATED,
    "second_turn": "That is ",
    "joined": "Okay, one triple shot cappuccino with milk and sugar. Anything else?",
    # Nothing of the order before it, and all of what was interrupted.
    "interruption": "Sure, one large medium roast house coffee. Anything else?",
    "tool": "Your order number is seven.",
    "given": "Please wait a moment.",
}
_ORDERED = {"coffeeDrink": "house coffee", "size": "large", "roast": "medium roast"}


def _judge_words(acted: Acted, verdict: Verdict) -> None:
    said = acted.said()
    if acted.step == "greeting":
        verdict.demand(bool(said) and parse_basket(said) is None, f"nobody has ordered, and it says {said!r}")
        return
    if acted.step == "reconnect":
        # A client that tells its history again may have the model mix orders; the drink is what was said last.
        verdict.demand("light roast americano" in said, f"the order after the loss was answered by {said!r}")
        return
    wanted = _WORDS[acted.step]
    verdict.demand(said.startswith(wanted), f"the client knows {said!r} as said last, not {wanted!r}")
    if acted.step == "tool":
        given = [arguments for _, arguments in acted.report["calls"]]
        verdict.demand(given == [_ORDERED], f"submit_order was called with {given}")
