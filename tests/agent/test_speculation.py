"""How long a pause lasts before the turn ends, and answers that are begun before that is certain."""

from __future__ import annotations

from typing import Any

import pytest

from agent import wire
from agent.config import ServerConfig, TurnConfig
from agent.turn.detector import (
    LIKELY_END_SAMPLES,
    NEAR_SAMPLES,
    EndNear,
    LikelyStopped,
    SpeechStopped,
    TurnDetector,
    TurnTiming,
)
from agent.turn.patience import PATIENCE, Patience
from tests.support.conformance import check
from tests.support.session_driver import SessionDriver
from tests.support.situations import PUSH_TO_TALK

# The second is the least for which anything but the longest silence is waited for.
SURE, UNSURE, GOES_ON = 0.999, PATIENCE["auto"].steps[-1][0], 0.1
LIKELY_END_S = LIKELY_END_SAMPLES / 16_000

SEMANTIC = ServerConfig(turn=TurnConfig(detection="semantic_vad"))


def detection(**turn_detection: Any) -> dict[str, Any]:
    return {"audio": {"input": {"turn_detection": turn_detection}}}


def waited_ms(driver: SessionDriver) -> float:
    """The silence that ended the turn of 0.6 s."""
    (stopped,) = driver.of("input_audio_buffer.speech_stopped")
    return float(stopped["audio_end_ms"]) - 600


def one_turn(certainty: float | None, settings: dict[str, Any] | None = None, **more: Any) -> SessionDriver:
    driver = SessionDriver(certainty=certainty, settings=settings, **({"config": SEMANTIC} | more))
    driver.speak(0.6)
    driver.hush(4.0)
    check(driver.events)
    return driver


# --- how long a pause lasts ---


def test_patience_goes_down_the_steps_to_the_longest() -> None:
    patience = Patience(((0.9, 200), (0.5, 600)), 1500)
    assert [patience.silence_ms(certainty) for certainty in (1.0, 0.9, 0.89, 0.5, 0.49, 0.0)] == [
        200, 200, 600, 600, 1500, 1500,
    ]  # fmt: skip


@pytest.mark.parametrize("name", PATIENCE)
def test_who_sounds_less_finished_is_waited_for_longer(name: Any) -> None:
    waits = [PATIENCE[name].silence_ms(step / 100) for step in range(101)]
    assert waits == sorted(waits, reverse=True) and waits[0] == PATIENCE[name].longest_ms


def test_the_eager_wait_least() -> None:
    for certainty in (0.0, 0.5, 0.9, 0.97, 0.999):
        waits = [PATIENCE[name].silence_ms(certainty) for name in ("low", "medium", "high")]
        assert waits == sorted(waits, reverse=True) and PATIENCE["auto"] == PATIENCE["medium"]


def test_a_judgement_counts_for_its_pause_only() -> None:
    detector = TurnDetector(TurnTiming(0.5, 0, 8000, Patience(((0.9, 192),), 2000)))

    def push(probability: float, windows: int) -> list[object]:
        return [event for _ in range(windows) if (event := detector.push(probability)) is not None]

    push(0.9, 10)
    assert [type(event) for event in push(0.0, 6)] == [LikelyStopped]
    assert detector.judged(0.2) is None
    assert not push(0.0, 20), "longer than without a judgement"
    assert [type(event) for event in push(0.0, 32)] == [EndNear]
    push(0.9, 10)
    events = push(0.0, 40)
    assert isinstance(events[-1], SpeechStopped), "by silence alone, where nobody has judged this pause"
    assert detector.judged(1.0) is None, "and nothing ends twice"


@pytest.mark.parametrize(
    ("certainty", "silence_ms"),
    [(SURE, PATIENCE["auto"].steps[0][1]), (GOES_ON, PATIENCE["auto"].longest_ms), (None, 500)],
)
def test_turns_end_by_what_the_worker_hears_where_the_operator_wants_it(
    certainty: float | None, silence_ms: int
) -> None:
    assert waited_ms(one_turn(certainty)) == pytest.approx(silence_ms, abs=60)


def test_server_vad_keeps_its_silence_whatever_the_worker_hears() -> None:
    for certainty in (SURE, GOES_ON):
        driver = one_turn(certainty, detection(type="server_vad", silence_duration_ms=700))
        assert waited_ms(driver) == pytest.approx(700, abs=60)


def test_eagerness_sets_how_long_the_unfinished_is_waited_for() -> None:
    waits = [
        waited_ms(one_turn(GOES_ON, detection(type="semantic_vad", eagerness=name))) for name in ("low", "auto", "high")
    ]
    assert waits == pytest.approx([PATIENCE[name].longest_ms for name in ("low", "auto", "high")], abs=60)


def test_the_operator_may_want_silence_alone() -> None:
    config = ServerConfig(turn=TurnConfig(detection="server_vad", silence_duration_ms=300))
    driver = one_turn(SURE, config=config)
    assert waited_ms(driver) == pytest.approx(300, abs=60)
    assert driver.of("session.created")[0]["session"]["audio"]["input"]["turn_detection"]["type"] == "server_vad"


def test_a_setting_of_one_kind_of_detection_chooses_that_kind() -> None:
    driver = SessionDriver()
    for given, kind in (({"silence_duration_ms": 300}, "server_vad"), ({"eagerness": "low"}, "semantic_vad")):
        driver.send(type="session.update", session={"type": "realtime", **detection(**given)})
        assert driver.last("session.updated")["session"]["audio"]["input"]["turn_detection"]["type"] == kind


def test_a_judgement_about_an_earlier_pause_is_too_late() -> None:
    driver = SessionDriver(reply=None, certainty=GOES_ON, config=SEMANTIC)
    driver.speak(0.6)
    driver.hush(0.3)
    first = sum(len(message.pcm) for message in driver.asked(wire.AudioIn)) // 2
    driver.speak(0.4)
    driver.hush(0.3)
    driver.worker(wire.EndJudged(1, 1, first, SURE))
    assert not driver.of("input_audio_buffer.speech_stopped")


# --- answers that are begun early ---


def pausing(certainty: float | None = UNSURE, **more: Any) -> SessionDriver:
    """In a pause in which an answer was begun and made, and the turn has not ended."""
    driver = SessionDriver(certainty=certainty, **({"config": SEMANTIC} | more))
    driver.speak(0.6)
    driver.hush(LIKELY_END_S + 0.16)
    assert len(driver.asked(wire.Respond)) == 1 and not driver.of("input_audio_buffer.speech_stopped")
    return driver


def test_nothing_of_it_is_seen_before_the_turn_has_ended() -> None:
    driver = pausing()
    assert driver.types()[1:] == ["input_audio_buffer.speech_started"]
    assert driver.session._speaking.active is None and not driver.session._conversation.items
    assert not driver.session._speaking.take_finished()


def test_it_is_the_answer_at_once_when_the_turn_ends() -> None:
    driver = pausing()
    driver.hush(3.0)
    assert len(driver.asked(wire.Respond)) == 1 and not driver.asked(wire.Cancel)
    done = driver.last("response.done")["response"]
    assert done["status"] == "completed" and done["output"][0]["content"][0]["transcript"] == "It is noon."
    assert done["x_agogic"]["timing"]["first_audio_ms"] == 0.0
    assert done["x_agogic"]["speculation"]["saved_ms"] <= 40, "the scripted worker answers within a step"
    check(driver.events)


def test_time_that_passed_before_the_end_was_saved() -> None:
    driver = SessionDriver(reply=None, certainty=UNSURE, config=SEMANTIC)
    driver.speak(0.6)
    driver.hush(LIKELY_END_S + 0.04)
    (asked,) = driver.asked(wire.Respond)
    driver.hush(0.8)
    assert driver.of("response.created") and not driver.of("response.output_audio.delta")
    driver.worker(wire.ResponseDone(1, asked.generation, "completed", "", wire.ResponseStats()))
    saved_ms = driver.last("response.done")["response"]["x_agogic"]["speculation"]["saved_ms"]
    assert saved_ms == pytest.approx(PATIENCE["auto"].silence_ms(UNSURE) - 1000 * LIKELY_END_S, abs=70)


def test_who_goes_on_speaking_hears_nothing_of_it() -> None:
    driver = pausing()
    (begun,) = driver.asked(wire.Respond)
    before = len(driver.to_worker)
    driver.speak(0.5)
    assert driver.to_worker[before] == wire.Cancel(1, begun.generation), "before any more sound"
    driver.worker(wire.ResponseDone(1, begun.generation, "cancelled", "", wire.ResponseStats()))
    driver.hush(4.0)
    assert len(driver.of("response.created")) == len(driver.of("response.done")) == 1
    assert len(driver.of("input_audio_buffer.speech_started")) == 1
    speculation = driver.last("response.done")["response"]["x_agogic"]["speculation"]
    assert speculation["wasted_ms"] == 5.0, "the work on the first one"
    check(driver.events)


def test_a_pause_that_sounds_unfinished_is_not_worth_an_answer() -> None:
    driver = SessionDriver(certainty=GOES_ON, config=SEMANTIC)
    driver.speak(0.6)
    driver.hush(1.0)
    assert driver.asked(wire.LikelyEnd) and not driver.asked(wire.Respond)


@pytest.mark.parametrize(
    "settings",
    [detection(type="server_vad", silence_duration_ms=700), detection(type="semantic_vad", eagerness="high")],
)
def test_shortly_before_the_turn_ends_anyhow_an_answer_is_begun_however_it_sounds(settings: dict[str, Any]) -> None:
    wait_s = 0.7 if "server_vad" in str(settings) else PATIENCE["high"].longest_ms / 1000
    driver = SessionDriver(certainty=GOES_ON, settings=settings)
    driver.speak(0.6)
    driver.hush(wait_s - NEAR_SAMPLES / 16_000 - 0.1)
    assert driver.asked(wire.LikelyEnd) and not driver.asked(wire.Respond)
    driver.hush(0.2)
    assert len(driver.asked(wire.Respond)) == 1 and not driver.of("input_audio_buffer.speech_stopped")
    driver.hush(3.0)
    assert len(driver.asked(wire.Respond)) == 1, "which is the answer then"
    assert driver.last("response.done")["response"]["x_agogic"]["timing"]["first_audio_ms"] == 0.0
    check(driver.events)


def test_without_a_judge_the_likely_end_is_answered() -> None:
    driver = pausing(certainty=None)
    driver.hush(3.0)
    assert len(driver.asked(wire.Respond)) == 1
    assert driver.last("response.done")["response"]["status"] == "completed"


NEWS: dict[str, list[dict[str, Any]]] = {
    "another item": [
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
        }
    ],
    "other settings": [{"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief."}}],
}


@pytest.mark.parametrize("news", NEWS)
def test_what_changes_meanwhile_is_in_the_answer(news: str) -> None:
    driver = pausing()
    for event in NEWS[news]:
        driver.send(**event)
    driver.hush(4.0)
    begun, asked = driver.asked(wire.Respond)
    assert asked.generation > begun.generation
    assert "Be brief." in (asked.instructions, *(item.text for item in asked.context))
    assert len(driver.of("response.done")) == 1
    check(driver.events)


@pytest.mark.parametrize("end", ["clear", "commit", "by hand", "lost"])
def test_an_end_of_another_kind_takes_it_back(end: str) -> None:
    driver = pausing()
    match end:
        case "clear":
            driver.send(type="input_audio_buffer.clear")
        case "commit":
            driver.send(type="input_audio_buffer.commit")
        case "by hand":
            driver.send(type="session.update", session={"type": "realtime", **PUSH_TO_TALK})
        case "lost":
            driver.do(driver.session.worker_lost())
    driver.advance(1.0)
    assert not driver.of("response.created")
    assert len(driver.asked(wire.Cancel)) == (end != "lost")


def test_an_answer_that_the_client_asks_for_comes_first() -> None:
    driver = pausing()
    driver.send(type="response.create", response={"conversation": "none", "input": []})
    driver.hush(4.0)
    assert [done["response"]["status"] for done in driver.of("response.done")] == ["cancelled", "completed"]
    check(driver.events)


def test_a_failed_beginning_is_asked_for_again() -> None:
    driver = SessionDriver(reply=None, certainty=UNSURE, config=SEMANTIC)
    driver.speak(0.6)
    driver.hush(LIKELY_END_S + 0.1)
    (begun,) = driver.asked(wire.Respond)
    driver.worker(wire.ResponseDone(1, begun.generation, "failed", "", wire.ResponseStats(), "no place"))
    driver.hush(1.0)
    assert len(driver.asked(wire.Respond)) == 2 and not driver.of("response.done")


def test_nobody_begins_what_the_client_wants_to_ask_for_itself() -> None:
    driver = SessionDriver(certainty=UNSURE, settings=detection(type="semantic_vad", create_response=False))
    driver.speak(0.6)
    driver.hush(3.0)
    assert not driver.asked(wire.Respond)
