"""A voice over the agent's: what stops it, what does not, and how it goes on."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
import pytest

from agent import wire
from agent.dialogue.overlap import REPLY_MS
from agent.turn.barge_in import LONG_IN_ALL_MS, LONG_MS, SHORT_MS, UNJUDGED_MS, Evidence, Verdict, weigh
from tests.support.conformance import check
from tests.support.fake_worker import SAMPLE_RATE_HZ, WORD_SAMPLES
from tests.support.session_driver import SessionDriver

WAIT, GO_ON, STOP = Verdict.UNDECIDED, Verdict.GO_ON, Verdict.STOP
REPLY = "one two three four five six seven eight nine ten"
SAID = "okay, one large latte with two shots"
Transport = Literal["websocket", "webrtc"]

CASES = [
    ("it has just begun", Evidence(64, 64), WAIT),
    ("it goes on", Evidence(500, 500), WAIT),
    ("it goes on and on", Evidence(LONG_MS, LONG_MS), STOP),
    ("again and again", Evidence(300, LONG_IN_ALL_MS), STOP),
    ("it has stopped, nobody has judged yet", Evidence(300, 300, 160), WAIT),
    ("it sounds like a backchannel", Evidence(300, 300, 160, rank=0.97), GO_ON),
    ("a long one that sounds like one", Evidence(800, 800, 160, rank=0.97), GO_ON),
    ("it sounds like a word that wants the word", Evidence(300, 300, 160, rank=0.5), STOP),
    ("yeah", Evidence(400, 400, 160, "Yeah."), GO_ON),
    ("mm-hm", Evidence(400, 400, 160, "Mm-hm."), GO_ON),
    ("okay, right, whatever it sounds like", Evidence(600, 600, 160, "okay right", rank=0.1), GO_ON),
    ("a sentence, while it lasts", Evidence(500, 500, None, "no wait please"), STOP),
    ("a sentence that sounds like a backchannel", Evidence(500, 500, 160, "i want tea", rank=1.0), STOP),
    ("yeah, but no word is known to be one", Evidence(500, 500, None, "yeah"), WAIT),
    ("the agent's own words", Evidence(700, 700, 160, "one large latte", said=SAID), GO_ON),
    ("its words while they are said", Evidence(700, 700, None, "one large latte", said=SAID), WAIT),
    ("other words", Evidence(700, 700, 160, "one small latte", said=SAID), STOP),
    ("one of its words may be a correction", Evidence(300, 300, 160, "two", rank=0.2, said=SAID), STOP),
    ("yes, while the agent ends", Evidence(300, 300, 160, "yes", rank=0.99, replies=True), STOP),
    ("a cough while the agent ends", Evidence(300, 300, 160, rank=0.99, replies=True), GO_ON),
    ("nobody judges, and it was short", Evidence(SHORT_MS - 32, 300, UNJUDGED_MS), GO_ON),
    ("nobody judges, and it was no cough", Evidence(SHORT_MS, 400, UNJUDGED_MS), STOP),
    ("nobody judges, but a word was understood", Evidence(200, 200, UNJUDGED_MS, "no"), STOP),
]


@pytest.mark.parametrize(("evidence", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_known_decides(evidence: Evidence, verdict: Verdict) -> None:
    assert weigh(evidence) is verdict


def answering(transport: Transport = "webrtc", **more: Any) -> SessionDriver:
    """An answer of ten words, 0.4 s each, has been heard for about a second."""
    driver = SessionDriver(transport=transport, reply=REPLY, **more)
    driver.send(type="response.create")
    driver.hush(1.1)
    return driver


def judge(driver: SessionDriver, rank: float | None, words: str = "") -> None:
    """The worker says what it makes of the pause at hand."""
    utterance = driver.asked(wire.StartUtterance)[-1].utterance
    heard = [message for message in driver.asked(wire.AudioIn) if message.utterance == utterance]
    if words:
        driver.worker(wire.Transcript(1, utterance, words, final=False))
    driver.worker(wire.EndJudged(1, utterance, sum(len(message.pcm) for message in heard) // 2, 0.1, rank))


def murmur(driver: SessionDriver, rank: float = 0.99, seconds: float = 0.3) -> None:
    driver.speak(seconds)
    driver.hush(0.26)
    judge(driver, rank)


def text_of(driver: SessionDriver) -> str:
    done = driver.last("response.done")["response"]
    return str(done["output"][0]["content"][0]["transcript"])


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_a_backchannel_leaves_no_trace_but_a_pause(transport: Transport) -> None:
    driver = answering(transport)
    murmur(driver)
    driver.hush(5.0)
    assert driver.last("response.done")["response"]["status"] == "completed"
    assert text_of(driver) == REPLY
    kinds = set(driver.types())
    assert not kinds & {
        "input_audio_buffer.speech_started",
        "input_audio_buffer.committed",
        "conversation.item.truncated",
    }
    assert len(driver.asked(wire.Respond)) == 1
    assert [message.utterance for message in driver.asked(wire.DropUtterance)] == [1]
    check(driver.events)


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_who_wants_the_word_gets_it(transport: Transport) -> None:
    driver = answering(transport)
    murmur(driver, rank=0.2)
    driver.hush(0.1)
    types = driver.types()
    assert types.index("input_audio_buffer.speech_started") < types.index("response.done")
    assert driver.last("response.done")["response"]["status_details"]["reason"] == "turn_detected"
    driver.hush(1.0)
    assert driver.of("input_audio_buffer.committed") and len(driver.asked(wire.Respond)) == 2
    check(driver.events)


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_a_voice_that_lasts_stops_it_without_any_judge(transport: Transport) -> None:
    driver = answering(transport)
    driver.speak(LONG_MS / 1000 + 0.1)
    started = driver.last("input_audio_buffer.speech_started")
    assert started["audio_start_ms"] == pytest.approx(1100 - 300, abs=70), "it began where the voice began"
    assert driver.last("response.done")["response"]["status"] == "cancelled"


def pulled(driver: SessionDriver, seconds: float, loud: bool = False) -> list[np.ndarray | None]:
    """What the listener gets, 20 ms at a time, while somebody speaks or nobody does."""
    heard: list[np.ndarray | None] = []
    for _ in range(round(seconds / 0.02)):
        driver.session.microphone(np.full(960, 8000 if loud else 0, np.int16))
        while driver.session.has_pending_audio:
            driver.do(driver.session.process_audio())
        driver.clock.advance(0.02)
        samples, effects = driver.session.pull_audio(480)
        driver.do(effects)
        heard.append(samples)
    return heard


def test_the_voice_fades_within_20_ms_of_the_onset_and_begins_again_with_the_word() -> None:
    driver = answering()
    before = driver.heard_samples
    spoken = pulled(driver, 0.3, loud=True)
    sounding = [piece for piece in spoken if piece is not None]
    assert 2 <= len(sounding) <= 4, "silent with its first 32 ms"
    assert sounding[-2][0] == sounding[-2][-1] and sounding[-1][-1] < 100, "the last 20 ms fade"
    assert pulled(driver, 0.2) == [None] * 10
    judge(driver, 0.99)
    again = [piece for piece in pulled(driver, 0.1) if piece is not None]
    word = (before + 480 * len(sounding)) // WORD_SAMPLES
    assert again[0][0] == 0 and again[1][0] == 1000 + word, "it fades in, at the beginning of the word"
    left = [piece for piece in pulled(driver, 5.0) if piece is not None]
    rest = sum(piece.size for piece in [*again, *left])
    assert rest == (10 - word) * WORD_SAMPLES, "that word again and all others once"


def test_wherever_in_a_window_a_voice_begins_the_agent_is_silent_within_80_ms() -> None:
    """32 ms until its first window is over, what is left of the one before, 10 ms of resampling, 20 of a packet."""
    for wait in range(12):
        driver = answering()
        pulled(driver, wait * 0.02)
        sounding = [piece for piece in pulled(driver, 0.3, loud=True) if piece is not None]
        assert len(sounding) <= 4


def click(driver: SessionDriver) -> None:
    """20 ms of the microphone with a stroke in it that makes one window loud, never two."""
    stroke = np.zeros(960, np.int16)
    stroke[:192] = 5000
    driver.session.microphone(stroke)
    while driver.session.has_pending_audio:
        driver.do(driver.session.process_audio())


def test_at_a_click_the_voice_flinches_and_goes_on_where_it_was() -> None:
    driver = answering()
    before = driver.heard_samples
    click(driver)
    heard = pulled(driver, 6.0)
    silent = [number for number, piece in enumerate(heard[:20]) if piece is None]
    assert 1 <= len(silent) <= 3 and silent[0] <= 3, "it could have been a voice: 32 ms tell"
    sounds = [piece for piece in heard if piece is not None]
    assert sum(piece.size for piece in sounds) == 10 * WORD_SAMPLES - before, "nothing twice, nothing left out"
    words = [int(piece.max()) // 1000 for piece in sounds]
    assert words == sorted(words)
    assert set(driver.types()).isdisjoint({"input_audio_buffer.speech_started", "output_audio_buffer.cleared"})
    check(driver.events)


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_a_click_behind_which_no_sound_comes_keeps_nothing_silent(transport: Transport) -> None:
    driver = answering(transport)
    if transport == "webrtc":
        click(driver)
    else:
        stroke = np.zeros(480, np.int16)
        stroke[:96] = 5000
        driver.send(type="input_audio_buffer.append", audio=base64.b64encode(stroke.tobytes() * 2).decode())
    driver.advance(6.0)
    assert driver.last("response.done")["response"]["status"] == "completed"


def test_over_websocket_the_word_is_ended_and_the_next_one_waits() -> None:
    driver = answering("websocket")
    driver.speak(0.3)
    sent = sum(len(event["delta"]) for event in driver.of("response.output_audio.delta")) * 3 // 8
    assert sent % WORD_SAMPLES == 0, "no word is cut"
    driver.hush(0.2)
    assert sum(len(event["delta"]) for event in driver.of("response.output_audio.delta")) * 3 // 8 == sent
    judge(driver, 0.99)
    driver.hush(6.0)
    assert sum(len(event["delta"]) for event in driver.of("response.output_audio.delta")) * 3 // 8 == 10 * WORD_SAMPLES
    starts = [event["x_agogic"]["start_time"] for event in driver.of("response.output_audio.delta")]
    assert starts == sorted(set(starts)), "nothing twice"


def test_history_after_an_interruption_ends_with_what_was_heard_before_the_voice() -> None:
    driver = answering()
    heard = driver.heard_samples
    driver.speak(1.2)
    end_ms = driver.last("conversation.item.truncated")["audio_end_ms"]
    assert heard * 1000 // SAMPLE_RATE_HZ < end_ms < heard * 1000 // SAMPLE_RATE_HZ + 140
    driver.hush(1.0)
    context = driver.asked(wire.Respond)[-1].context
    begun = driver.asked(wire.StartUtterance)[-1].context
    assert context[:-1] == begun, "the worker was told so when it began to listen"
    assert context[0].text == "one two three"


def test_after_a_false_alarm_an_interruption_is_one_and_the_backchannel_belongs_to_it() -> None:
    driver = answering()
    murmur(driver)
    assert not driver.of("input_audio_buffer.speech_started")
    driver.speak(0.3)
    driver.hush(0.26)
    judge(driver, 0.1)
    driver.hush(1.0)
    (started,) = driver.of("input_audio_buffer.speech_started")
    assert started["audio_start_ms"] == pytest.approx(1100 - 300, abs=70)
    assert len(driver.of("input_audio_buffer.committed")) == 1


def test_a_reply_just_before_the_answer_ends_is_a_turn_but_a_cough_is_none() -> None:
    for words, turns in (("yeah", 1), ("", 0)):
        driver = SessionDriver(transport="webrtc", reply="one two three")
        driver.send(type="response.create")
        driver.hush(1.2 - REPLY_MS / 2000)
        driver.speak(0.3)
        driver.hush(0.26)
        judge(driver, 0.99, words)
        driver.hush(1.5)
        status = "cancelled" if turns else "completed"
        assert driver.of("response.done")[0]["response"]["status"] == status
        assert len(driver.of("input_audio_buffer.committed")) == turns
        check(driver.events)


def test_transcripts_of_what_the_client_does_not_know_of_are_not_shown() -> None:
    driver = answering(settings={"x_agogic": {"events": ["input_transcript"]}})
    driver.speak(0.3)
    driver.hush(0.26)
    judge(driver, 0.99, "mm-hm")
    assert not driver.of("x_agogic.input_transcript")
    driver.speak(0.3)
    driver.worker(wire.Transcript(1, 1, "mm-hm no I want tea", final=False))
    assert [event["transcript"] for event in driver.of("x_agogic.input_transcript")] == ["mm-hm no I want tea"]


def test_without_interrupt_response_a_voice_is_told_at_once_and_ducks_nothing() -> None:
    driver = answering(
        settings={"audio": {"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}}}
    )
    before = driver.heard_samples
    driver.speak(0.3)
    assert driver.of("input_audio_buffer.speech_started")
    assert driver.heard_samples - before == 0.3 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("then", ["clear", "commit", "update", "cancel", "lost"])
def test_whatever_happens_in_doubt_nothing_stays_silent_for_good(then: str) -> None:
    driver = answering()
    driver.speak(0.2)
    if then == "clear":
        driver.send(type="input_audio_buffer.clear")
    elif then == "commit":
        driver.send(type="input_audio_buffer.commit")
    elif then == "update":
        driver.send(type="session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
    elif then == "cancel":
        driver.send(type="response.cancel")
    else:
        driver.advance(2.5)  # no more sound comes
    driver.hush(6.0)
    status = driver.of("response.done")[0]["response"]["status"]
    assert status == ("completed" if then in ("clear", "lost") else "cancelled")
    assert not driver.session.answering or then == "commit"
    check(driver.events)
