"""A conversation as a hypothesis state machine: any order of events, sound, time, worker messages and faults.

    python -m tests.fuzz.conversation [--events N] [--seconds S] [--seed N]

Runs until so much has gone into sessions, or so long. What breaks one is shrunk to the shortest conversation that does,
and printed as a program.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from agent import wire
from agent.dialogue.session import Transport
from tests.fuzz.caller import Caller
from tests.fuzz.client_events import EVENT, GOOD_SETTINGS, TOOLS

STEPS = 40
EXAMPLES = 60
# Where time alone has nothing more to say: longer than any wait of a session's.
_ALL_OVER_S = 60.0
_SILENT = ("input_audio_buffer.append", "response.create")

# What has gone into all sessions, and what has come out.
counts: Counter[str] = Counter()


def taken(counted: Counter[str]) -> int:
    """What went in: client events and sound, the worker's messages, faults. Time and playing are not counted."""
    return counted["client"] + counted["sound"] + counted["worker"] + counted["faults"]


class Conversation(RuleBasedStateMachine):
    """One session from its first event to its rest."""

    @initialize(
        transport=st.sampled_from(["websocket", "websocket", "webrtc", "telephone"]), late=st.sampled_from([0, 2, 12])
    )
    def begin(self, transport: Transport, late: int) -> None:
        self.caller = Caller(transport, counts)
        self.caller.late = late

    # --- when ---

    def there(self) -> bool:
        return self.caller.connected and self.caller.closed is None

    def lives(self) -> bool:
        return self.caller.closed is None

    def can_lose(self) -> bool:
        return self.there() and self.caller.transport != "telephone"

    def is_away(self) -> bool:
        return self.lives() and not self.caller.connected

    def has_place(self) -> bool:
        return self.lives() and self.caller.placed

    def has_none(self) -> bool:
        return self.lives() and not self.caller.placed

    # --- the client ---

    @precondition(there)
    @rule(event=EVENT, of_others=st.booleans())
    def event(self, event: dict[str, Any], of_others: bool) -> None:
        event = self._with_ids(event)
        caused = self.caller.send(json.dumps(event), of_others=of_others)
        assert caused or event.get("type") in _SILENT, f"no answer to {event}"
        self._arrive()

    @precondition(there)
    @rule(update=GOOD_SETTINGS)
    def configure(self, update: dict[str, Any]) -> None:
        self.caller.send(json.dumps({"type": "session.update", "session": update}))
        self._arrive()

    @precondition(there)
    @rule(event=EVENT, cut=st.integers(0, 400))
    def truncated_event(self, event: dict[str, Any], cut: int) -> None:
        data = json.dumps(event).encode()
        assert self.caller.send(data[: cut % len(data)])
        self._arrive()

    @precondition(there)
    @rule(data=st.binary(max_size=20))
    def bytes_of_any_kind(self, data: bytes) -> None:
        assert self.caller.send(data)
        self._arrive()

    @precondition(there)
    @rule(text=st.sampled_from(["Hi.", "A latte, please."]), wait_s=st.sampled_from([0.0, 0.3, 1.0]))
    def ask_in_writing(self, text: str, wait_s: float) -> None:
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        self.caller.send(json.dumps({"type": "conversation.item.create", "item": item}))
        self.caller.send(json.dumps({"type": "response.create"}))
        self.caller.advance(wait_s)
        self._arrive()

    @precondition(there)
    @rule(output=st.text(max_size=4))
    def use_the_function(self, output: str) -> None:
        """Calls, where the worker makes some, are answered and asked for again."""
        self.caller.send(json.dumps({"type": "session.update", "session": {"tools": TOOLS}}))
        self.caller.calls = True
        self.caller.send(json.dumps({"type": "response.create"}))
        self.caller.advance(2.0)
        self.caller.deliver()
        called = [event for event in self.caller.received if event["type"] == "response.function_call_arguments.done"]
        if called and self.lives():
            item = {"type": "function_call_output", "call_id": called[-1]["call_id"], "output": output}
            self.caller.send(json.dumps({"type": "conversation.item.create", "item": item}))
            self.caller.send(json.dumps({"type": "response.create"}))
        self._arrive()

    # --- sound ---

    @precondition(there)
    @rule(seconds=st.sampled_from([0.06, 0.3, 0.6]), piece_s=st.sampled_from([0.02, 0.06, 0.3]))
    def speak(self, seconds: float, piece_s: float) -> None:
        self.caller.sound(seconds, 8000, piece_s)
        self._arrive()

    @precondition(there)
    @rule(seconds=st.sampled_from([0.1, 0.3, 0.7]))
    def hush(self, seconds: float) -> None:
        self.caller.sound(seconds, 0)
        self._arrive()

    @precondition(there)
    @rule(quiet_s=st.sampled_from([0.6, 1.0]), into_answer_s=st.sampled_from([0.0, 0.3, 1.0]))
    def a_turn_and_a_barge_in(self, quiet_s: float, into_answer_s: float) -> None:
        self.caller.sound(0.3, 8000)
        self.caller.sound(quiet_s, 0)
        if into_answer_s:
            self.caller.sound(into_answer_s, 0)
            self.caller.sound(0.1, 8000)
        self._arrive()

    @precondition(there)
    @rule(seconds=st.sampled_from([0.5, 3.0]), amplitude=st.sampled_from([0, 8000]))
    def flood(self, seconds: float, amplitude: int) -> None:
        """All of it at once, as one who plays a file does."""
        self.caller.append(seconds, amplitude)
        self._arrive()

    # --- time ---

    @precondition(lives)
    @rule(seconds=st.sampled_from([0.05, 0.5, 3.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.caller.advance(seconds)
        self._arrive()

    @precondition(lives)
    @rule(
        each_step=st.sampled_from([0, 1, 100]),
        reply=st.sampled_from(["Yes.", "Yes, of course.", " ".join(["word"] * 12), ""]),
        fails=st.sampled_from([False, False, True]),
        certainty=st.sampled_from([None, 0.2, 0.99]),
    )
    def another_worker_mood(self, each_step: int, reply: str, fails: bool, certainty: float | None) -> None:
        """0 messages in a step: its link stands still."""
        caller = self.caller
        caller.each_step, caller.reply, caller.fails, caller.certainty = each_step, reply, fails, certainty

    @precondition(lives)
    @rule(late=st.sampled_from([0, 1, 5, 30]))
    def another_network(self, late: int) -> None:
        self.caller.late = late
        self.caller.session.network(late / 100, 10.0 * late)

    # --- faults ---

    @precondition(has_place)
    @rule(how=st.sampled_from(["dies", "breaks off", "garbled"]), at=st.integers(0, 300), value=st.integers(0, 255))
    def worker_fails(self, how: str, at: int, value: int) -> None:
        if how == "breaks off":
            self.caller.cut_frame(at)
        elif how == "garbled":
            self.caller.garble_frame(at, value)
        else:
            self.caller.unplace()
        self._arrive()

    @precondition(has_none)
    @rule()
    def another_worker(self) -> None:
        self.caller.place()
        self._arrive()

    @precondition(has_place)
    @rule(
        kind=st.sampled_from(["text", "done", "error", "load", "call", "judged", "encoded", "transcript", "audio"]),
        number=st.integers(0, 9),
    )
    def the_worker_says_what_nobody_asked(self, kind: str, number: int) -> None:
        lease, stats = self.caller.lease, wire.ResponseStats()
        said: dict[str, wire.Message] = {
            "text": wire.TextDelta(lease, number, "late"),
            "done": wire.ResponseDone(lease, number, "completed", "late", stats),
            "error": wire.WorkerError(lease, "broken", "cannot hear", number or None),
            "load": wire.WorkerLoad(number / 4, [(4.0, 0.1), (12.5, number / 4)], 5.0, 1, 4),
            "call": wire.ToolCall(lease, number, "f", "{}"),
            "judged": wire.EndJudged(lease, number, 4000, number / 10),
            "encoded": wire.UtteranceEncoded(lease, number, 100, 1, 1, 12.5, 1.0, [80]),
            "transcript": wire.Transcript(lease, number, "late words", final=bool(number % 2)),
            "audio": wire.AudioOut(lease, number, 0, bytes(960), [wire.TokenSpan(1, 1)], []),
        }
        self.caller.worker_says(said[kind])
        self._arrive()

    @precondition(can_lose)
    @rule(away_s=st.sampled_from([0.0, 0.5, 20.0]))
    def lose_the_connection(self, away_s: float) -> None:
        self.caller.lose()
        self.caller.advance(away_s)

    @precondition(is_away)
    @rule(transport=st.sampled_from(["websocket", "webrtc"]))
    def come_back(self, transport: Literal["websocket", "webrtc"]) -> None:
        if not self.caller.return_by(transport):
            self.caller = Caller(transport, counts)
        self._arrive()

    @precondition(there)
    @rule()
    def memory_is_short(self) -> None:
        self.caller.session.forget_sound()
        counts["faults"] += 1

    @precondition(there)
    @rule(key=st.sampled_from("0*#D"))
    def press(self, key: str) -> None:
        counts["client"] += 1
        self.caller.do(self.caller.session.dtmf(key))
        self._arrive()

    # --- in the end ---

    def teardown(self) -> None:
        """Whatever happened: with a worker that works and a client that is there, everything comes to its rest."""
        caller = getattr(self, "caller", None)
        if caller is None:
            return
        counts["conversations"] += 1
        if caller.closed is None:
            if not caller.connected and not caller.return_by("websocket"):
                return
            caller.each_step, caller.fails, caller.reply = 100, False, "Yes."
            if caller.placed:
                caller.unplace()  # what a slow worker was asked is asked again of the next
            caller.place()
            caller.advance(_ALL_OVER_S)
        caller.deliver()
        seen = Counter(event["type"] for event in caller.received)
        assert caller.closed is not None or seen["response.created"] == seen["response.done"]
        caller.session.close()

    # --- small things ---

    def _arrive(self) -> None:
        if self.caller.connected:
            self.caller.deliver(late=self.caller.late)

    def _with_ids(self, event: dict[str, Any]) -> dict[str, Any]:
        """ "last" stands for the newest item or call that there is, "mine" for the newest of the user's."""
        added = [one["item"] for one in self.caller.received[-200:] if one["type"] == "conversation.item.added"]
        known = {"last": added, "mine": [item for item in added if item.get("role") == "user"]}
        for field in ("item_id", "previous_item_id"):
            if found := known.get(str(event.get(field))):
                event = {**event, field: found[-1]["id"]}
        return event


def profile(examples: int, *, quiet: bool = True, shrink: bool = True) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet if quiet else Verbosity.normal,
        print_blob=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.conversation", description="Any conversation at all.")
    parser.add_argument("--events", type=int, default=1_000_000, help="that go into sessions")
    parser.add_argument("--seconds", type=float, default=7200.0, help="at most")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: another one each time")
    arguments = parser.parse_args()
    began_s, told_s, round_ = time.monotonic(), 0.0, arguments.seed
    while taken(counts) < arguments.events and time.monotonic() - began_s < arguments.seconds:
        try:
            run_state_machine_as_test(seed(round_)(Conversation), settings=profile(EXAMPLES, quiet=False))
        except BaseException:
            print(f"conversation: broken with --seed {round_}, after {taken(counts)} events", flush=True)
            raise
        round_ += 1
        if time.monotonic() - told_s > 60 or taken(counts) >= arguments.events:
            told_s = time.monotonic()
            print(summary(told_s - began_s), flush=True)
    if taken(counts) < arguments.events:
        sys.exit(f"conversation: nothing broke, but there was time for {taken(counts)} events only")


def summary(lasted_s: float) -> str:
    """What happened so far, as JSON."""
    told = {
        "events_in": taken(counts),
        "client_events": counts["client"],
        "sound_pieces": counts["sound"],
        "worker_messages": counts["worker"],
        "faults": counts["faults"],
        "events_out": counts["out"],
        "told_to_worker": counts["told"],
        "conversations": counts["conversations"],
        "lasted_s": round(lasted_s),
    }
    return json.dumps(told)


if __name__ == "__main__":
    main()
