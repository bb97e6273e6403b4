"""Runs a recorded session through the core again, on a clock that says what the recorded one said."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from agent import audio
from agent.clock import ManualClock
from agent.config import ServerConfig
from agent.dialogue.session import Session
from agent.dialogue.speaking import WorkerSlot
from agent.ids import Ids
from agent.json_object import JsonObject
from agent.recording import log
from agent.recording.log import Header, Recording
from agent.recording.outcome import Outcome, as_json, without_digests
from agent.recording.privacy import LineRedactor
from agent.recording.session import pulled
from agent.turn.silero import SileroVad, VoiceActivity


@dataclass(frozen=True)
class Difference:
    """The first one: the line of the recording, and what the call in it gave, then and now; None: nothing.

    `where` leads to what differs inside, in dots. `trace` is that of an exception.
    """

    line: int
    at_s: float
    call: log.AnyCall
    where: str
    then: object
    now: object
    trace: str = ""


@dataclass(frozen=True)
class Result:
    """`ending` is why the recording ends, None where it does not say. `unlike` are calls that cannot be compared."""

    calls: int
    events: int
    to_worker: int
    lasted_s: float
    difference: Difference | None
    ending: str | None
    unlike: int


class ToldVoice:
    """Says what the network said when it was recorded; where it is asked for more, that nobody speaks."""

    def __init__(self) -> None:
        self._told: list[float] = []

    def tell(self, probabilities: Iterable[float]) -> None:
        self._told = list(probabilities)

    def probability(self, window: audio.Samples) -> float:
        return self._told.pop(0) if self._told else 0.0

    def reset(self) -> None:
        """It was told what comes after."""


def replay(recording: Recording, *, by_length: bool = False, vad: VoiceActivity | None = None) -> Result:
    """Up to the first difference. `by_length`: sound that has the same length counts as the same; `vad` in place of the
    network. Raises `LogError`."""
    header = recording.header
    told = ToldVoice() if not header.sound else None
    clock = ManualClock(unix_s=header.unix_s)
    session = _born(header, clock, told or vad or SileroVad())
    redact = LineRedactor()
    seen: Counter[str] = Counter()
    due_s: float | None = None
    difference, at_s = None, 0.0
    for line, entry in recording.entries():
        at_s = entry.at
        clock.stand_at(at_s)
        if told is not None:
            told.tell(entry.voice)
        outcome, now_due_s, trace = _done_again(session, entry.call)
        now = redact.json(as_json(outcome, sound=header.sound))
        then = entry.out
        due_s = entry.due if entry.due is not None or "raised" in (then[-1] if then else ()) else due_s
        seen["calls"] += 1
        seen.update("events" if "event" in out or "large" in out else "worker" for out in then if _travels(out))
        if isinstance(entry.call, log.Client) and entry.call.is_altered:
            seen["unlike"] += 1
            continue
        if by_length:
            then, now = without_digests(then), without_digests(now)
        found = _first_difference(then, now) or _first_difference(due_s, now_due_s, "due")
        if found is not None:
            difference = Difference(line, at_s, entry.call, *found, trace)
            break
    return Result(
        seen["calls"], seen["events"], seen["worker"], at_s, difference, recording.end, seen["unlike"]
    )  # fmt: skip


def _travels(out: JsonObject) -> bool:
    return not out.keys().isdisjoint(("event", "large", "worker"))


def _born(header: Header, clock: ManualClock, vad: VoiceActivity) -> Session:
    return Session(
        ServerConfig(session=header.session_config, playout=header.playout_config),
        header.settings,
        transport=header.transport,
        clock=clock,
        ids=Ids(header.stem),
        vad=vad,
        model=header.model,
        input_hz=header.input_hz,
        reports_every_s=header.reports_every_s,
        max_idle_s=header.max_idle_s,
        abilities=header.abilities,
        finest_hz=header.finest_hz,
    )


def _done_again(session: Session, call: log.AnyCall) -> tuple[Outcome, float | None, str]:
    try:
        outcome = _do(session, call)
        return outcome, session.next_deadline_s(), ""
    except Exception as error:
        return Outcome(raised=f"{type(error).__name__}: {error}"), None, traceback.format_exc()


def _do(session: Session, call: log.AnyCall) -> Outcome:
    match call:
        case log.Start():
            return Outcome(tuple(session.start(call.extras)))
        case log.Leave():
            return Outcome(tuple(session.leave()))
        case log.Resume():
            resumed = session.resume(call.transport, call.after, call.extras, input_hz=call.input_hz)
            return Outcome(tuple(resumed))
        case log.Client():
            return Outcome(tuple(session.take(session.read(call.written()), of_others=call.of_others)))
        case log.Microphone():
            session.microphone(np.frombuffer(call.written(), "<i2").astype(np.int16, copy=False))
            return Outcome()
        case log.Process():
            return Outcome(tuple(session.process_audio()))
        case log.Pull():
            samples, effects = session.pull_audio(call.count)
            return Outcome(tuple(effects), pulled(samples))
        case log.PullSpeech():
            speech, effects = session.pull_speech(call.count)
            return Outcome(tuple(effects), pulled(speech.samples, speech) if speech is not None else None)
        case log.Played():
            return Outcome(tuple(session.played(call.generation, call.samples)))
        case log.Dtmf():
            return Outcome(tuple(session.dtmf(call.key)))
        case log.Network():
            session.network(call.loss, call.round_trip_ms)
            return Outcome()
        case log.ForgetSound():
            session.forget_sound()
            return Outcome()
        case log.Tick():
            return Outcome(tuple(session.tick()))
        case log.PlaceFound():
            return Outcome(tuple(session.worker_ready(WorkerSlot(call.session, call.ready))))
        case log.PlaceLost():
            return Outcome(tuple(session.worker_lost()))
        case log.Worker():
            return Outcome(tuple(session.worker_message(call.written())))
        case log.EventId():
            return Outcome(event_id=session.new_event_id())


def _first_difference(then: object, now: object, where: str = "") -> tuple[str, object, object] | None:
    """Where it is, and what stands there."""
    if isinstance(then, dict) and isinstance(now, dict) and then.keys() & now.keys():
        for name in [*then, *(name for name in now if name not in then)]:
            found = _first_difference(then.get(name), now.get(name), f"{where}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    if isinstance(then, list) and isinstance(now, list):
        for index in range(max(len(then), len(now))):
            one, other = (side[index] if index < len(side) else None for side in (then, now))
            found = _first_difference(one, other, f"{where}.{index}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if then == now else (where, then, now)
