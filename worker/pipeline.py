"""The pipeline of one model: listening prefills the networks while the user speaks, answering goes on from there.

Listener: samples ─► Ear ─► embeddings ─► Thinker and Talker caches (a slot of the Runner)
Speaker:  end of prompt ─► joint Thinker/Talker steps ─► (code, duration) ─► Voice ─► samples
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.wire import Abilities, ContextItem, ResponseStats
from kernels.sampling import counted_uniforms
from models.networks.flexislm import FlexiSLM
from models.networks.generation import Generation, GenerationOptions, Runner, Step
from models.networks.prompts import CALL, PastTurn, Prompt, chat_prompt, repeat_request, without_marks
from models.networks.tokenizer import TextTokenizer
from streaming.speaking.mel24k import SAMPLE_RATE_HZ
from streaming.speaking.unmerge import OUTPUT_FRAME_SAMPLES
from worker.calls.caller import Caller, Calling
from worker.calls.counter import CounterCaller
from worker.calls.template import TemplateCaller
from worker.ears.ear import Ear, Hearing, group_ms, realised_hz
from worker.parts import (
    Conversation,
    Encoded,
    Finished,
    Listener,
    Pcm,
    Question,
    RequestError,
    Sound,
    Speaker,
    Spoken,
    TextPiece,
    Unit,
)
from worker.placement import BackEnds
from worker.prefill import (
    ANSWER_POSITIONS,
    MAX_POSITIONS,
    Prefill,
    SlotPool,
    add_audio,
    begin_answers,
    open_prompts,
)
from worker.undo import Undo
from worker.voices.tokens import SpokenTokens
from worker.voices.voice import Voice
from worker.words import WordClock

MIN_RATE_HZ, MAX_RATE_HZ = 4.0, 12.5
CODEC_FRAME_RATE_HZ = 12.5
MAX_STEPS = ANSWER_POSITIONS - 40
WARM_UP_SAMPLES = 41_000
"""A block of the official encoder and what opens the next."""
LONGEST_PER_LETTER, LONGEST_PAUSE = 2.5, 25.0
"""12.5 Hz frames: an answer that lasts longer than this for its letters is cut."""


@dataclass(frozen=True, slots=True)
class Networks:
    """What a pipeline is made of. voice: None where it can only write; draws: speech tokens are drawn by lot, else the
    likeliest are taken."""

    name: str
    slm: FlexiSLM
    tokenizer: TextTokenizer
    ear: Ear
    voice: Voice[Any] | None
    draws: bool


class Pipeline:
    """A `SpeechModel` of our own networks, for at most `sessions` callers at once; `back_ends`: None for those that
    suit the networks' device."""

    output_sample_rate = SAMPLE_RATE_HZ
    codec_frame_rate_hz = CODEC_FRAME_RATE_HZ

    def __init__(self, networks: Networks, sessions: int, back_ends: BackEnds | None = None) -> None:
        self.networks, self._sessions = networks, sessions
        # One slot to listen with and one to answer from, for each caller.
        slots = 2 * sessions
        self.runner = Runner(
            networks.slm,
            networks.tokenizer.special,
            slots,
            MAX_POSITIONS,
            rows=sessions,
            attention=back_ends.attention if back_ends else None,
            steps=back_ends.steps if back_ends else None,
        )
        self.pool = SlotPool(slots)
        self.mark = networks.tokenizer.mark(CALL)
        # The one that takes no instructions knows the counter and nothing else.
        prompts = networks.slm.config.agogic.prompts
        counter = CounterCaller(prompts.history not in ("last_answer", "last_two_answers"))
        self.caller: Caller = TemplateCaller(self.mark >= 0) if prompts.instructable else counter
        self.abilities = Abilities(prompts.instructable, self.caller.names)

    @property
    def name(self) -> str:
        return self.networks.name

    @property
    def judges_ends(self) -> bool:
        return self.networks.ear.judges_ends

    def warm_up(self) -> None:
        """A short turn of nobody's, so that the first caller waits for no kernel to be chosen and no graph recorded."""
        self.runner.warm_up()
        nothing = Conversation("", ())
        listener = self.listen(nothing, MAX_RATE_HZ, MAX_RATE_HZ)
        listener.feed(np.full(WARM_UP_SAMPLES, 1e-3, np.float32))
        listener.finish()
        said = Conversation("", (ContextItem("user", "", 0),))
        speaker = self.respond(
            Question(said, {0: listener}, MAX_RATE_HZ, MAX_RATE_HZ, self.networks.voice is not None, 2)
        )
        while not any(isinstance(event, Finished) for event in speaker.step()):
            pass
        listener.close()
        if self.networks.voice is not None:
            self.networks.voice.warm_up(self._sessions)

    def listen(
        self, conversation: Conversation, input_hz: float, output_hz: float, previous: Listener | None = None
    ) -> PipelineListener:
        _check_rate("input", input_hz)
        before = previous if isinstance(previous, PipelineListener) else None
        return PipelineListener(
            self, self.prompt(conversation, "", audio=True, speech=True), input_hz, output_hz, before
        )

    def respond(self, question: Question) -> Speaker:
        _check_rate("output", question.output_hz)
        if question.speech and self.networks.voice is None:
            raise RequestError("no_voice", "this model has no voice prompt to speak like; start it with one")
        if question.say:
            return self._saying(question.say, question)
        asked = question.conversation
        earlier, last, results = _parted(asked.items)
        utterance = question.heard.get(last.utterance) if last.utterance is not None else None
        calling = None
        if not question.transcribe:
            words = utterance.transcript if utterance is not None else last.text
            now = results[-1] if results else ContextItem("user", words)
            calling = self.caller.calling((*earlier, *results[:-1], now), asked.tools)
        if calling is not None and calling.say:
            return self._saying(calling.say, question)
        spoken = isinstance(utterance, PipelineListener) and utterance.groups > 0
        text = "" if spoken else last.text
        if question.transcribe:
            text = self.networks.slm.config.agogic.prompts.asks_transcript
        speech = question.speech and not (calling is not None and calling.silent)
        prompt = self.prompt(
            Conversation(asked.instructions, earlier, asked.tools),
            text,
            audio=spoken,
            speech=question.speech,
            results=results,
            begun=calling.begun if calling is not None else "",
        )
        heard = utterance if isinstance(utterance, PipelineListener) and spoken else None
        prefill = heard.prefill if heard is not None else self.new_prefill(question.output_hz)
        return PipelineSpeaker(
            self, prefill, prompt, heard, self._options(question, speech=speech, calling=calling), calling
        )

    def _saying(self, text: str, question: Question) -> Speaker:
        """Says just this, to the letter: a small model asked to repeat says what it knows instead."""
        prompt = self.prompt(Conversation("", ()), self.repetition(text), audio=False, speech=question.speech)
        special, letters = self.runner.special, self.networks.tokenizer.encode(without_marks(text))
        options = replace(
            self._options(question, speech=question.speech),
            forced_text=(*letters, special.im_end, special.newline),
        )
        return PipelineSpeaker(self, self.new_prefill(question.output_hz), prompt, None, options)

    def _options(self, question: Question, *, speech: bool, calling: Calling | None = None) -> GenerationOptions:
        steps = max(1, min(question.max_output_tokens, MAX_STEPS, self._most_steps()))
        return GenerationOptions(
            output_hz=question.output_hz,
            speech=speech,
            max_steps=steps,
            uniforms=counted_uniforms(question.session, question.generation, steps) if self.networks.draws else None,
            ends_circles=True,
            mark=self.mark if speech and calling is not None and calling.mark else -1,
        )

    def _most_steps(self) -> int:
        """Steps of the longest answer that is sane: one for each frame, and those of the delay."""
        config = self.networks.slm.config
        return math.ceil(config.agogic.longest_answer_s * CODEC_FRAME_RATE_HZ) + config.speech_delay_tokens

    @torch.inference_mode()
    def open(self, listeners: Sequence[Listener]) -> None:
        closed = [listener for listener in listeners if isinstance(listener, PipelineListener) and not listener.opened]
        if closed:
            open_prompts([listener.prefill for listener in closed], [listener.prompt for listener in closed])
        for listener in closed:
            listener.opened = True

    @torch.inference_mode()
    def prepare(self, listeners: Sequence[Listener]) -> None:
        self.open(listeners)
        ending = [
            listener for listener in listeners if isinstance(listener, PipelineListener) and not listener.prepared
        ]
        with self._whole(ending):
            tails = [listener.close_on_trial() for listener in ending]
            add_audio([listener.prefill for listener in ending], tails)

    @contextmanager
    def _whole(self, listeners: Sequence[PipelineListener]) -> Iterator[None]:
        """Either what is done is done for all of them, or nothing was."""
        undo = Undo(listener.hearing for listener in listeners) if len(listeners) > 1 else None
        marks = [listener.mark() for listener in listeners]
        try:
            yield
        except Exception:
            if undo is not None:
                undo.restore()
                for listener, mark in zip(listeners, marks, strict=True):
                    listener.back_to(mark)
            raise

    @torch.inference_mode()
    def feed(self, listeners: Sequence[Listener], pieces: Sequence[Pcm]) -> None:
        self.open(listeners)
        utterances = [listener for listener in listeners if isinstance(listener, PipelineListener)]
        for utterance in utterances:
            utterance.go_on()
        with self._whole(utterances):
            self._feed(utterances, pieces)

    def _feed(self, utterances: Sequence[PipelineListener], pieces: Sequence[Pcm]) -> None:
        started = time.perf_counter()
        embeddings = self.networks.ear.hear([utterance.hearing for utterance in utterances], pieces)
        share_ms = (time.perf_counter() - started) * 1e3 / len(utterances)
        for utterance, new in zip(utterances, embeddings, strict=True):
            utterance.take(new, share_ms)
        add_audio([utterance.prefill for utterance in utterances], embeddings)

    def step(self, speakers: Sequence[Speaker], unit: Unit) -> list[list[Spoken]]:
        replies = [speaker for speaker in speakers if isinstance(speaker, PipelineSpeaker)]
        if unit == "beginning":
            return self._begin(replies)
        if unit == "sound" and self.networks.voice is not None:
            voices = [reply.voice for reply in replies if reply.voice is not None]
            undo = Undo(voices) if len(voices) > 1 else None
            try:
                sounds = self.networks.voice.render(voices)
            except Exception:
                if undo is not None:
                    undo.restore()
                raise
            return [reply.take_sound(pcm) for reply, pcm in zip(replies, sounds, strict=True)]
        answers = [reply.answer for reply in replies]
        undo = Undo(answers) if len(answers) > 1 else None
        back = self.runner.way_back(answers) if len(answers) > 1 else None
        try:
            steps = self.runner.step(answers)
        except Exception:
            if undo is not None and back is not None:
                undo.restore()
                back()
            raise
        return [reply.take(step) for reply, step in zip(replies, steps, strict=True)]

    def _begin(self, replies: Sequence[PipelineSpeaker]) -> list[list[Spoken]]:
        answers = begin_answers(
            [reply.prefill for reply in replies],
            [reply.prompt for reply in replies],
            [reply.utterance.embeddings if reply.utterance else None for reply in replies],
            [reply.options for reply in replies],
        )
        for reply, answer in zip(replies, answers, strict=True):
            reply.begun(answer)
        return [[] for _ in replies]

    def repetition(self, sentence: str) -> str:
        return repeat_request(sentence, self.networks.slm.config.agogic.prompts)

    def new_prefill(self, output_hz: float) -> Prefill:
        return Prefill(self.runner, self.networks.tokenizer, self.pool, output_hz)

    def prompt(
        self,
        conversation: Conversation,
        text: str,
        *,
        audio: bool,
        speech: bool,
        results: Sequence[ContextItem] = (),
        begun: str = "",
    ) -> Prompt:
        prompts = self.networks.slm.config.agogic.prompts
        system = "\n".join(item.text for item in conversation.items if item.role == "system")
        instructions = "\n".join(part for part in (conversation.instructions, system) if part)
        newest = self.networks.tokenizer.newest
        past = self.caller.remembered(tuple(item for item in conversation.items if item.role != "system"))
        return chat_prompt(
            newest(text, prompts.request_tokens),
            audio=audio,
            speech=speech,
            history=[PastTurn(item.role, item.text, item.name) for item in past],
            instructions=instructions,
            prompts=prompts,
            tools=self.caller.introduction(conversation.tools),
            results=[PastTurn("result", newest(item.text, prompts.request_tokens), item.name) for item in results],
            begun=begun,
        )


def _parted(
    items: tuple[ContextItem, ...],
) -> tuple[tuple[ContextItem, ...], ContextItem, tuple[ContextItem, ...]]:
    """What came before, what the user said last ("" where he did not speak last), and what functions gave since."""
    first = len(items)
    while first and items[first - 1].role == "result":
        first -= 1
    if first < len(items):
        return items[:first], ContextItem("user", ""), items[first:]
    if items and items[-1].role == "user":
        return items[:-1], items[-1], ()
    return items, ContextItem("user", ""), ()


def _check_rate(side: str, rate_hz: float) -> None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        allowed = f"{MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz"
        raise RequestError("bad_rate", f"{side} rate {rate_hz} Hz is out of range: {allowed}")


@dataclass(frozen=True, slots=True)
class ListenerMark:
    """parts: how many pieces of embeddings there are; before_end, prefilled: marks of the prompt."""

    parts: int
    before_end: tuple[int, tuple[int, int]] | None
    encode_ms: float
    prefilled: tuple[int, int]


class PipelineListener:
    """One stretch of the user's speech: a `Listener`."""

    def __init__(
        self, pipeline: Pipeline, prompt: Prompt, input_hz: float, output_hz: float, previous: PipelineListener | None
    ) -> None:
        self._pipeline = pipeline
        self._embeddings: list[Tensor] = []
        self._before_end: tuple[int, tuple[int, int]] | None = None
        self.hearing: Hearing = pipeline.networks.ear.begin(input_hz, previous.hearing if previous else None)
        self.encode_ms = 0.0
        self.prompt = prompt
        self.opened = False
        self.prefill = pipeline.new_prefill(output_hz)
        self.prefill.reserve()

    @property
    def transcript(self) -> str:
        return self.hearing.transcript

    @property
    def transcribes(self) -> bool:
        return self.hearing.transcribes

    @property
    def certainty(self) -> float | None:
        return self.hearing.certainty

    @property
    def groups(self) -> int:
        """Those at hand, with what is prepared."""
        return sum(map(len, self._embeddings))

    @property
    def embeddings(self) -> Tensor:
        return torch.cat(self._embeddings)

    def feed(self, pcm: Pcm) -> None:
        self._pipeline.feed([self], [pcm])

    @property
    def prepared(self) -> bool:
        return self._before_end is not None

    def prepare(self) -> None:
        self._pipeline.prepare([self])

    def close_on_trial(self) -> Tensor:
        """The embeddings [G, H] that were still open, if the utterance ends here."""
        started = time.perf_counter()
        tail = self.hearing.prepare()
        self._before_end = (len(self._embeddings), self.prefill.mark())
        self.take(tail, (time.perf_counter() - started) * 1e3)
        return tail

    def finish(self) -> Encoded:
        self.prepare()
        self.hearing.finish()
        self.prefill.complete()
        hearing = self.hearing
        realised = realised_hz(hearing)
        lengths = group_ms(hearing)
        return Encoded(hearing.samples, hearing.frames, hearing.groups, realised, self.encode_ms, lengths)

    def close(self) -> None:
        self.prefill.close()

    def mark(self) -> ListenerMark:
        """Where it stands, besides what its ear heard."""
        return ListenerMark(len(self._embeddings), self._before_end, self.encode_ms, self.prefill.mark())

    def back_to(self, mark: ListenerMark) -> None:
        del self._embeddings[mark.parts :]
        self._before_end, self.encode_ms = mark.before_end, mark.encode_ms
        self.prefill.back_to(mark.prefilled)

    def go_on(self) -> None:
        """The end that was prepared for is not the end."""
        if self._before_end is not None:
            parts, mark = self._before_end
            del self._embeddings[parts:]
            self.prefill.back_to(mark)
            self.prefill.busy = True  # an answer to what was prepared may have laid it down
            self._before_end = None

    def take(self, embeddings: Tensor, encode_ms: float) -> None:
        """Keeps merged embeddings [G, H], which took so long to make."""
        self.encode_ms += encode_ms
        if len(embeddings):
            self._embeddings.append(embeddings)


class PipelineSpeaker:
    """One answer: a `Speaker`. Each unit is one joint step of Thinker and Talker or one chunk of sound.

    Where a spoken answer comes to a call, its speech ends, and what the Thinker has to write is made in a second
    generation from the same prompt, without the Talker.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prefill: Prefill,
        prompt: Prompt,
        utterance: PipelineListener | None,
        options: GenerationOptions,
        calling: Calling | None = None,
    ) -> None:
        self._calling = calling
        self._writes = calling is not None and calling.silent
        self._all_text = ""
        self._started = time.perf_counter()
        self._pipeline = pipeline
        self._runner = pipeline.runner
        self.prefill = prefill
        self.prompt = prompt
        self.utterance = utterance
        self.options = options
        self._prefilled_before_ms = prefill.prefill_ms
        self._answer: Generation | None = None
        self._stream = pipeline.networks.tokenizer.stream()
        voice = pipeline.networks.voice
        self.voice = voice.begin() if voice is not None and options.speech else None
        self._words = WordClock(OUTPUT_FRAME_SAMPLES, pipeline.networks.slm.config.alignment_head is not None)
        self._text_tokens = 0
        self._tokens = SpokenTokens()
        self._looked_at: int | None = None
        self._first_token_ms = 0.0
        self._thinker_ms = 0.0
        self._talker_ms = 0.0

    @property
    def answer(self) -> Generation:
        assert self._answer is not None
        return self._answer

    def begun(self, answer: Generation) -> None:
        """The prompt is complete, and this is what goes on from it."""
        self._answer = answer

    @property
    def text(self) -> str:
        return self._words.text_so_far.strip()

    @property
    def made_samples(self) -> int:
        return self._tokens.frames * OUTPUT_FRAME_SAMPLES

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        if self.voice is not None:
            self.voice.pace(hurried=hurried, alone=alone, next_in_s=next_in_s)

    @property
    def unit(self) -> Unit:
        if self.voice is not None and self.voice.ready:
            return "sound"
        if self._answer is None:
            return "beginning"
        return "end" if self._over() else "token"

    @property
    def talks(self) -> bool:
        return self._answer is not None and not self._over()

    @property
    def unit_samples(self) -> int:
        return self.voice.next_samples if self.voice is not None and self.voice.ready else 0

    def step(self) -> list[Spoken]:
        if self.unit != "end":
            return self._pipeline.step([self], self.unit)[0]
        self.close()
        if self.answer.ended != "end":
            return [Finished("max_output_tokens")]
        calls = self._calling.read(self._all_text) if self._calling is not None else []
        return [*calls, Finished("completed")]

    def close(self) -> None:
        """The answer is over or given up: its slot serves the next one."""
        self.prefill.answered()
        if self.utterance is None:
            self.prefill.close()

    def stats(self) -> ResponseStats:
        spoken, frames = len(self._tokens.all), self._tokens.frames
        hearing = self.utterance.hearing if self.utterance else None
        return ResponseStats(
            first_token_ms=self._first_token_ms,
            encode_ms=self.utterance.encode_ms if self.utterance else 0.0,
            prefill_ms=self.prefill.prefill_ms - (0.0 if self.utterance else self._prefilled_before_ms),
            thinker_ms=self._thinker_ms,
            talker_ms=self._talker_ms,
            flow_ms=self.voice.flow_ms if self.voice else 0.0,
            vocoder_ms=self.voice.vocoder_ms if self.voice else 0.0,
            text_tokens=self._text_tokens,
            speech_tokens=spoken,
            speech_frames=frames,
            prompt_positions=self._answer.prompt_positions if self._answer else 0,
            input_frames=hearing.frames if hearing else 0,
            input_groups=hearing.groups if hearing else 0,
            realised_input_hz=realised_hz(hearing) if hearing else 0.0,
            realised_output_hz=CODEC_FRAME_RATE_HZ * spoken / frames if frames else 0.0,
            requested_output_hz=self.options.output_hz,
            talker_steps=self._answer.talker_steps if self._answer else 0,
        )

    def take(self, step: Step) -> list[Spoken]:
        """What a joint step of Thinker and Talker gave to this answer."""
        self._thinker_ms += step.thinker_ms
        self._talker_ms += step.talker_ms
        events: list[Spoken] = []
        if step.text_token is not None:
            piece = self._stream.push(step.text_token)
            self._all_text += piece
            self._text_tokens += 1
            self._writes |= self._calling is not None and step.text_token == self._pipeline.mark
            if not self._writes:
                if step.text_token == self._runner.special.im_end:
                    self._words.end_text()
                self._words.text(piece)
                if piece:
                    events.append(TextPiece(piece))
        if step.spoken is not None and self.voice is not None:
            span = self._tokens.add(step.spoken.code, step.spoken.duration_frames)
            if span is not None:
                self._first_token_ms = self._first_token_ms or (time.perf_counter() - self._started) * 1e3
                self.voice.push(span.code, span.duration_frames)
                self._words.speech(span.duration_frames, self._looked_at)
        # The head's weights belong to the code chosen in this step, whose duration comes with the next.
        self._looked_at = step.focus
        if self.answer.marked and (self._over() or not self.text):
            self._write_on()
        elif self.voice is not None and self._over():
            self.voice.end()
        return events

    def _write_on(self) -> None:
        """What was to be said is said: the rest is written."""
        if self.text and self.voice is not None:
            self.voice.end()
        else:
            self.voice = None
        begun = f"{self._all_text}{CALL}\n"
        self.prompt = replace(self.prompt, after=self.prompt.after + begun)
        self.options = replace(self.options, speech=False, uniforms=None, mark=-1)
        self._all_text, self._writes, self._answer = begun, True, None
        self._stream = self._pipeline.networks.tokenizer.stream()

    def _over(self) -> bool:
        """Whether no more tokens will come."""
        return bool(self.answer.ended) or (self.options.speech and self._runs_on())

    def _runs_on(self) -> bool:
        """Whether sound goes on long after every word must have been said, or longer than any answer should last: a
        small Talker can miss its end."""
        longest = self._pipeline.networks.slm.config.agogic.longest_answer_s
        if self._tokens.frames >= longest * CODEC_FRAME_RATE_HZ:
            return True
        return self._words.text_ended and self._tokens.frames > LONGEST_PER_LETTER * len(self.text) + LONGEST_PAUSE

    def take_sound(self, pcm: Pcm) -> list[Spoken]:
        """The next samples of the voice, and what is said in them."""
        assert self.voice is not None
        words = (
            self._words.rest() if self.voice.finished else self._words.begun(self.voice.samples / OUTPUT_FRAME_SAMPLES)
        )
        tokens = self._tokens.heard(self.voice.samples)
        return [Sound(pcm, tokens, words)] if len(pcm) else []
