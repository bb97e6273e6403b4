"""`agogic eval echo`: callers at a loudspeaker, whose microphone hears the agent as well as them.

Session and engine are the real ones, with the real model, in one process and on one clock that stands still while they
compute: what is measured does not depend on how busy the machine is. Each caller has a room and a delay of its own and
a new session over WebSocket, so that the canceller meets every echo unprepared:

    asked in writing ─► answer, nobody speaks ─► asked again ─► answer, and a recorded order spoken over it ─► answer

A client stops playing when it is told that speech began; what is in the air by then is still heard.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr

from agent.clock import ManualClock
from agent.config import ServerConfig
from agent.dialogue.effects import Effect, SendEvent, SendLarge, ToWorker
from agent.dialogue.session import Session
from agent.dialogue.speaking import WorkerSlot
from agent.echo.canceller import Canceller
from agent.echo.reference import Reference
from agent.ids import Ids
from agent.protocol.session_object import default_settings, updated
from agent.turn.silero import SAMPLE_RATE_HZ, WINDOW_SAMPLES, SileroVad
from agent.wire import CloseSession, OpenSession
from benchmarks.dialogue.barista import Clip
from benchmarks.dialogue.rooms import Room, Sound
from models.orders import parse_order
from training.world import confirm, sample_order, say_order
from worker.audio_files import read_question
from worker.device import Cpu
from worker.engine import Engine
from worker.parts import SpeechModel

Progress = Callable[[int, int], None]
Wish = str
RATE_HZ = 24_000
STEP_S = 0.02
STEP = int(RATE_HZ * STEP_S)
DELAYS_MS = (20, 400)
ECHO_DB = (-6.0, -12.0, -20.0)
NOISE_DB = -62.0
"""Of the room itself, to full scale."""
BARGE_IN_S = (0.8, 2.5)
"""So long into an answer a caller begins to speak."""
IN_TIME_S, EARLY_S = 1.5, 0.1
"""So long after his first sound the answer is over, or he is not heard; what ends it before that was not he."""
LONGEST_S = 30.0
OPINIONS_OF = 10
"""Conversations that AECMOS hears, where speechmos is installed."""


@dataclass
class Told:
    """What the callers of one kind went through. A self-interruption is a turn begun while nobody spoke, a self-answer
    one that was ended and answered."""

    echo_db: float
    wish: Wish
    answers: int = 0
    self_interruptions: int = 0
    self_answers: int = 0
    barge_ins: int = 0
    stopped: int = 0
    understood: int = 0
    delays_ms: list[int] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    opinions: list[tuple[dict[str, float], dict[str, float]]] = field(default_factory=list)


class StillDevice(Cpu):
    """The processor, on the session's clock."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def clock(self) -> float:
        return self._clock.now_s()


class _Ear:
    """What the engine says, until the session takes it."""

    def __init__(self) -> None:
        self.said: deque[Any] = deque()

    def send(self, message: Any) -> None:
        self.said.append(message)


class Caller:
    """One session and what is around it. `wish`: the session's `echo_cancellation`."""

    def __init__(self, model: SpeechModel, room: Room, delay_ms: int, wish: Wish, seed: int) -> None:
        self.clock = ManualClock()
        self.events: list[dict[str, Any]] = []
        self.heard: list[Sound] = []  # by the microphone
        self.played: list[Sound] = []  # when the microphone heard that
        self._room = room
        self._noise = np.random.default_rng(seed)
        self._air: deque[Sound] = deque(np.zeros(STEP) for _ in range(round(delay_ms / 1000 / STEP_S)))
        self._queue: Sound = np.zeros(0)
        self._voice: Sound = np.zeros(0)
        self._engine, self._ear = Engine(model, 2, StillDevice(self.clock)), _Ear()
        self._engine.submit(self._ear, OpenSession(1))
        config = ServerConfig()
        settings = updated(default_settings(config), {"x_agogic": {"echo_cancellation": wish}}, "default")
        self.session = Session(
            config,
            settings,
            transport="websocket",
            clock=self.clock,
            ids=Ids("e"),
            vad=SileroVad(),
            model=model.name,
            abilities=model.abilities,
        )
        self._do(self.session.worker_ready(WorkerSlot(1, self._engine.ready())))
        self._do(self.session.start())

    def ask(self, text: str) -> None:
        """In writing."""
        content = [{"type": "input_text", "text": text}]
        self._send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
        self._send(type="response.create")

    def speak(self, voice: Sound) -> None:
        """[n] at 24 kHz, from now on."""
        self._voice = voice

    @property
    def quiet(self) -> bool:
        """Nobody says anything, and nothing is left to be played or heard."""
        return not (self._queue.size or self._voice.size or self.session.answering)

    def live(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self._step()

    def until(self, done: Callable[[], bool]) -> None:
        """At most `LONGEST_S`."""
        for _ in range(round(LONGEST_S / STEP_S)):
            if done():
                return
            self._step()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def close(self) -> None:
        self._engine.submit(self._ear, CloseSession(1))
        while self._engine.iterate():
            pass
        self.session.close()

    def _step(self) -> None:
        """20 ms: the loudspeaker plays, its echo arrives, the microphone's sound is sent, and the worker works."""
        piece, self._queue = self._queue[:STEP], self._queue[STEP:]
        piece = np.pad(piece, (0, STEP - piece.size))
        self._air.append(self._room.echo(piece))
        voice, self._voice = self._voice[:STEP], self._voice[STEP:]
        heard = self._air.popleft() + self._noise.normal(size=STEP) * 10 ** (NOISE_DB / 20)
        heard[: voice.size] += voice
        self.heard.append(heard)
        self.played.append(piece)
        self.clock.advance(STEP_S)
        pcm = np.clip(np.rint(heard * 32767), -32768, 32767).astype("<i2").tobytes()
        self._send(type="input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
        while self._engine.iterate():
            pass
        while self._ear.said:
            self._do(self.session.worker_message(self._ear.said.popleft()))
        if self.session.next_deadline_s() <= self.clock.now_s():
            self._do(self.session.tick())

    def _send(self, **event: object) -> None:
        self._do(self.session.take(self.session.read(json.dumps(event))))
        while self.session.has_pending_audio:
            self._do(self.session.process_audio())

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ToWorker):
                self._engine.submit(self._ear, effect.message)  # type: ignore[arg-type]
            elif isinstance(effect, SendEvent | SendLarge):
                event = json.loads(effect.data if isinstance(effect, SendEvent) else effect.make())
                event["at_s"] = self.clock.now_s()
                self.events.append(event)
                if event["type"] == "response.output_audio.delta":
                    sound = np.frombuffer(base64.b64decode(event["delta"]), "<i2") / 32768
                    self._queue = np.concatenate([self._queue, sound])
                elif event["type"] == "input_audio_buffer.speech_started":
                    self._queue = np.zeros(0)


def run(
    model: SpeechModel, clips: Sequence[Clip], answers: int, echo_db: Sequence[float], progress: Progress | None
) -> dict[str, object]:
    """`answers` at each strength of the echo with the canceller, and a fifth of that without it at the strongest."""
    callers = max(1, answers // 2)
    kinds = [(db, "auto", callers) for db in echo_db] + [(max(echo_db), "off", max(1, callers // 5))]
    rows = []
    done, total = 0, sum(count for _, _, count in kinds)
    for db, wish, count in kinds:
        told = Told(db, wish)
        for number in range(count):
            _call(model, clips, number, told)
            done += 1
            if progress is not None:
                progress(done, total)
        rows.append(_row(told))
    worst = rows[0]
    return {
        "answers": worst["answers"],
        "self_answers": worst["self_answers"],
        "self_interruptions": worst["self_interruptions"],
        "barge_ins": worst["barge_ins"],
        "barge_in_rate": worst["barge_in_rate"],
        "delays_ms": list(DELAYS_MS),
        "by_kind": rows,
    }


def _call(model: SpeechModel, clips: Sequence[Clip], number: int, told: Told) -> None:
    """One caller; the same number has the same room, delay and orders at every strength."""
    chance, orders = np.random.default_rng(number), random.Random(number)
    delay_ms = round(float(chance.uniform(*DELAYS_MS)) / 20) * 20
    caller = Caller(model, Room(chance, RATE_HZ, told.echo_db), delay_ms, told.wish, number)
    told.delays_ms.append(delay_ms)
    clip = clips[number * 7 % len(clips)]
    voice, onset = _voice(clip)
    caller.live(0.3)
    _answer(caller, orders, told)
    told.answers += 1
    if number < OPINIONS_OF:
        told.opinions.extend(_opinions(caller))
    before = len(caller.of("input_audio_buffer.speech_started"))
    caller.ask(say_order(sample_order(orders), orders))
    caller.until(lambda: bool(caller._queue.size))
    begins_s = float(chance.uniform(*BARGE_IN_S))
    caller.live(max(0.0, begins_s - onset / RATE_HZ))
    speaks_s = caller.clock.now_s() + onset / RATE_HZ
    started = caller.of("input_audio_buffer.speech_started")[before:]
    told.answers += 1
    told.self_interruptions += len(started)
    cut = caller.session.answering and not started
    if cut:
        caller.speak(voice)
        caller.until(lambda: len(caller.of("response.done")) == 2)
        ended = caller.of("response.done")[1]
        late_s = ended["at_s"] - speaks_s
        told.barge_ins += 1
        if ended["response"]["status"] == "cancelled" and -EARLY_S <= late_s <= IN_TIME_S:
            told.stopped += 1
            told.late_ms.append(late_s * 1000)
        caller.until(lambda: caller.quiet)
        said = [_text(event) for event in caller.of("response.done")]
        told.understood += parse_order(said[-1]) == parse_order(confirm(clip.slots)) if said else 0
    caller.close()


def _answer(caller: Caller, orders: random.Random, told: Told) -> None:
    """One is given to its end, and nobody says anything."""
    caller.ask(say_order(sample_order(orders), orders))
    caller.until(lambda: caller.quiet)
    caller.live(1.5)
    told.self_interruptions += len(caller.of("input_audio_buffer.speech_started"))
    told.self_answers += len(caller.of("input_audio_buffer.committed"))


def _voice(clip: Clip) -> tuple[Sound, int]:
    """The recording at 24 kHz with silence behind it, and the sample at which the voice in it begins."""
    samples = read_question(clip.path)
    vad = SileroVad()
    pcm = np.clip(samples * 32767, -32768, 32767).astype(np.int16)
    voiced = [
        vad.probability(pcm[at : at + WINDOW_SAMPLES]) >= 0.5
        for at in range(0, pcm.size - WINDOW_SAMPLES, WINDOW_SAMPLES)
    ]
    onset = next((at for at in range(len(voiced) - 1) if voiced[at] and voiced[at + 1]), 0) * WINDOW_SAMPLES
    sound = soxr.resample(samples.astype(np.float64), SAMPLE_RATE_HZ, RATE_HZ)
    return np.concatenate([sound, np.zeros(RATE_HZ)]), onset * RATE_HZ // SAMPLE_RATE_HZ


def _text(event: dict[str, Any]) -> str:
    parts = [part for item in event["response"]["output"] for part in item.get("content", [])]
    return str(parts[0].get("transcript", "")) if parts else ""


def _opinions(caller: Caller) -> list[tuple[dict[str, float], dict[str, float]]]:
    """AECMOS of the first answer as the microphone heard it and as the canceller left it; [] without speechmos."""
    if importlib.util.find_spec("speechmos") is None:
        return []
    from speechmos import aecmos  # type: ignore[import-not-found]

    near, far = (
        np.clip(soxr.resample(np.concatenate(sound), RATE_HZ, SAMPLE_RATE_HZ) * 32767, -32768, 32767).astype(np.int16)
        for sound in (caller.heard, caller.played)
    )
    reference = Reference()
    reference.say(far, SAMPLE_RATE_HZ, 0.0)
    clean = Canceller(reference.read).push(near)
    count = min(near.size, clean.size, 10 * SAMPLE_RATE_HZ)
    found = []
    for after in (near, clean):
        sample = {"lpb": far[:count] / 32768, "mic": near[:count] / 32768, "enh": after[:count] / 32768}
        told = aecmos.run(sample, SAMPLE_RATE_HZ, talk_type="st")
        found.append({name: float(told[name]) for name in ("echo_mos", "deg_mos")})
    return [(found[0], found[1])]


def _row(told: Told) -> dict[str, object]:
    late = sorted(told.late_ms)
    row: dict[str, object] = {
        "echo_db": told.echo_db,
        "echo_cancellation": told.wish,
        "answers": told.answers,
        "self_interruptions": told.self_interruptions,
        "self_answers": told.self_answers,
        "barge_ins": told.barge_ins,
        "barge_in_rate": round(told.stopped / told.barge_ins, 3) if told.barge_ins else None,
        "onset_to_stop_ms_p50": round(late[len(late) // 2]) if late else None,
        "onset_to_stop_ms_p95": round(late[int(0.95 * (len(late) - 1))]) if late else None,
        "orders_understood": told.understood,
    }
    if told.opinions:
        row["aecmos_echo_without"] = round(float(np.mean([before["echo_mos"] for before, _ in told.opinions])), 2)
        row["aecmos_echo"] = round(float(np.mean([after["echo_mos"] for _, after in told.opinions])), 2)
    return row
