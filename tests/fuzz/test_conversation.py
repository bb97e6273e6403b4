"""Half a minute of conversations at random; `make fuzz` has an hour of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from agent.dialogue.sent import Sent, SentEvents
from agent.dialogue.speaking import Speaking
from tests.fuzz import conversation
from tests.fuzz.conversation import Conversation, profile, taken

EXAMPLES = 100
Calls = conversation.Counter[str]


@pytest.fixture
def counts() -> Iterator[Calls]:
    conversation.counts.clear()
    yield conversation.counts
    conversation.counts.clear()


@pytest.mark.timeout(600)
def test_any_conversation_stays_within_the_protocol(counts: Calls) -> None:
    run_state_machine_as_test(Conversation, settings=profile(EXAMPLES, quiet=False))
    assert taken(counts) > 50 * EXAMPLES, "or there was little to be wrong"
    assert min(counts["out"], counts["told"], counts["faults"], counts["worker"]) > EXAMPLES


@pytest.mark.parametrize("fault", ["a missed event is not sent again", "an answer that is cut off ends twice"])
def test_such_faults_are_found(fault: str, counts: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault.startswith("a missed event"):
        after = SentEvents.after

        def without_the_first(self: SentEvents, event_id: str) -> list[Sent]:
            return after(self, event_id)[1:]

        monkeypatch.setattr(SentEvents, "after", without_the_first)
    else:
        cut = Speaking._cut

        def cut_and_told(self: Speaking, response: conversation.Any, now_s: float, *, interrupted: bool) -> None:
            cut(self, response, now_s, interrupted=interrupted)
            for event in response.closing("cancelled", "turn_detected", None):
                self._outbox.send(event)

        monkeypatch.setattr(Speaking, "_cut", cut_and_told)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(seed(1)(Conversation), settings=profile(60, shrink=False))
