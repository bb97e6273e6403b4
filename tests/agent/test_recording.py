"""Recorded sessions: what is written down, that it comes true again, and what is left out of it."""

from __future__ import annotations

import base64
import inspect
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import ConfigError, RecordingConfig
from agent.dialogue.session import Session
from agent.recording.against import steps
from agent.recording.log import Header, LogError, Recording
from agent.recording.recorder import Recorder
from agent.recording.replay import Result, replay
from agent.recording.session import RecordedSession
from tests.fuzz.steps import STEP, act
from tests.support.session_driver import LoudnessVad, SessionDriver

SECRET = "sk-abcdefgh12345678"
PUSH_TO_TALK = {"audio": {"input": {"turn_detection": None}}}
REPLY = "Once upon a time there was a very long story to tell."


class Taping:
    """A recorder into a folder of its own, and sessions that it records."""

    def __init__(self, folder: Path, *, sound: bool = True, keys: tuple[str, ...] = (), **limits: int) -> None:
        self.folder = folder / "recordings"
        self.recorder = Recorder(RecordingConfig(folder=str(self.folder), sound=sound, **limits), list(keys))

    def session(self, *arguments: Any, **named: Any) -> Session:
        session = RecordedSession(*arguments, **named)
        session.record(self.recorder)
        return session

    def driver(self, **options: Any) -> SessionDriver:
        return SessionDriver(make=self.session, **options)

    def written(self, driver: SessionDriver) -> Path:
        """The file, once the session is over."""
        driver.session.close()
        self.recorder.close()
        (path,) = self.folder.iterdir()
        return path

    def replayed(self, driver: SessionDriver) -> Result:
        return replay(Recording(self.written(driver)), vad=LoudnessVad())


def voice_turns(driver: SessionDriver) -> None:
    driver.send(type="session.update", event_id="c1", session={"type": "realtime", "instructions": "Be brief."})
    driver.speak(0.5)
    driver.hush(1.2)
    driver.speak(0.3)
    item_id = driver.last("response.output_item.added")["item"]["id"]
    driver.send(type="conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=300)
    driver.hush(1.0)


def typed(driver: SessionDriver) -> None:
    sound = base64.b64encode(np.full(24_000, 900, "<i2").tobytes()).decode()
    content = [{"type": "input_text", "text": "Hi"}, {"type": "input_audio", "audio": sound}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    item_id = driver.last("conversation.item.done")["item"]["id"]
    driver.send(type="conversation.item.retrieve", item_id=item_id)
    driver.session.network(0.2, 700.0)
    driver.session.forget_sound()
    driver.send(type="conversation.item.retrieve", item_id=item_id)
    driver.send(type="response.create", response={"output_modalities": ["text"], "metadata": {"a": "b"}})
    driver.advance(0.1)
    driver.send(type="response.create")
    driver.advance(0.3)
    driver.send(type="response.cancel")


def nonsense(driver: SessionDriver) -> None:
    driver.send(type="nonsense.event", event_id="c10")
    driver.send(type="input_audio_buffer.append", audio="what?")
    driver.send(type="session.update", session={"type": "realtime", "colour": 500.0})
    driver.send_raw('{"type": "input_audio_buffer.commit",\n "event_id": "c2"}')
    for raw in (b"\xff\xfe\x00", b"[]", b"{", "ümläut", b'{"type":"response.cancel","x":"\xff"}'):
        driver.send_raw(raw)


def pressed(driver: SessionDriver) -> None:
    driver.send(type="session.update", session={"type": "realtime", **PUSH_TO_TALK})
    driver.speak(0.4)
    driver.send(type="input_audio_buffer.commit")
    driver.send(type="response.create")
    driver.advance(0.5)
    driver.do(driver.session.worker_lost())
    driver.advance(0.5)


def lost_and_resumed(driver: SessionDriver) -> None:
    driver.speak(0.4)
    driver.hush(1.0)
    after = driver.events[-1]["event_id"]
    driver.do(driver.session.leave())
    driver.clock.advance(5.0)
    driver.returns(after, None, {"resume": {"token": "resume_0123456789abcdef0123", "within_s": 60}})
    driver.advance(0.5)
    driver.session.snapshot()
    driver.do(driver.session.dtmf("5"))


CONVERSATIONS: dict[str, Callable[[SessionDriver], None]] = {
    function.__name__: function for function in (voice_turns, typed, nonsense, pressed, lost_and_resumed)
}


# Of each conversation one without sound, and of those where it makes a difference one of either transport with it.
WAYS = [*((name, "websocket", True) for name in CONVERSATIONS), ("voice_turns", "webrtc", True)]
WAYS += [("voice_turns", "websocket", False), ("pressed", "webrtc", False), ("lost_and_resumed", "webrtc", False)]


@pytest.mark.parametrize(("name", "transport", "sound"), WAYS)
def test_what_was_recorded_comes_true_again(name: str, transport: str, sound: bool, tmp_path: Path) -> None:
    taping = Taping(tmp_path, sound=sound)
    driver = taping.driver(transport=transport, reply=REPLY)
    CONVERSATIONS[name](driver)
    result = taping.replayed(driver)
    assert result.difference is None
    assert result.ending == "the session is over"
    assert result.events == len(driver.events) >= 5
    assert result.calls > 10


def test_a_recorded_session_is_the_session(tmp_path: Path) -> None:
    recorded, plain = Taping(tmp_path).driver(reply=REPLY), SessionDriver(reply=REPLY)
    for driver in (recorded, plain):
        voice_turns(driver)
    assert recorded.events == plain.events
    assert recorded.to_worker == plain.to_worker


def test_a_telephone_comes_true_again(tmp_path: Path) -> None:
    taping = Taping(tmp_path)
    line = partial(taping.session, input_hz=16_000, reports_every_s=0.1, max_idle_s=9.0)
    driver = SessionDriver(reply=REPLY, make=lambda *a, **named: line(*a, **{**named, **line.keywords}))
    session = driver.session
    driver.send(type="response.create")
    heard = 0
    for _ in range(50):
        driver.advance(0.02)
        session.microphone(np.full(320, 50, np.int16))
        driver.do(session.process_audio())
        speech, effects = session.pull_speech(480)
        driver.do(effects)
        if speech is not None:
            heard = speech.end_sample
            driver.do(session.played(speech.generation, heard - 480))
    driver.do(session.dtmf("#"))
    assert heard > 10_000
    assert taping.replayed(driver).difference is None


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(transport=st.sampled_from(["websocket", "webrtc"]), sound=st.booleans(), steps=st.lists(STEP, max_size=10))
def test_whatever_happens_comes_true_again(
    transport: Any, sound: bool, steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    taping = Taping(tmp_path_factory.mktemp("fuzz"), sound=sound)
    driver = taping.driver(transport=transport, reply="Yes, of course.")
    act(driver, steps)
    assert taping.replayed(driver).difference is None


# --- what is found ---


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def rewritten(path: Path, lines: list[dict[str, Any]]) -> Recording:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return Recording(path)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    taping = Taping(tmp_path_factory.mktemp("spoken"))
    driver = taping.driver(reply=REPLY)
    voice_turns(driver)
    return taping.written(driver)


@pytest.fixture
def recorded(spoken: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copy(spoken, tmp_path))


def test_what_differs_is_found_where_it_stands(recorded: Path) -> None:
    lines = lines_of(recorded)
    at = next(i for i, line in enumerate(lines) if any("response.done" in str(o) for o in line.get("out", ())))
    place = next(j for j, out in enumerate(lines[at]["out"]) if "response.done" in str(out))
    lines[at]["out"][place]["event"]["response"]["status"] = "golden"
    found = replay(rewritten(recorded, lines), vad=LoudnessVad()).difference
    assert found is not None
    assert (found.line, found.where) == (at + 1, f"{place}.event.response.status")
    assert (found.then, found.now) == ("golden", "cancelled")
    assert found.at_s == lines[at]["at"]


@pytest.mark.parametrize("change", ["a call less", "other words", "other sound", "later"])
def test_a_recording_that_is_changed_does_not_come_true(change: str, recorded: Path) -> None:
    lines = lines_of(recorded)
    kinds = [line.get("call", {}).get("kind") for line in lines]
    first = next(i for i, line in enumerate(lines) if "Transcript" in str(line.get("call")))
    if change == "a call less":
        del lines[first]
    elif change == "other words":
        lines[first]["call"]["message"][3] = "What is it that I said?"
    elif change == "other sound":
        first = next(i for i, line in enumerate(lines) if "AudioOut" in str(line.get("call")))
        lines[first]["call"]["message"][4] = base64.b64encode(b"\x07\x07" * 9600).decode()
    else:
        first = kinds.index("tick")
        lines[first]["at"] += 0.001
    found = replay(rewritten(recorded, lines), vad=LoudnessVad()).difference
    assert found is not None
    assert first < found.line <= len(lines)


def test_sound_by_its_length_is_not_compared(recorded: Path) -> None:
    lines = lines_of(recorded)
    first = next(i for i, line in enumerate(lines) if "AudioOut" in str(line.get("call")))
    lines[first]["call"]["message"][4] = base64.b64encode(b"\x07\x07" * 9600).decode()
    changed = rewritten(recorded, lines)
    assert replay(changed, vad=LoudnessVad(), by_length=True).difference is None


def test_a_mistake_in_the_core_is_recorded_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taping = Taping(tmp_path)
    driver = taping.driver()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("as an example")

    monkeypatch.setattr("agent.dialogue.session.Session._clear_input", broken)
    with pytest.raises(ZeroDivisionError):
        driver.send(type="input_audio_buffer.clear")
    driver.send(type="response.cancel")
    path = taping.written(driver)
    assert {"raised": "ZeroDivisionError: as an example"} in [o for x in lines_of(path) for o in x.get("out", ())]
    assert replay(Recording(path)).difference is None
    monkeypatch.undo()
    found = replay(Recording(path)).difference
    assert found is not None
    assert found.then == {"raised": "ZeroDivisionError: as an example"}
    assert "input_audio_buffer.cleared" in str(found.now)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "line [0-9]+ breaks off"),
        (lambda text: text.replace('"kind":"tick"', '"kind":"tock"', 1), "line [0-9]+ is nothing that agogic records"),
        (lambda text: text.replace('"agogic_recording":1', '"agogic_recording":2'), "version 2"),
        (lambda text: text[:100], "is no recording"),
        (lambda text: "", "is no recording"),
    ],
    ids=["cut", "unknown", "newer", "cut in the first line", "empty"],
)
def test_a_damaged_file_is_named(damage: Callable[[str], str], said: str, recorded: Path) -> None:
    recorded.write_text(damage(recorded.read_text("utf-8")), "utf-8")
    with pytest.raises(LogError, match=said):
        replay(Recording(recorded), vad=LoudnessVad())


def test_a_recording_without_its_last_line_is_one_that_did_not_end(recorded: Path) -> None:
    lines = lines_of(recorded)
    result = replay(rewritten(recorded, lines[:-1]), vad=LoudnessVad())
    assert result.ending is None
    assert result.difference is None


# --- what is left out ---


def test_keys_and_tokens_are_in_no_recording(tmp_path: Path) -> None:
    taping = Taping(tmp_path, keys=("geheim17",))
    driver = taping.driver(start=False)
    token = "resume_abcdefghijklmnop1234"
    driver.do(driver.session.start({"resume": {"token": token, "within_s": 60}}))
    said = f"My key is {SECRET}, the other one geheim17. Authorization: Bearer qwertz123456."
    driver.send(type="session.update", session={"type": "realtime", "instructions": said})
    tool = {"type": "mcp", "server_label": "x", "authorization": "swordfish", "headers": {"X-Api-Key": "sesame"}}
    driver.send(type="session.update", session={"type": "realtime", "tools": [tool]})
    driver.send(type=SECRET, event_id="geheim17")
    typed(driver)
    path = taping.written(driver)
    text = path.read_text("utf-8")
    assert "My key is" in text and "within_s" in text
    for secret in (SECRET, "geheim17", "qwertz123456", token, "swordfish", "sesame"):
        assert secret not in text
    assert replay(Recording(path)).difference is None


@pytest.mark.parametrize("length", [40_000, 400_000])
def test_keys_in_long_texts_are_found_wherever_they_stand(length: int, tmp_path: Path) -> None:
    taping = Taping(tmp_path)
    driver = taping.driver()
    dice = random.Random(length)
    words = [f"w{dice.randrange(10**6)}" for _ in range(length // 8)]
    for at in range(0, len(words), 200):
        words[at] = f"Bearer {SECRET}"
    content = [{"type": "input_text", "text": " ".join(words)[:100_000]}]
    driver.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    text = taping.written(driver).read_text("utf-8")
    assert SECRET not in text
    assert text.count("[hidden]") > 50


@pytest.mark.parametrize("name", ["voice_turns", "typed", "nonsense"])
def test_without_sound_there_is_none(name: str, tmp_path: Path) -> None:
    taping = Taping(tmp_path, sound=False)
    driver = taping.driver(reply=REPLY)
    CONVERSATIONS[name](driver)
    driver.send_raw('{"type": "input_audio_buffer.append", "audio": "' + "QUJD" * 5000)
    path = taping.written(driver)
    lines = lines_of(path)
    assert lines[0]["sound"] is False
    assert not [word for word in path.read_text("utf-8").split('"') if len(word) > 1000]
    result = replay(Recording(path))
    assert result.difference is None
    assert result.unlike == (2 if name == "nonsense" else 1)


def test_without_sound_silence_of_the_same_length_stands_for_it(tmp_path: Path) -> None:
    taping = Taping(tmp_path, sound=False)
    driver = taping.driver()
    driver.speak(0.04)
    calls = [entry.call for _, entry in Recording(taping.written(driver)).entries()]
    appended = [json.loads(call.written()) for call in calls if hasattr(call, "of_others")]
    assert [base64.b64decode(message["audio"]) for message in appended] == [bytes(960)] * 2


def test_what_a_call_heard_is_appended_to_a_live_session(tmp_path: Path) -> None:
    taping = Taping(tmp_path)
    driver = taping.driver(transport="webrtc", settings={"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
    driver.clock.advance(3.0)
    driver.do(driver.session.start())
    driver.speak(0.4)
    driver.send(type="response.create")
    *appended, last = steps(Recording(taping.written(driver)))
    sound = b"".join(base64.b64decode(json.loads(step.message)["audio"]) for step in appended)
    assert len(sound) == pytest.approx(3200, abs=200), "8 kHz, a byte each"
    assert json.loads(last.message) == {"type": "response.create"}
    assert [appended[0].at_s, last.at_s] == pytest.approx([0.0, 0.4], abs=0.1)


# --- disks, limits, who may read ---


def test_nobody_else_can_read_it(spoken: Path) -> None:
    assert oct(spoken.stat().st_mode & 0o777) == "0o600"
    assert oct(spoken.parent.stat().st_mode & 0o777) == "0o700"
    assert spoken.name.startswith("2026") and spoken.name.endswith("-sess_t000001.jsonl")


@pytest.mark.parametrize("limit", ["max_bytes", "max_folder_bytes"])
def test_a_recording_that_grows_too_large_ends_and_the_session_does_not(limit: str, tmp_path: Path) -> None:
    taping = Taping(tmp_path, **{limit: 65_536})
    driver = taping.driver(reply=REPLY)
    voice_turns(driver)
    assert driver.of("response.done")
    path = taping.written(driver)
    assert path.stat().st_size < 65_536 + 300
    result = replay(Recording(path), vad=LoudnessVad())
    assert result.difference is None
    assert f"recording.{limit} = 65536" in str(result.ending)


class FullDisk:
    """A file on a disk that has so many bytes left, and writes a part of what does not fit."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(28, os.strerror(28))
        fits = bytes(data[: self._room])
        self._room -= len(fits)
        return int(self._file.write(fits))

    def truncate(self, size: int) -> None:
        self._room += self._file.seek(0, 2) - size
        self._file.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 20_000, 20_001, 20_777])
def test_a_full_disk_ends_the_recording_and_not_the_session(
    room: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taping = Taping(tmp_path)
    create = taping.recorder.create
    taping.recorder.create = lambda name: FullDisk(create(name), room)  # type: ignore[method-assign, assignment, return-value]
    driver = taping.driver(reply=REPLY)
    voice_turns(driver)
    assert driver.of("response.done")
    path = taping.written(driver)
    assert "No space left on device" in caplog.text
    assert caplog.text.count("the recording") == 1
    assert path.stat().st_size <= room
    if room:
        result = replay(Recording(path), vad=LoudnessVad())
        assert result.difference is None
        assert result.calls > 5


def test_a_disk_that_stands_still_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taping = Taping(tmp_path)
    goes_on, create = threading.Event(), taping.recorder.create

    def stuck(name: str) -> Any:
        assert goes_on.wait(60)
        return create(name)

    taping.recorder.create = stuck  # type: ignore[method-assign]
    monkeypatch.setattr("agent.recording.recorder.MAX_WAITING_BYTES", 100_000)
    driver = taping.driver(reply=REPLY)
    voice_turns(driver)
    assert driver.of("response.done")
    goes_on.set()
    result = taping.replayed(driver)
    assert result.difference is None
    assert result.ending == "the disk is slower than the session"


def test_a_folder_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="open to others"):
        Taping(tmp_path)
    (tmp_path / "recordings").rmdir()
    (tmp_path / "recordings").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        Taping(tmp_path)


# --- that nothing is forgotten ---


def test_whatever_can_be_done_to_a_session_is_recorded() -> None:
    """Who adds a way into the session adds it to the recording, or to those that only look."""
    only_looks = {
        *("worth_keeping", "can_resume", "has_pending_audio", "answering", "making_answer", "needs_worker"),
        *("held_bytes", "take_finished", "coarsest_hz", "hearing", "at_rest"),
    }
    made_of_others = {"snapshot", "read"}
    public = {name for name in vars(Session) if not name.startswith("_")} - only_looks - made_of_others
    assert public == {name for name in vars(RecordedSession) if not name.startswith("_")} - {"record"}


def test_whatever_a_session_is_made_of_is_recorded() -> None:
    made_of = set(inspect.signature(Session).parameters)
    assert made_of == set(inspect.signature(RecordedSession).parameters)
    recorded_as = {"config": {"session_config", "playout_config"}, "ids": {"stem", "session"}, "clock": {"unix_s"}}
    expected = set().union(*(recorded_as.get(name, {name}) for name in made_of - {"vad"}))
    assert expected == set(Header.__struct_fields__) - {"agogic_recording", "sound"}
