"""One turn without a network: a question as samples, the answer as samples, and what it took."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import msgspec
import numpy as np

from agent.wire import INPUT_SAMPLE_RATE, STAGES, ContextItem, ResponseStats, TokenSpan, WordSpan
from worker.parts import Conversation, Encoded, Finished, Pcm, Question, Sound, SpeechModel, TextPiece, transcription_of

PIECE_SAMPLES = 320
"""Audio is fed in pieces of 20 ms, as a call brings it."""


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """speech: False for a text answer; realtime: feed the question no faster than it was spoken."""

    input_hz: float = 12.5
    output_hz: float = 12.5
    instructions: str = ""
    speech: bool = True
    realtime: bool = False
    max_output_tokens: int = 600
    history: tuple[ContextItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn gave. first_audio_ms and total_ms count from the last sample of the question; busy_ms is the time
    that the model worked, over the whole turn."""

    transcript: str
    text: str
    reason: str
    pcm: Pcm
    tokens: list[TokenSpan]
    words: list[WordSpan]
    encoded: Encoded | None
    stats: ResponseStats
    first_audio_ms: float
    total_ms: float
    busy_ms: float


@dataclass(slots=True)
class _Stopwatch:
    """Adds up the time spent inside `with` blocks."""

    busy_s: float = 0.0
    _start: float = field(default=0.0)

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.busy_s += time.perf_counter() - self._start


def ask_by_voice(model: SpeechModel, question: Pcm, settings: TurnSettings) -> Turn:
    """question [samples] float32 at 16 kHz in [-1, 1]. Raises RequestError for rates the model cannot do."""
    stopwatch = _Stopwatch()
    with stopwatch:
        conversation = Conversation(settings.instructions, settings.history)
        listener = model.listen(conversation, settings.input_hz, settings.output_hz)
    start = ended = time.perf_counter()
    for at in range(0, len(question), PIECE_SAMPLES):
        piece = question[at : at + PIECE_SAMPLES]
        if settings.realtime:
            time.sleep(max(0.0, start + (at + len(piece)) / INPUT_SAMPLE_RATE - time.perf_counter()))
        ended = time.perf_counter()
        with stopwatch:
            listener.feed(piece)
    with stopwatch:
        encoded = listener.finish()
    context = (*settings.history, ContextItem("user", listener.transcript, 0))
    asked = Question(
        Conversation(settings.instructions, context),
        {0: listener},
        settings.input_hz,
        settings.output_hz,
        settings.speech,
        settings.max_output_tokens,
    )
    return _answer(model, asked, listener.transcript, encoded, ended, stopwatch)


def ask_by_text(model: SpeechModel, question: str, settings: TurnSettings) -> Turn:
    context = (*settings.history, ContextItem("user", question))
    asked = Question(
        Conversation(settings.instructions, context),
        {},
        settings.input_hz,
        settings.output_hz,
        settings.speech,
        settings.max_output_tokens,
    )
    return _answer(model, asked, question, None, time.perf_counter(), _Stopwatch())


def speak_text(model: SpeechModel, sentence: str, settings: TurnSettings) -> tuple[Pcm, int]:
    """The sentence in the model's voice, and the sample rate."""
    return ask_by_text(model, model.repetition(sentence), settings).pcm, model.output_sample_rate


def write_down(model: SpeechModel, question: Pcm, settings: TurnSettings) -> Turn:
    """Only the transcript: by the recogniser head where the model has one, else as the model's answer. Nothing is
    written of digital silence."""
    ended, stopwatch = time.perf_counter(), _Stopwatch()
    with stopwatch:
        listener = model.listen(Conversation("", ()), settings.input_hz, settings.output_hz)
        for at in range(0, len(question), PIECE_SAMPLES):
            listener.feed(question[at : at + PIECE_SAMPLES])
        encoded = listener.finish()
    text = listener.transcript if question.any() else ""
    if text or not encoded.groups or not question.any():
        ms = (time.perf_counter() - ended) * 1e3
        nothing = np.zeros(0, np.float32)
        return Turn(text, text, "completed", nothing, [], [], encoded, ResponseStats(total_ms=ms), 0.0, ms, ms)
    asked = transcription_of(listener, settings.max_output_tokens, settings.input_hz, settings.output_hz)
    turn = _answer(model, asked, "", encoded, ended, stopwatch)
    return dataclasses.replace(turn, transcript=turn.text)


def _answer(
    model: SpeechModel,
    question: Question,
    transcript: str,
    encoded: Encoded | None,
    ended: float,
    stopwatch: _Stopwatch,
) -> Turn:
    tokens: list[TokenSpan] = []
    words: list[WordSpan] = []
    sounds: list[Pcm] = []
    first_text_ms = first_audio_ms = 0.0
    reason = ""
    with stopwatch:
        speaker = model.respond(question)
    while not reason:
        with stopwatch:
            events = speaker.step()
        now_ms = (time.perf_counter() - ended) * 1e3
        for event in events:
            match event:
                case TextPiece():
                    first_text_ms = first_text_ms or now_ms
                case Sound(pcm, new_tokens, new_words):
                    first_audio_ms = first_audio_ms or now_ms
                    sounds.append(pcm)
                    tokens += new_tokens
                    words += new_words
                case Finished(why):
                    reason = why
    total_ms = (time.perf_counter() - ended) * 1e3
    stats = msgspec.structs.replace(
        speaker.stats(),
        first_text_ms=first_text_ms,
        first_audio_ms=first_audio_ms,
        total_ms=total_ms,
        requested_output_hz=question.output_hz,
    )
    pcm = np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
    busy_ms = stopwatch.busy_s * 1e3
    return Turn(transcript, speaker.text, reason, pcm, tokens, words, encoded, stats, first_audio_ms, total_ms, busy_ms)


def report(turn: Turn, output_sample_rate: int, input_hz: float) -> dict[str, object]:
    """The JSON object of a turn: units in the names, times from the end of the question. What did not happen is
    absent."""
    stats = turn.stats
    whole: dict[str, object] = {
        "transcript": turn.transcript,
        "text": turn.text,
        "reason": turn.reason,
        "first_text_ms": round(stats.first_text_ms, 1) or None,
        "first_audio_ms": round(turn.first_audio_ms, 1),
        "total_ms": round(turn.total_ms, 1),
        "busy_ms": round(turn.busy_ms, 1),
        "question_s": round(turn.encoded.samples / INPUT_SAMPLE_RATE, 3) if turn.encoded else None,
        "answer_s": round(len(turn.pcm) / output_sample_rate, 3),
        "requested_input_hz": input_hz,
        "realised_input_hz": round(turn.encoded.realised_hz, 3) if turn.encoded else None,
        "requested_output_hz": stats.requested_output_hz,
        "realised_output_hz": round(stats.realised_output_hz, 3),
        "tokens": [[token.code, token.duration_frames] for token in turn.tokens],
        "words": [
            [word.text, *(round(sample / output_sample_rate, 3) for sample in (word.start_sample, word.end_sample))]
            for word in turn.words
        ],
        "stages": {
            f"{name}_ms": round(getattr(stats, f"{name}_ms"), 2) for name in STAGES if getattr(stats, f"{name}_ms")
        },
    }
    if turn.encoded is None:
        del whole["requested_input_hz"]
    if not len(turn.pcm):
        for name in ("first_audio_ms", "answer_s", "requested_output_hz", "realised_output_hz", "tokens", "words"):
            del whole[name]
    return {name: value for name, value in whole.items() if value is not None}
