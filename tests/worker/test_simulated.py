"""What the scheduler promises to hundreds of callers, on a card that is only counted."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from agent.wire import AudioOut, ContextItem, Message, OpenSession, Respond, ResponseDone
from benchmarks.load import simulate
from benchmarks.load.step_table import CARDS, StepTable
from worker.engine import Engine
from worker.parts import Question, Speaker, Unit
from worker.simulated import SimulatedDevice, SimulatedModel, SimulatedSpeaker
from worker.step_times import UnitSize


@pytest.fixture(scope="module")
def table() -> StepTable:
    return StepTable("7B", CARDS["H200"])


@pytest.mark.slow
def test_a_card_carries_64_who_are_spoken_to_all_the_time(table: StepTable) -> None:
    report = simulate.crowd(table, 64, simulate.Habits(0.0, simulate.SPEECH_S, 6.25, 6.25), 80.0)
    assert report["admitted"] == 64 and report["refused"] == 0
    assert report["gaps"] == 0 and report["answers"] >= 150
    assert report["first_audio_ms_p95"] < 400


@pytest.mark.slow
def test_of_a_fifth_more_than_it_carries_the_rest_is_refused_and_nobody_hears_it(table: StepTable) -> None:
    crowd = simulate.Habits(0.0, simulate.SPEECH_S, 12.5, 12.5)
    report = simulate.crowd(table, 76, crowd, 85.0)
    assert report["admitted"] < 76 and report["admitted"] + report["refused"] == 76
    assert report["admitted"] > 40 and report["gaps"] == 0


def test_conversations_are_more_than_answers_without_end(table: StepTable) -> None:
    talking = simulate.crowd(table, 120, simulate.Habits(3.0, 4.0, 12.5, 12.5), 60.0)
    assert talking["gaps"] == 0 and talking["admitted"] >= 45
    assert talking["answers"] > talking["admitted"] and talking["first_audio_ms_p95"] < 250


def test_steps_cost_more_with_rows_and_less_than_apart(table: StepTable) -> None:
    one, many = table(UnitSize("token", 1)), table(UnitSize("token", 64))
    assert 0.004 < one < many < 8 * one, "64 rows for less than eight times one"
    for kind, size in (("sound", 30_720), ("hearing", 40_960)):
        assert 0 < table(UnitSize(kind, 1, size)) < table(UnitSize(kind, 8, 8 * size))  # type: ignore[arg-type]


def test_an_answer_of_so_many_seconds_takes_so_many_steps() -> None:
    speaker, sounds, steps = SimulatedSpeaker(4.0, 6.25), 0, 0
    while speaker.unit != "end":
        steps += speaker.unit == "token"
        sounds += sum(len(event.pcm) for event in speaker.step() if hasattr(event, "pcm"))
    assert sounds == 4 * 24_000 and steps == 7 + 4 * 6.25


def test_a_chart_is_a_drawing_with_all_its_lines() -> None:
    nan = float("nan")
    lines = [simulate.Line("one & two", [4, 8, 12], [10, nan, 30]), simulate.Line("three", [4, 8, 12], [0, 0, 0])]
    drawing = ET.fromstring(simulate.chart("title", "Hz", [simulate.Panel("callers", lines)]))
    texts = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"title", "one & two", "three", "Hz", "callers"} <= set(texts)
    strokes = [path.get("d", "") for path in drawing.iter("{http://www.w3.org/2000/svg}path") if path.get("fill")]
    assert [stroke.count("M") for stroke in strokes] == [2, 1], "a missing point interrupts its line"


class SlowToSound(SimulatedSpeaker):
    """A token lasts 1.3 s, and sound is waited for until there is much of it, unless its listener is about to run dry:
    as voices do that nobody else has to wait for."""

    hurried = False

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        self.hurried = hurried

    @property
    def unit(self) -> Unit:
        unit = super().unit
        patient = self._rendered and not self.hurried and self._made < min(self._frames, self._rendered + 60)
        return "token" if unit == "sound" and patient else unit


class SlowModel(SimulatedModel):
    def respond(self, question: Question) -> Speaker:
        return SlowToSound(self.answer_s, 0.75)


def test_a_single_listener_does_not_run_dry_while_sound_is_waited_for() -> None:
    device = SimulatedDevice(lambda unit: 0.005 if unit.kind == "token" else 0.02, {})
    engine = Engine(SlowModel(answer_s=12.0), 1, device)
    came: list[tuple[float, Message]] = []

    class Client:
        def send(self, message: Message) -> None:
            came.append((device.now, message))

    client = Client()
    engine.submit(client, OpenSession(1))
    engine.submit(client, Respond(1, 1, [ContextItem("user", "hi")], 12.5))
    while not any(isinstance(message, ResponseDone) for _, message in came):
        if not engine.iterate():
            assert engine.next_at_s is not None
            device.now = max(device.now, engine.next_at_s)
    sounds = [(at, message) for at, message in came if isinstance(message, AudioOut)]
    first_s = sounds[0][0]
    in_hand_s = [first_s + message.first_sample / 24_000 - at for at, message in sounds[1:]]
    assert len(in_hand_s) > 3 and min(in_hand_s) > 0.05
