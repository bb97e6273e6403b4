"""Talking step by step: prompts prefilled as they come, then one text token and one speech token per step (FlexiSLM 4).

    runner = Runner(model, special, slots=4, max_positions=2048)
    runner.reset(slot); runner.extend(slot, embeddings); ...       # while the user speaks
    answer = runner.start(slot, AnswerOptions(output_hz=8.0))
    while not answer.ended: (step,) = runner.step([answer])

A speech token's duration is known one step after its code, so `Step.spoken` comes one step late. Several answers may
take a step together; each gives what it would give alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kernels.sampling import draw, filtered_probabilities
from models.networks.prompt_slots import PromptSlots
from models.networks.talker import AUDIO_END, AUDIO_START, CODE_OFFSET

End = Literal["", "end", "max_steps"]


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer.

    output_hz: requested rate of the speech tokens; speech False: text alone; uniform: source of numbers in [0, 1) for
    sampling speech tokens, None for the most probable one; forced_text: text ids to say; forced_speech: codes spoken
    right after the delay, as prompt of a voice, which are not output (section 4.6).
    """

    output_hz: float
    speech: bool = True
    max_steps: int = 600
    uniform: Callable[[], float] | None = None
    temperature: float = 1.0
    top_k: int = 20
    top_p: float = 0.9
    forced_text: tuple[int, ...] = ()
    forced_speech: tuple[int, ...] = ()


@dataclass(frozen=True)
class SpokenToken:
    """A codec token and how many 12.5 Hz frames it lasts."""

    code: int
    duration_frames: int


@dataclass(frozen=True)
class Step:
    """What one step gave.

    text_token: None once the text has ended; speech_token (Talker id) and length: None for text alone; spoken: the
    token *before* with its duration; alignment: the alignment head's weights over the assistant's positions so far,
    where position j carries text token j; the times are wall-clock, shared by the answers of one call.
    """

    text_token: int | None
    speech_token: int | None
    length: int | None
    spoken: SpokenToken | None
    ended: End
    alignment: Tensor | None
    thinker_ms: float
    talker_ms: float


@dataclass
class Answer:
    """An answer in the making. thinker_hidden [H] and talker_hidden [D] are what the next tokens are predicted from.

    talker_steps: how often the Talker ran for it; delayed: Talker inputs [D] of the delay, waiting to be fed at once.
    """

    slot: int
    options: AnswerOptions
    prompt_positions: int
    delay_tokens: int
    frame_rate: Tensor
    thinker_hidden: Tensor
    talker_hidden: Tensor | None
    ended: End = ""
    steps: int = 0
    text_frozen: bool = False
    previous_text: int = -1
    pending_code: int | None = None
    starts_sampled: int = 0
    forced_spoken: int = 0
    talker_steps: int = 0
    alignment: Tensor | None = None
    delayed: list[Tensor] = field(default_factory=list)

    @property
    def forcing_speech(self) -> bool:
        """Whether the next speech token is a forced one."""
        left = self.forced_spoken < len(self.options.forced_speech)
        return left and self.starts_sampled >= self.delay_tokens


@dataclass
class _Choice:
    """The tokens of one answer's step; -1 where there is none."""

    text: int = -1
    speech: int = -1
    length: int = -1
    forced: bool = False


class Runner(PromptSlots):
    """Runs one model for several conversations at once, each in a slot of its own."""

    @torch.inference_mode()
    def start(self, slot: int, options: AnswerOptions) -> Answer:
        """Begin to answer the slot's prompt."""
        self.rewind(slot, self.positions(slot))
        prompt = self.prompts[slot]
        if options.speech:
            self.prefill_talkers([slot], {slot: options.output_hz})
        return Answer(
            slot=slot,
            options=options,
            prompt_positions=self.positions(slot),
            delay_tokens=self.model.config.speech_delay_tokens,
            frame_rate=self.model.frame_rate(options.output_hz),
            thinker_hidden=prompt.thinker[-1],
            talker_hidden=prompt.talker[-1] if options.speech else None,
        )

    @torch.inference_mode()
    def step(self, answers: Sequence[Answer]) -> list[Step]:
        """One step of each answer, none of which may have ended."""
        choices = [_Choice() for _ in answers]
        started = time.perf_counter()
        self._choose_text(answers, choices)
        text_chosen = time.perf_counter()
        self._choose_speech(answers, choices)
        speech_chosen = time.perf_counter()
        spoken = [self._book(answer, choice) for answer, choice in zip(answers, choices, strict=True)]
        alignments = [answer.alignment for answer in answers]
        texts = [None if answer.text_frozen else choice.text for answer, choice in zip(answers, choices, strict=True)]
        going = [index for index, answer in enumerate(answers) if answer.ended != "end"]
        feeding = time.perf_counter()
        thinker_ms = talker_ms = 0.0
        if going:
            fed = self._feed([answers[index] for index in going], [choices[index] for index in going])
            talker_ms = (time.perf_counter() - fed) * 1e3
            thinker_ms = (fed - feeding) * 1e3
        thinker_ms += (text_chosen - started) * 1e3
        talker_ms += (speech_chosen - text_chosen) * 1e3
        steps = []
        for answer, choice, text, token, alignment in zip(answers, choices, texts, spoken, alignments, strict=True):
            answer.steps += 1
            if not answer.ended and answer.steps >= answer.options.max_steps:
                answer.ended = "max_steps"
            speech = answer.options.speech
            steps.append(
                Step(
                    text_token=text,
                    speech_token=choice.speech if speech else None,
                    length=choice.length if speech else None,
                    spoken=token,
                    ended=answer.ended,
                    alignment=alignment,
                    thinker_ms=thinker_ms,
                    talker_ms=talker_ms,
                )
            )
        return steps

    def _choose_text(self, answers: Sequence[Answer], choices: Sequence[_Choice]) -> None:
        writing = [index for index, answer in enumerate(answers) if not answer.text_frozen]
        if not writing:
            return
        hidden = torch.stack([answers[index].thinker_hidden for index in writing])
        tokens = self.model.thinker.text_logits(hidden).argmax(-1).tolist()
        for index, token in zip(writing, tokens, strict=True):
            forced = answers[index].options.forced_text
            choices[index].text = forced[answers[index].steps] if answers[index].steps < len(forced) else token

    def _choose_speech(self, answers: Sequence[Answer], choices: Sequence[_Choice]) -> None:
        rows = []
        for answer, choice in zip(answers, choices, strict=True):
            if answer.options.speech and self._in_given_delay(answer):
                choice.speech, choice.length = AUDIO_START, 0
                answer.starts_sampled += 1
            elif answer.options.speech:
                rows.append((answer, choice))
        if not rows:
            return
        hidden = torch.stack([answer.talker_hidden for answer, _ in rows if answer.talker_hidden is not None])
        logits = self.model.talker_model.speech_logits(hidden)
        lengths = self.model.talker_model.length_logits(hidden).argmax(-1).tolist()
        best = logits.argmax(-1).tolist()
        for row, (answer, choice) in enumerate(rows):
            choice.length = lengths[row]
            options = answer.options
            token = best[row]
            if options.uniform is not None:
                probabilities = filtered_probabilities(
                    logits[row], temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
                )
                token = int(draw(probabilities, torch.tensor(options.uniform(), device=probabilities.device)))
            choice.forced = answer.forcing_speech
            if choice.forced:
                token = options.forced_speech[answer.forced_spoken] + CODE_OFFSET
                answer.forced_spoken += 1
            elif token == AUDIO_START:
                answer.starts_sampled += 1
            elif token == AUDIO_END:
                answer.starts_sampled = 0
            choice.speech = token

    def _in_given_delay(self, answer: Answer) -> bool:
        return self.model.config.agogic.delay_is_given and answer.steps < answer.delay_tokens

    def _book(self, answer: Answer, choice: _Choice) -> SpokenToken | None:
        """Pair the token before with the length that has just arrived; see what ends."""
        if not answer.options.speech:
            if choice.text == self.special.im_end:
                answer.ended = "end"
            return None
        spoken = None
        if not choice.forced:  # forced tokens pass by the pairing altogether
            if answer.pending_code is not None:
                spoken = SpokenToken(answer.pending_code, choice.length)
            answer.pending_code = choice.speech - CODE_OFFSET if choice.speech >= CODE_OFFSET else None
        if choice.speech == AUDIO_END:
            answer.ended = "end"
        return spoken

    def _feed(self, answers: Sequence[Answer], choices: Sequence[_Choice]) -> float:
        """Feed the chosen tokens back; returns the time at which the Thinker was done."""
        model, talker = self.model, self.model.talker_model
        device = model.device
        frozen = torch.tensor([answer.text_frozen for answer in answers], device=device)
        text_ids = torch.tensor([max(choice.text, 0) for choice in choices], device=device)
        text = model.thinker.embed(text_ids).masked_fill(frozen[:, None], 0.0)
        rate = torch.stack([answer.frame_rate for answer in answers])
        audio = talker.audio_emb(torch.tensor([max(choice.speech, 0) for choice in choices], device=device))
        length = talker.length_emb(torch.tensor([max(choice.length, 0) for choice in choices], device=device))
        inputs = text
        if model.config.thinker_hears_speech:
            both = torch.tensor([answer.options.speech for answer in answers], device=device)[:, None]
            inputs = torch.where(both, model.thinker.combine(text, audio, length, rate), text)
        writing = [row for row, answer in enumerate(answers) if not answer.text_frozen]
        if writing:
            slots = [answers[row].slot for row in writing]
            hidden = model.thinker.step(inputs[writing, None], self.thinker_cache, slots)[:, 0]
            for row, state in zip(writing, hidden, strict=True):
                answers[row].thinker_hidden = state
        thinker_done = time.perf_counter()
        speaking = [row for row, answer in enumerate(answers) if answer.options.speech]
        if speaking:
            base = torch.stack([answers[row].thinker_hidden for row in speaking])[:, None]
            z = talker.condition(
                base,
                rate[speaking],
                audio[speaking, None],
                length[speaking, None],
                inputs[speaking, None],
                text_ended=frozen[speaking, None],
            )
            self._feed_talker([answers[row] for row in speaking], z)
        for answer, choice in zip(answers, choices, strict=True):
            self._note_text(answer, choice.text)
        return thinker_done

    def _feed_talker(self, answers: Sequence[Answer], z: Tensor) -> None:
        """One position of each answer, z [answers, 1, D]; those of a given delay are held back and fed as one piece."""
        stepping = []
        for row, answer in enumerate(answers):
            if not self._in_given_delay(answer):
                stepping.append(row)
                continue
            answer.delayed.append(z[row, 0])
            if len(answer.delayed) == answer.delay_tokens:
                self._step_talker([answer], torch.stack(answer.delayed)[None])
                answer.delayed.clear()
        if stepping:
            self._step_talker([answers[row] for row in stepping], z[stepping])

    def _step_talker(self, answers: Sequence[Answer], z: Tensor) -> None:
        slots = [answer.slot for answer in answers]
        hidden, attention = self.model.talker_model.step(z, self.talker_cache, slots, self.model.config.alignment_head)
        for index, answer in enumerate(answers):
            answer.talker_steps += 1
            answer.talker_hidden = hidden[index, -1]
            if attention is not None:
                answer.alignment = self._alignment(answer, attention[index, -1])

    def _alignment(self, answer: Answer, weights: Tensor) -> Tensor:
        return weights[answer.prompt_positions : self.talker_cache.lengths[answer.slot]]

    def _note_text(self, answer: Answer, text: int) -> None:
        """Without padding, the text stream ends for good behind <|im_end|> and a line break."""
        closed = answer.previous_text == self.special.im_end and text == self.special.newline
        answer.previous_text = text
        if closed and self.model.config.no_pad and answer.options.speech:
            answer.text_frozen = True
