"""The ear of a session: the client's audio goes in, utterances come out, and the worker hears them while they last.

With turn detection an utterance opens when the detector hears speech (with the padding before it) and closes after the
silence. Without, it closes at the commit, and opens at the first sound after a commit or clear. On an open line
(WebRTC) sound flows whether or not anybody talks, so there too it opens at speech: silence costs the worker nothing,
however long no button is pressed, and what was said but not committed is forgotten after `_KEPT_QUIET_SAMPLES` of
silence.

    closed ──(speech, or first append in push-to-talk)──► open ──(silence, commit, limit)──► ended: an item
       ▲                                                    │
       └──────────────(clear, forgotten)────────────────────┘

Most of the silence that ends an utterance is not news: where speech has paused for so long that this is probably the
end, the worker is told to make ready for it and gets no more sound. It gets what was held back when the voice goes on,
and otherwise never: what was made ready is then the end. The item keeps all of the sound. A worker that can tell how
finished the turn sounds says so then, and that decides how long the silence must be.

The worker also gets nothing until it is known how loud the voice is (`agent.dialogue.level`), for at most
`_UNKNOWN_LEVEL_SAMPLES`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent import audio
from agent.dialogue.effects import Outbox
from agent.dialogue.input_buffer import InputBuffer
from agent.dialogue.level import Level, amplified
from agent.echo.loop import EchoLoop
from agent.ids import Ids
from agent.protocol.errors import ProtocolError
from agent.protocol.session_object import SemanticVad, ServerVad, TurnDetection, silence_ms
from agent.turn.detector import (
    ONSET_SAMPLES,
    EndNear,
    LikelyStopped,
    Phase,
    Resumed,
    SpeechStarted,
    SpeechStopped,
    TurnDetector,
    TurnEvent,
    TurnTiming,
)
from agent.turn.patience import PATIENCE, SPECULATE_FROM
from agent.turn.silero import SAMPLE_RATE_HZ, WINDOW_SAMPLES, VoiceActivity
from agent.wire import AudioIn, EndJudged, EndUtterance, LikelyEnd

MIN_COMMIT_SAMPLES = SAMPLE_RATE_HZ // 10
# What a manual commit finds when the detector heard no speech.
_KEPT_QUIET_SAMPLES = 30 * SAMPLE_RATE_HZ
# On an open line a commit takes less: silence is no news, and encoding it takes time that somebody waits for.
_UNHEARD_SAMPLES = 10 * SAMPLE_RATE_HZ
_TRAILING_SAMPLES = 2 * SAMPLE_RATE_HZ
# A push-to-talk buffer never holds more than this.
MAX_BUFFER_SAMPLES = 600 * SAMPLE_RATE_HZ
_MAX_OPEN_LINE_SAMPLES = MAX_BUFFER_SAMPLES - _KEPT_QUIET_SAMPLES
# Where nobody asked for turns to be detected, but something must know whether somebody speaks.
_UNASKED_TIMING = TurnTiming(
    threshold=0.5, prefix_padding_samples=3 * SAMPLE_RATE_HZ // 10, silence_samples=SAMPLE_RATE_HZ // 2
)
_UNKNOWN_LEVEL_SAMPLES = 128 * SAMPLE_RATE_HZ // 100
_PIECE_SAMPLES = SAMPLE_RATE_HZ
_WORTH_SENDING_SAMPLES = 16 * SAMPLE_RATE_HZ // 100
_SLICE_S = 0.25


@dataclass
class Utterance:
    """A stretch of the user's speech. Positions are samples at 16 kHz since the session began.

    `detected` is False in push-to-talk, where the client knows of it and no event tells it. `continues` names the item
    of the turn that goes on in this utterance, with whose sound it then begins: `continued` samples. `likely_end` is
    where it has probably ended: the worker gets nothing from there on unless that proves wrong. `lost`: the worker
    failed to hear it.
    `spoken`: somebody was heard to speak in it; only a commit can end one in which nobody was. `told`: the client knows
    of it; not yet of one that may be no turn (`agent.dialogue.overlap`), for which `onset`, `voiced_end` and
    `voiced_samples` count the voice since its last pause and in all, and `rank` is what was judged of it there.
    """

    number: int
    item_id: str
    detected: bool
    start: int
    sent: int
    spoken_end: int
    likely_end: int | None = None
    lost: bool = False
    transcript: str = ""
    continues: str | None = None
    continued: int = 0
    spoken: bool = False
    told: bool = True
    onset: int = 0
    voiced_end: int = 0
    voiced_samples: int = 0
    rank: float | None = None
    level: Level = field(default_factory=Level)


@dataclass(frozen=True)
class TurnOpened:
    utterance: Utterance


@dataclass(frozen=True)
class TurnEnded:
    """`end` includes the silence waited for; `waited_ms` is that silence. `by_client` if it was committed by hand."""

    utterance: Utterance
    end: int
    pcm: audio.Samples
    waited_ms: float
    by_client: bool


@dataclass(frozen=True)
class EndLikely:
    """So finished does it sound that an answer may be begun; `TurnEnded` or `EndDoubted` follows."""

    utterance: Utterance


@dataclass(frozen=True)
class EndDoubted:
    """It goes on."""

    utterance: Utterance


@dataclass(frozen=True)
class TurnForgotten:
    """Nobody committed it on an open line, and it grew old or too long."""

    utterance: Utterance


Happening = TurnOpened | EndLikely | EndDoubted | TurnEnded | TurnForgotten


@dataclass(frozen=True)
class Silence:
    """A stretch in which nobody was heard to speak: samples [start, end) and their sound."""

    item_id: str
    start: int
    end: int
    pcm: audio.Samples


class Listening:
    """`open_line`: sound flows by itself, and not only while the client wants to be heard."""

    def __init__(
        self,
        outbox: Outbox,
        ids: Ids,
        vad: VoiceActivity,
        echo: EchoLoop,
        input_hz: int,
        *,
        max_utterance_s: float,
        open_line: bool,
    ) -> None:
        self.open: Utterance | None = None
        self.worker_session: int | None = None
        self.worker_judges = False
        self._outbox = outbox
        self._ids = ids
        self._vad = vad
        self._echo = echo
        self._max_utterance_samples = int(max_utterance_s * SAMPLE_RATE_HZ)
        self._open_line = open_line
        self._buffer = InputBuffer()
        self._pending: deque[audio.Samples] = deque()
        self._resampler = audio.Resampler(input_hz, SAMPLE_RATE_HZ, low_delay=True)
        self._detection: TurnDetection | None = None
        self._detector = TurnDetector(_UNASKED_TIMING)
        self._uncommitted_from = 0
        self._last_end = 0
        self._voiced_until = 0
        self._count = 0

    # --- settings ---

    def configure(self, detection: TurnDetection | None, input_hz: int, *, open_line: bool | None = None) -> None:
        """`open_line`: where the way that the sound comes has changed."""
        was_pressed = self._is_pressed
        if open_line is not None:
            self._open_line = open_line
        if input_hz != self._resampler.from_hz:
            self._buffer.append(self._echo.cleaned(self._resampler.flush()))
            self._resampler = audio.Resampler(input_hz, SAMPLE_RATE_HZ, low_delay=True)
        self._detection = detection
        self._detector.timing = self._timing(detection)
        if self._is_pressed != was_pressed:
            self._restart_detector(self._buffer.end)
            if self.open is not None:
                self.open.likely_end = None

    @property
    def _is_pressed(self) -> bool:
        """Push-to-talk by what is appended: all of it is to be heard."""
        return self._detection is None and not self._open_line

    def _timing(self, detection: TurnDetection | None) -> TurnTiming:
        if detection is None:
            return _UNASKED_TIMING
        padding_ms = detection.prefix_padding_ms if isinstance(detection, ServerVad) else 300
        return TurnTiming(
            threshold=detection.threshold if isinstance(detection, ServerVad) else 0.5,
            prefix_padding_samples=padding_ms * SAMPLE_RATE_HZ // 1000,
            silence_samples=silence_ms(detection) * SAMPLE_RATE_HZ // 1000,
            patience=PATIENCE[detection.eagerness] if isinstance(detection, SemanticVad) else None,
        )

    # --- sound ---

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def held_bytes(self) -> int:
        """The sound kept here."""
        return 2 * (self._buffer.end - self._buffer.start) + sum(piece.nbytes for piece in self._pending)

    def append(self, samples: audio.Samples) -> None:
        """Queues sound at the input rate; `process` works it off slice by slice. Raises `ProtocolError` if full."""
        waiting = sum(piece.size for piece in self._pending) * SAMPLE_RATE_HZ // self._resampler.from_hz
        if self._buffer.end - self._buffer.start + waiting > MAX_BUFFER_SAMPLES:
            raise ProtocolError(
                "input_audio_buffer_full",
                f"The input audio buffer holds {MAX_BUFFER_SAMPLES // SAMPLE_RATE_HZ} s; commit or clear it first.",
                param="audio",
            )
        if samples.size:
            self._pending.append(samples)
            self._echo.arrived(samples.size, self._resampler.from_hz)

    def process(self) -> Iterator[Happening]:
        """Works off a little of the queued sound, so that one client's flood does not hold up the others."""
        if not self._pending:
            return
        head = self._pending.popleft()
        size = int(_SLICE_S * self._resampler.from_hz)
        if head.size > size:
            self._pending.appendleft(head[size:])
            head = head[:size]
        self._buffer.append(self._echo.cleaned(self._resampler.push(head)))
        if self._is_pressed:
            yield from self._while_pressed(self._detector)
        elif self._detection is None:
            yield from self._on_open_line(self._detector)
        else:
            yield from self._with_detector(self._detector)

    def _while_pressed(self, detector: TurnDetector) -> Iterator[Happening]:
        if self.open is None and self._buffer.end > self._uncommitted_from:
            yield TurnOpened(self._start(self._uncommitted_from, detected=False))
        while detector.position + WINDOW_SAMPLES <= self._buffer.end:
            if isinstance(self._next_event(detector), SpeechStarted) and self.open is not None:
                self.open.spoken = True
        self._forward(detector.position, at_once=False)

    def _next_event(self, detector: TurnDetector) -> TurnEvent | None:
        """What the next window of the sound says, on whether somebody speaks and how loud."""
        window = self._buffer.samples(detector.position, detector.position + WINDOW_SAMPLES)
        probability = self._vad.probability(window)
        if self.open is not None:
            if self.open.level.overdriven_by(window):
                self._forward(detector.position)
            self.open.level.hear(window, voiced=probability >= detector.timing.threshold)
        event = detector.push(probability)
        if self.open is not None and probability >= detector.timing.threshold:
            self.open.voiced_end = detector.position
            self.open.voiced_samples += window.size
        if self.open is not None and self.open.level.gain is None:
            self._forward(detector.position, at_once=False)
        return event

    def _with_detector(self, detector: TurnDetector) -> Iterator[Happening]:
        while detector.position + WINDOW_SAMPLES <= self._buffer.end:
            event = self._next_event(detector)
            self._weigh(event, detector.position)
            if isinstance(event, SpeechStarted) and self.open is None:
                yield TurnOpened(self._start(event.start_sample, detected=True, spoken=True))
            elif self.open is not None and (
                isinstance(event, EndNear) or (isinstance(event, LikelyStopped) and not self.worker_judges)
            ):
                yield EndLikely(self.open)
            elif isinstance(event, Resumed) and self.open is not None:
                yield EndDoubted(self.open)
            elif isinstance(event, SpeechStopped) and self.open is not None:
                self.open.spoken_end = event.speech_end_sample
                yield self._end(event.end_sample, by_client=False)
            elif self.open is not None and detector.position - self.open.start >= self._max_utterance_samples:
                detector.stop()
                yield self._end(detector.position, by_client=False)
        self._forward(detector.position, at_once=False)
        self._forget_quiet(detector.position)

    def _on_open_line(self, detector: TurnDetector) -> Iterator[Happening]:
        while detector.position + WINDOW_SAMPLES <= self._buffer.end:
            event = self._next_event(detector)
            self._weigh(event, detector.position)
            if isinstance(event, SpeechStarted) and self.open is None:
                yield TurnOpened(self._start(event.start_sample, detected=False, spoken=True))
            if detector.phase is not Phase.QUIET:
                self._voiced_until = detector.position
        if detector.phase is not Phase.QUIET:
            self._forward(detector.position, at_once=False)
        if self.open is not None and self._is_stale(self.open, detector.position):
            forgotten, self.open = self.open, None
            self._uncommitted_from = detector.position
            self._buffer.trim(detector.position)
            yield TurnForgotten(forgotten)
            if detector.phase is not Phase.QUIET:
                yield TurnOpened(self._start(detector.position, detected=False, spoken=True))
        self._forget_quiet(detector.position)

    def _weigh(self, event: TurnEvent | None, position: int) -> None:
        """Whether the open utterance goes on, by what the detector made of the sound up to `position`."""
        if self.open is None:
            return
        if isinstance(event, LikelyStopped):
            self.open.likely_end = position
            self.open.level.settle()
            self._forward(position)
            self._send_likely_end()
        elif isinstance(event, SpeechStarted | Resumed):
            self.open.spoken = True
            self.open.likely_end = self.open.rank = None
            self.open.onset = position - WINDOW_SAMPLES

    def judged(self, message: EndJudged) -> Iterator[Happening]:
        """How finished the open utterance sounds, if it still pauses where the worker was asked."""
        utterance = self.open
        if utterance is None or self._detection is None or utterance.likely_end is None:
            return
        if (utterance.number, utterance.likely_end - utterance.start) != (message.utterance, message.samples):
            return
        utterance.rank = message.backchannel
        if message.certainty >= SPECULATE_FROM:
            yield EndLikely(utterance)
        ended = self._detector.judged(message.certainty)
        if isinstance(ended, SpeechStopped):
            utterance.spoken_end = ended.speech_end_sample
            yield self._end(ended.end_sample, by_client=False)

    @property
    def paused_samples(self) -> int | None:
        """For how long the open utterance pauses, None while somebody speaks in it."""
        if self.open is None or self.open.likely_end is None:
            return None
        return self._detector.position - self.open.voiced_end

    @property
    def stirs(self) -> bool:
        """Whether the newest of the sound may be the first of a voice: the next 32 ms tell."""
        return self._detection is not None and self._detector.stirs

    @property
    def awaits_silence(self) -> bool:
        """Whether the end of the open utterance is to be heard: no client will tell it."""
        return self.open is not None and self._detection is not None

    def cut_off(self) -> TurnEnded:
        """No more sound comes: the open utterance ends with the last of it."""
        assert self.open is not None
        self._detector.stop()
        self.open.spoken_end = self._detector.position
        return self._end(self._detector.position, by_client=False)

    def _is_stale(self, utterance: Utterance, position: int) -> bool:
        silent_for = position - max(self._voiced_until, utterance.start)
        return silent_for > _KEPT_QUIET_SAMPLES or position - utterance.start > _MAX_OPEN_LINE_SAMPLES

    def _forget_quiet(self, position: int) -> None:
        if self.open is None:
            self._uncommitted_from = max(self._uncommitted_from, position - _KEPT_QUIET_SAMPLES)
            self._buffer.trim(self._uncommitted_from)

    def resume(self, item_id: str, pcm: audio.Samples) -> bool:
        """The open utterance goes on with the turn of that item, which ended last and has this sound.

        False where it cannot: together they are too long, or what lay between is forgotten.
        """
        assert self.open is not None
        first = self._last_end - pcm.size
        if self._buffer.start != self._last_end or self._buffer.end - first > self._max_utterance_samples:
            return False
        self._buffer.prepend(pcm)
        self.open.start = self.open.sent = first
        self.open.continues, self.open.continued = item_id, pcm.size
        self.open.level.hear(pcm, voiced=True)
        return True

    def take_silence(self, longest_samples: int) -> Silence:
        """Commits the silence up to now, at most its last `longest_samples`; nothing may be open."""
        assert self.open is None
        end = self._detector.position
        start = max(self._uncommitted_from, end - longest_samples)
        silence = Silence(self._ids.new("item"), start, end, self._buffer.samples(start, end))
        self._detector.stop()
        self._uncommitted_from = self._last_end = end
        self._buffer.trim(end)
        return silence

    # --- the client's own commit and clear ---

    def commit(self) -> Iterator[Happening]:
        """Ends the utterance here. Raises `ProtocolError` if there are less than 100 ms to commit."""
        self._buffer.append(self._echo.cleaned(self._resampler.flush(), last=True))
        end = self._buffer.end
        start = self.open.start if self.open is not None else self._uncommitted_from
        if self._open_line and self._detection is None:
            if self.open is None:
                start = max(start, end - _UNHEARD_SAMPLES)
            else:
                end = min(end, max(self._voiced_until, start) + _TRAILING_SAMPLES)
        if end - start < MIN_COMMIT_SAMPLES:
            raise ProtocolError(
                "input_audio_buffer_commit_empty", "The input audio buffer holds less than 100 ms of audio."
            )
        self._restart_detector(self._buffer.end)
        if self.open is None:
            yield TurnOpened(self._start(start, detected=False))
        if self.open is not None:
            self.open.spoken_end = end
            yield self._end(end, by_client=True)
        self._uncommitted_from = self._buffer.end
        self._buffer.trim(self._buffer.end)

    def clear(self) -> Utterance | None:
        """Forgets what was not committed; returns the utterance that ends thereby, if one was open."""
        self._pending.clear()
        self._resampler.flush()
        self._echo.skipped()
        dropped, self.open = self.open, None
        self._uncommitted_from = self._buffer.end
        self._buffer.trim(self._buffer.end)
        self._restart_detector(self._buffer.end)
        return dropped

    # --- towards the worker ---

    def replay(self) -> None:
        """A new worker holds nothing: send the open utterance again from its beginning."""
        if self.open is not None:
            self.open.sent, self.open.lost = self.open.start, False
            self._forward(self._detector.position)
            self._send_likely_end()

    def next_number(self) -> int:
        self._count += 1
        return self._count

    def send_utterance(self, number: int, pcm: bytes, *, ended: bool) -> None:
        """Sound in pieces of at most a second."""
        if self.worker_session is None:
            return
        for offset in range(0, len(pcm), 2 * _PIECE_SAMPLES):
            piece = pcm[offset : offset + 2 * _PIECE_SAMPLES]
            self._outbox.worker(AudioIn(self.worker_session, number, piece))
        if ended:
            self._outbox.worker(EndUtterance(self.worker_session, number))

    def _start(self, first: int, *, detected: bool, spoken: bool = False) -> Utterance:
        first = max(first, self._buffer.start)
        number, item_id = self.next_number(), self._ids.new("item")
        self.open = Utterance(number, item_id, detected, first, sent=first, spoken_end=first, spoken=spoken)
        if spoken:
            self.open.voiced_samples = ONSET_SAMPLES
            self.open.voiced_end = self._detector.position
            self.open.onset = self._detector.position - ONSET_SAMPLES
        return self.open

    def _end(self, end: int, *, by_client: bool) -> TurnEnded:
        utterance = self.open
        assert utterance is not None
        if utterance.spoken:
            utterance.level.settle()
            self._forward(end)
        if utterance.spoken and not utterance.lost:
            self.send_utterance(utterance.number, b"", ended=True)
        self.open = None
        self._uncommitted_from = self._last_end = end
        pcm = self._buffer.samples(utterance.start, end)
        self._buffer.trim(end)
        waited_ms = (end - utterance.spoken_end) * 1000 / SAMPLE_RATE_HZ
        return TurnEnded(utterance, end, pcm, waited_ms, by_client)

    def _forward(self, end: int, *, at_once: bool = True) -> None:
        """Sends the open utterance up to `end`, or to where it has probably ended; if not `at_once`, when it is worth a
        message: the worker is woken by each, and listens to much more than one brings."""
        if self.open is None or self.open.lost or self.worker_session is None:
            return
        if self.open.likely_end is not None:
            end = min(end, self.open.likely_end)
        gain = self.open.level.gain
        if gain is None:
            gain, end = 1.0, end - _UNKNOWN_LEVEL_SAMPLES
        if end - self.open.sent >= (1 if at_once else _WORTH_SENDING_SAMPLES):
            heard = amplified(self._buffer.samples(self.open.sent, end), gain)
            self.send_utterance(self.open.number, heard.tobytes(), ended=False)
            self.open.sent = end

    def _send_likely_end(self) -> None:
        if self.open is None or self.open.lost or self.worker_session is None:
            return
        if self.open.likely_end is not None:
            self._outbox.worker(LikelyEnd(self.worker_session, self.open.number))

    def _restart_detector(self, position: int) -> None:
        self._vad.reset()
        self._detector = TurnDetector(self._detector.timing, position)


def milliseconds(samples: int) -> int:
    return samples * 1000 // SAMPLE_RATE_HZ
