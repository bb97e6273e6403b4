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

from agent.wire import CODEC_FRAME_RATE_HZ, Abilities, ContextItem
from kernels.sampling import counted_uniforms
from models.networks.flexislm import FlexiSLM
from models.networks.generation import GenerationOptions, Runner
from models.networks.prompts import CALL, PastTurn, Prompt, chat_prompt, repeat_request, without_marks
from models.networks.tokenizer import TextTokenizer
from streaming.speaking.mel24k import SAMPLE_RATE_HZ
from worker.calls.caller import Caller, Calling
from worker.calls.counter import CounterCaller
from worker.calls.template import TemplateCaller
from worker.ears.ear import Ear
from worker.listener import PipelineListener
from worker.parts import Conversation, Finished, Listener, Pcm, Question, RequestError, Speaker, Spoken, Unit
from worker.placement import BackEnds
from worker.prefill import ANSWER_POSITIONS, MAX_POSITIONS, Prefill, SlotPool, add_audio, begin_answers, open_prompts
from worker.speaker import PipelineSpeaker
from worker.undo import Undo
from worker.voices.voice import Voice

MIN_RATE_HZ, MAX_RATE_HZ = 4.0, 12.5
MAX_STEPS = ANSWER_POSITIONS - 40
WARM_UP_SAMPLES = 41_000
"""A block of the official encoder and what opens the next."""


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
        calling, begins = None, tuple[str, ...]()
        if not question.transcribe:
            words = utterance.transcript if utterance is not None else last.text
            now = results[-1] if results else ContextItem("user", words, last.utterance)
            calling = self.caller.calling((*earlier, *results[:-1], now), asked.tools)
            if not self._repeats(words):
                begins = self.caller.beginnings((*earlier, now))
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
        options = self._options(question, speech=speech, calling=calling)
        first = tuple(self.networks.tokenizer.encode(word)[0] for word in begins)
        return PipelineSpeaker(self, prefill, prompt, heard, replace(options, first_among=first), calling)

    def _repeats(self, words: str) -> bool:
        """Whether it is asked to say a sentence after somebody."""
        return words.startswith(self.networks.slm.config.agogic.prompts.asks_repetition)

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
        past = self.caller.remembered(conversation.items)
        return chat_prompt(
            newest(text, prompts.request_tokens),
            audio=audio,
            speech=speech,
            history=[PastTurn(item.role, item.text, item.name) for item in past if item.role != "system"],
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
