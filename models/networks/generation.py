"""Talking step by step: prompts prefilled as they come, then one text token and one speech token per step (FlexiSLM 4).

    runner = Runner(model, special, slots=4, max_positions=2048)
    runner.reset(slot); runner.extend(slot, embeddings); ...       # while the user speaks
    generation = runner.start(slot, GenerationOptions(output_hz=8.0))
    while not generation.ended: (step,) = runner.step([generation])

A speech token's duration is known one step after its code, so `Step.spoken` comes one step late. Several answers may
take a step together; each gives what it would give alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.sampling import draw, filtered_probabilities
from models.networks.prompt_slots import PromptSlots
from models.networks.talker import AUDIO_END, AUDIO_START, CODE_OFFSET

End = Literal["", "end", "max_steps"]


@dataclass(frozen=True)
class GenerationOptions:
    """How to answer.

    output_hz: requested rate of the speech tokens; speech False: text alone; uniforms: numbers in [0, 1), one a step,
    to draw speech tokens with, None for the most probable ones; forced_text: text ids to say; forced_speech: codes
    spoken right after the delay, as prompt of a voice, which are not output (section 4.6).
    """

    output_hz: float
    speech: bool = True
    max_steps: int = 600
    uniforms: NDArray[np.float64] | None = None
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
class Generation:
    """An answer in the making. thinker_hidden [H] and talker_hidden [D] are what the next tokens are predicted from.

    talker_steps: how often the Talker ran for it; delayed: Talker inputs [D] of the delay, waiting to be fed at once.
    """

    slot: int
    options: GenerationOptions
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
    def start(self, slot: int, options: GenerationOptions) -> Generation:
        """Begin to answer the slot's prompt."""
        self.rewind(slot, self.positions(slot))
        prompt = self.prompts[slot]
        if options.speech:
            self.prefill_talkers([slot], {slot: options.output_hz})
        return Generation(
            slot=slot,
            options=options,
            prompt_positions=self.positions(slot),
            delay_tokens=self.model.config.speech_delay_tokens,
            frame_rate=self.model.frame_rate(options.output_hz),
            thinker_hidden=prompt.thinker[-1],
            talker_hidden=prompt.talker[-1] if options.speech else None,
        )

    @torch.inference_mode()
    def step(self, generations: Sequence[Generation]) -> list[Step]:
        """One step of each answer, none of which may have ended."""
        choices = [_Choice() for _ in generations]
        started = time.perf_counter()
        self._choose_text(generations, choices)
        text_chosen = time.perf_counter()
        self._choose_speech(generations, choices)
        speech_chosen = time.perf_counter()
        spoken = [self._book(generation, choice) for generation, choice in zip(generations, choices, strict=True)]
        alignments = [generation.alignment for generation in generations]
        texts = [
            None if generation.text_frozen else choice.text
            for generation, choice in zip(generations, choices, strict=True)
        ]
        going = [index for index, generation in enumerate(generations) if generation.ended != "end"]
        feeding = time.perf_counter()
        thinker_ms = talker_ms = 0.0
        if going:
            fed = self._feed([generations[index] for index in going], [choices[index] for index in going])
            talker_ms = (time.perf_counter() - fed) * 1e3
            thinker_ms = (fed - feeding) * 1e3
        thinker_ms += (text_chosen - started) * 1e3
        talker_ms += (speech_chosen - text_chosen) * 1e3
        steps = []
        for generation, choice, text, token, alignment in zip(
            generations, choices, texts, spoken, alignments, strict=True
        ):
            generation.steps += 1
            if not generation.ended and generation.steps >= generation.options.max_steps:
                generation.ended = "max_steps"
            speech = generation.options.speech
            steps.append(
                Step(
                    text_token=text,
                    speech_token=choice.speech if speech else None,
                    length=choice.length if speech else None,
                    spoken=token,
                    ended=generation.ended,
                    alignment=alignment,
                    thinker_ms=thinker_ms,
                    talker_ms=talker_ms,
                )
            )
        return steps

    def _choose_text(self, generations: Sequence[Generation], choices: Sequence[_Choice]) -> None:
        writing = [index for index, generation in enumerate(generations) if not generation.text_frozen]
        if not writing:
            return
        hidden = torch.stack([generations[index].thinker_hidden for index in writing])
        tokens = self.model.thinker.text_logits(hidden).argmax(-1).tolist()
        for index, token in zip(writing, tokens, strict=True):
            forced = generations[index].options.forced_text
            choices[index].text = forced[generations[index].steps] if generations[index].steps < len(forced) else token

    def _choose_speech(self, generations: Sequence[Generation], choices: Sequence[_Choice]) -> None:
        rows = []
        for generation, choice in zip(generations, choices, strict=True):
            if generation.options.speech and self._in_given_delay(generation):
                choice.speech, choice.length = AUDIO_START, 0
                generation.starts_sampled += 1
            elif generation.options.speech:
                rows.append((generation, choice))
        if not rows:
            return
        hidden = torch.stack(
            [generation.talker_hidden for generation, _ in rows if generation.talker_hidden is not None]
        )
        logits = self.model.talker_model.speech_logits(hidden)
        lengths = self.model.talker_model.length_logits(hidden).argmax(-1).tolist()
        best = logits.argmax(-1).tolist()
        for row, (generation, choice) in enumerate(rows):
            choice.length = lengths[row]
            options = generation.options
            token = best[row]
            if options.uniforms is not None:
                probabilities = filtered_probabilities(
                    logits[row], temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
                )
                uniform = torch.tensor(options.uniforms[generation.steps], device=probabilities.device)
                token = int(draw(probabilities, uniform))
            choice.forced = generation.forcing_speech
            if choice.forced:
                token = options.forced_speech[generation.forced_spoken] + CODE_OFFSET
                generation.forced_spoken += 1
            elif token == AUDIO_START:
                generation.starts_sampled += 1
            elif token == AUDIO_END:
                generation.starts_sampled = 0
            choice.speech = token

    def _in_given_delay(self, generation: Generation) -> bool:
        return self.model.config.agogic.delay_is_given and generation.steps < generation.delay_tokens

    def _book(self, generation: Generation, choice: _Choice) -> SpokenToken | None:
        """Pair the token before with the length that has just arrived; see what ends."""
        if not generation.options.speech:
            if choice.text == self.special.im_end:
                generation.ended = "end"
            return None
        spoken = None
        if not choice.forced:  # forced tokens pass by the pairing altogether
            if generation.pending_code is not None:
                spoken = SpokenToken(generation.pending_code, choice.length)
            generation.pending_code = choice.speech - CODE_OFFSET if choice.speech >= CODE_OFFSET else None
        if choice.speech == AUDIO_END:
            generation.ended = "end"
        return spoken

    def _feed(self, generations: Sequence[Generation], choices: Sequence[_Choice]) -> float:
        """Feed the chosen tokens back; returns the time at which the Thinker was done."""
        model, talker = self.model, self.model.talker_model
        device = model.device
        frozen = torch.tensor([generation.text_frozen for generation in generations], device=device)
        text_ids = torch.tensor([max(choice.text, 0) for choice in choices], device=device)
        text = model.thinker.embed(text_ids).masked_fill(frozen[:, None], 0.0)
        rate = torch.stack([generation.frame_rate for generation in generations])
        audio = talker.audio_emb(torch.tensor([max(choice.speech, 0) for choice in choices], device=device))
        length = talker.length_emb(torch.tensor([max(choice.length, 0) for choice in choices], device=device))
        inputs = text
        if model.config.thinker_hears_speech:
            both = torch.tensor([generation.options.speech for generation in generations], device=device)[:, None]
            inputs = torch.where(both, model.thinker.combine(text, audio, length, rate), text)
        writing = [row for row, generation in enumerate(generations) if not generation.text_frozen]
        if writing:
            slots = [generations[row].slot for row in writing]
            hidden = model.thinker.step(inputs[writing, None], self.thinker_cache, slots)[:, 0]
            for row, state in zip(writing, hidden, strict=True):
                generations[row].thinker_hidden = state
        thinker_done = time.perf_counter()
        speaking = [row for row, generation in enumerate(generations) if generation.options.speech]
        if speaking:
            base = torch.stack([generations[row].thinker_hidden for row in speaking])[:, None]
            z = talker.condition(
                base,
                rate[speaking],
                audio[speaking, None],
                length[speaking, None],
                inputs[speaking, None],
                text_ended=frozen[speaking, None],
            )
            self._feed_talker([generations[row] for row in speaking], z)
        for generation, choice in zip(generations, choices, strict=True):
            self._note_text(generation, choice.text)
        return thinker_done

    def _feed_talker(self, generations: Sequence[Generation], z: Tensor) -> None:
        """One position of each answer, z [answers, 1, D]; those of a given delay are held back and fed as one piece."""
        stepping = []
        for row, generation in enumerate(generations):
            if not self._in_given_delay(generation):
                stepping.append(row)
                continue
            generation.delayed.append(z[row, 0])
            if len(generation.delayed) == generation.delay_tokens:
                self._step_talker([generation], torch.stack(generation.delayed)[None])
                generation.delayed.clear()
        if stepping:
            self._step_talker([generations[row] for row in stepping], z[stepping])

    def _step_talker(self, generations: Sequence[Generation], z: Tensor) -> None:
        slots = [generation.slot for generation in generations]
        hidden, attention = self.model.talker_model.step(z, self.talker_cache, slots, self.model.config.alignment_head)
        for index, generation in enumerate(generations):
            generation.talker_steps += 1
            generation.talker_hidden = hidden[index, -1]
            if attention is not None:
                generation.alignment = self._alignment(generation, attention[index, -1])

    def _alignment(self, generation: Generation, weights: Tensor) -> Tensor:
        return weights[generation.prompt_positions : self.talker_cache.lengths[generation.slot]]

    def _note_text(self, generation: Generation, text: int) -> None:
        """Without padding, the text stream ends for good behind <|im_end|> and a line break."""
        closed = generation.previous_text == self.special.im_end and text == self.special.newline
        generation.previous_text = text
        if closed and self.model.config.no_pad and generation.options.speech:
            generation.text_frozen = True
