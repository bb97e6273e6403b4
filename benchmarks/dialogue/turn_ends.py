"""`agogic eval turns`: recorded orders with inner pauses through detector, ear and end-of-turn head, as in a session.

Every recording is used as it is and with one of its natural gaps drawn out to 300 to 1500 ms of its own background. A
turn is cut falsely if it is ended anywhere before its end; delay is what passes between its last sound and the
decision, the time to hear and judge included.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agent.turn.detector import LikelyStopped, Resumed, SpeechStarted, TurnDetector, TurnTiming
from agent.turn.patience import PATIENCE, Eagerness
from agent.turn.silero import SAMPLE_RATE_HZ, WINDOW_SAMPLES, SileroVad
from benchmarks.dialogue.smart_turn import SmartTurn
from benchmarks.progress import Progress
from streaming.hearing.windows import HOP_SAMPLES
from training.features import log_power
from training.turn_end import gaps, speech_bounds
from worker.audio_files import read_question
from worker.ears.ear import Ear
from worker.parts import UNIT_SAMPLES

Sound = NDArray[np.float32]
PAUSE_MS = (300, 1500)
TAIL_SAMPLES = 2 * SAMPLE_RATE_HZ
_NEVER = TurnTiming(threshold=0.5, prefix_padding_samples=4800, silence_samples=60 * SAMPLE_RATE_HZ)
_MS = SAMPLE_RATE_HZ // 1000


@dataclass(frozen=True)
class Spoken:
    """A turn: its sound with silence behind it, and the sample at which it ends."""

    sound: Sound
    end: int


@dataclass
class Pause:
    """Where the detector asked (`asked`, the last voice at `voice_end`), where the voice went on, None at the end of
    the turn; what the judges said and how long ours took."""

    voice_end: int
    asked: int
    goes_on: int | None = None
    certainty: float = 0.0
    judge_ms: float = 0.0
    smart_turn: float = 0.0


@dataclass
class Course:
    """What the detector found in a turn."""

    turn: Spoken
    start: int = 0
    pauses: list[Pause] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """cut: ended before its end, in `pauses_cut` of its pauses; delay_ms: from its last sound to the decision."""

    pauses_cut: int
    delay_ms: float

    @property
    def cut(self) -> bool:
        return self.pauses_cut > 0


def spoken_turns(path: Path, rng: random.Random, pauses: int) -> list[Spoken]:
    """The recording as it is, and with up to so many of its gaps drawn out, one at a time."""
    sound = read_question(path)
    mel = log_power(torch.from_numpy(sound)).numpy()
    start, end, quiet = speech_bounds(mel)
    background = _background(sound, quiet)
    last = end * HOP_SAMPLES
    tail = _stretch(background, TAIL_SAMPLES, rng)
    turns = [Spoken(np.concatenate((sound[:last], tail)), last)]
    inner = gaps(quiet, start, end)
    for place in rng.sample(inner, min(pauses, len(inner))):
        added = _stretch(background, rng.randint(*PAUSE_MS) * _MS, rng)
        at = place * HOP_SAMPLES
        turns.append(Spoken(np.concatenate((sound[:at], added, sound[at:last], tail)), last + len(added)))
    return turns


def _background(sound: Sound, quiet: NDArray[np.bool_]) -> Sound:
    """The quietest 150 ms."""
    length, hop = 150 * _MS, HOP_SAMPLES
    starts = range(0, max(1, len(sound) - length), hop)
    energy = np.concatenate(([0.0], np.cumsum(np.square(sound, dtype=np.float64))))
    place = min(starts, key=lambda at: energy[min(at + length, len(sound))] - energy[at])
    return sound[place : place + length]


def _stretch(background: Sound, samples: int, rng: random.Random) -> Sound:
    """So much of it, forth and back, so that no seam clicks."""
    both = np.concatenate((background, background[::-1]))
    first = rng.randrange(len(both))
    return np.resize(np.roll(both, -first), samples)


def course_of(turn: Spoken) -> Course:
    """Where the voice pauses for long enough to be asked about."""
    vad, detector, course = SileroVad(), TurnDetector(_NEVER), Course(turn)
    samples = (turn.sound * 32767).astype(np.int16)
    for at in range(0, len(samples) - WINDOW_SAMPLES + 1, WINDOW_SAMPLES):
        match detector.push(vad.probability(samples[at : at + WINDOW_SAMPLES])):
            case SpeechStarted(start) if not course.pauses:
                course.start = start
            case LikelyStopped(voice_end):
                course.pauses.append(Pause(voice_end, detector.position))
            case Resumed(sample):
                course.pauses[-1].goes_on = sample
    return course


@torch.inference_mode()
def judge(course: Course, ear: Ear, smart_turn: SmartTurn | None) -> None:
    """Lets the judges hear what they would have heard by then; ours hears in the units of a worker."""
    hearing, heard = ear.begin(12.5), course.start
    for pause in course.pauses:
        while pause.asked - heard > UNIT_SAMPLES:
            hearing.hear(course.turn.sound[heard : heard + UNIT_SAMPLES])
            heard += UNIT_SAMPLES
        started = time.perf_counter()
        hearing.hear(course.turn.sound[heard : pause.asked])
        hearing.prepare()
        pause.certainty = hearing.certainty or 0.0
        pause.judge_ms = (time.perf_counter() - started) * 1e3
        heard = pause.asked
        if smart_turn is not None:
            pause.smart_turn = smart_turn.probability(course.turn.sound[: pause.asked])


def outcome(course: Course, silence_ms: Callable[[Pause], float], judge_ms: float) -> Outcome:
    """What comes of waiting so long in each pause, if the judgement takes `judge_ms`."""
    cut = decided = 0
    for pause in course.pauses:
        decided = max(pause.voice_end + round(silence_ms(pause) * _MS), pause.asked + round(judge_ms * _MS))
        if pause.goes_on is not None and decided < pause.goes_on:
            cut += 1
    # A noise behind the voice is no part of the turn: whichever of the two ends comes first.
    return Outcome(cut, (decided - min(course.turn.end, course.pauses[-1].voice_end)) / _MS)


def summary(outcomes: Sequence[Outcome], pauses: int) -> dict[str, object]:
    """false_cutoff_rate: of the turns; the other rate is of the pauses inside them, as many as `pauses`."""
    delays = [outcome.delay_ms for outcome in outcomes]
    return {
        "false_cutoff_rate": round(sum(outcome.cut for outcome in outcomes) / len(outcomes), 4),
        "pauses_cut_rate": round(sum(outcome.pauses_cut for outcome in outcomes) / max(1, pauses), 4),
        "delay_ms_p50": round(statistics.median(delays)),
        "delay_ms_p95": round(float(np.percentile(delays, 95))),
    }


def run(
    ear: Ear,
    clips: Sequence[Path],
    *,
    eagerness: Eagerness = "auto",
    pauses: int = 2,
    smart_turn: Path | None = None,
    seed: int = 7,
    progress: Progress | None = None,
) -> dict[str, object]:
    """`beside`: what others do on the same pauses without cutting in more often, at their best setting for that."""
    rng = random.Random(seed)
    theirs = SmartTurn(smart_turn) if smart_turn is not None else None
    courses: list[Course] = []
    for number, path in enumerate(clips, 1):
        for turn in spoken_turns(path, rng, pauses):
            course = course_of(turn)
            if course.pauses and course.pauses[-1].goes_on is None:
                judge(course, ear, theirs)
                courses.append(course)
        if progress is not None:
            progress(number, len(clips))
    every = [pause for course in courses for pause in course.pauses]
    judge_ms = statistics.median(pause.judge_ms for pause in every)
    patience = PATIENCE[eagerness]
    ours = [outcome(course, lambda pause: patience.silence_ms(pause.certainty), judge_ms) for course in courses]
    allowed = sum(outcome.cut for outcome in ours)
    beside: dict[str, object] = {"fixed_silence": _fixed(courses, allowed)}
    if theirs is not None:
        beside["smart_turn"] = _smart_turn(courses, allowed, theirs.call_ms)
    return {
        "turns": len(courses),
        "pauses": _inner(courses),
        **summary(ours, _inner(courses)),
        "eagerness": eagerness,
        "judge_ms_p50": round(judge_ms, 1),
        "discrimination": _discrimination(every, lambda pause: pause.certainty),
        "beside": beside,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _inner(courses: Sequence[Course]) -> int:
    return sum(len(course.pauses) - 1 for course in courses)


def _fixed(courses: Sequence[Course], allowed: int) -> dict[str, object]:
    for silence_ms in range(160, 3001, 32):
        outcomes = [outcome(course, lambda _, wait=silence_ms: wait, 0.0) for course in courses]  # type: ignore[misc]
        if sum(found.cut for found in outcomes) <= allowed:
            break
    return {"silence_ms": silence_ms, **summary(outcomes, _inner(courses))}


def _smart_turn(courses: Sequence[Course], allowed: int, call_ms: float) -> dict[str, object]:
    """It says yes or no: yes ends the turn, no waits for a silence. The best of thresholds and silences."""
    best: tuple[float, float, dict[str, object]] | None = None
    for threshold in (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995):
        for silence_ms in (500, 700, 900, 1200, 1500, 2000):

            def wait(pause: Pause, least: float = threshold, longest: int = silence_ms) -> float:
                return 0.0 if pause.smart_turn >= least else longest

            outcomes = [outcome(course, wait, call_ms) for course in courses]
            if sum(found.cut for found in outcomes) > allowed:
                continue
            found = summary(outcomes, _inner(courses))
            rank = (float(str(found["delay_ms_p50"])), float(str(found["delay_ms_p95"])))
            if best is None or rank < best[:2]:
                best = (*rank, {"threshold": threshold, "silence_ms": silence_ms, **found})
    every = [pause for course in courses for pause in course.pauses]
    quality = {
        "discrimination": _discrimination(every, lambda pause: pause.smart_turn),
        "call_ms_p50": round(call_ms, 1),
    }
    return {**(best[2] if best is not None else {}), **quality}


def _discrimination(pauses: Sequence[Pause], score: Callable[[Pause], float]) -> float:
    """How often an end of a turn gets more than a pause inside one (area under the ROC curve)."""
    ends = np.array([score(pause) for pause in pauses if pause.goes_on is None])
    inner = np.array([score(pause) for pause in pauses if pause.goes_on is not None])
    if not len(inner):
        return 1.0
    higher = (ends[:, None] > inner).mean() + 0.5 * (ends[:, None] == inner).mean()
    return round(float(higher), 4)
