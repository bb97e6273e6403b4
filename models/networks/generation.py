"""Talking step by step: prompts prefilled as they come, then one text token and one speech token per step (FlexiSLM 4).

    runner = Runner(model, special, slots=4, max_positions=2048)
    runner.reset(slot); runner.extend(slot, embeddings); ...       # while the user speaks
    generation = runner.start(slot, GenerationOptions(output_hz=8.0))
    while not generation.ended: (step,) = runner.step([generation])

A speech token's duration is known one step after its code, so `Step.spoken` comes one step late. Several answers may
take a step together; each gives what it would give alone.

The networks' part of a step is `joint_step` beside this file. The tokens of a step are chosen at the end of the one
before; all that the host reads of it is one small table. `late`: it is read while the step that follows is already on
its way, which pays where the networks run on a device of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.paged_attention import PagedAttention, attention_named
from kernels.paged_cache import PagedCache
from kernels.step_runner import Work, buckets_for, in_buckets, make_steps, steps_name
from models.networks.flexislm import FlexiSLM
from models.networks.joint_step import DRAWS, FOCUS, HUSHED, LENGTH, PROMPT, SPEAKS, SPEECH, TEXT, JointStep
from models.networks.prompt_slots import PromptSlots
from models.networks.repetition import SEEN_TOKENS, in_circles
from models.networks.talker import AUDIO_END, AUDIO_START, CODE_OFFSET
from models.networks.tokenizer import SpecialIds

End = Literal["", "end", "max_steps"]


@dataclass(frozen=True)
class GenerationOptions:
    """How to answer.

    output_hz: requested rate of the speech tokens; speech False: text alone; uniforms: numbers in [0, 1), one a step,
    to draw speech tokens with, None for the most probable ones; forced_text: text ids to say; forced_speech: codes
    spoken right after the delay, as prompt of a voice, which are not output (section 4.6); ends_circles: text that
    repeats itself without end is ended (`repetition`), which the original does not do; mark: the text token at which a
    spoken answer turns to what is not to be said, -1 for none: its text ends there; first_among: text tokens of which
    it begins with one, () for any.
    """

    output_hz: float
    speech: bool = True
    max_steps: int = 600
    uniforms: NDArray[np.float64] | None = None
    forced_text: tuple[int, ...] = ()
    forced_speech: tuple[int, ...] = ()
    ends_circles: bool = False
    mark: int = -1
    first_among: tuple[int, ...] = ()


@dataclass(frozen=True)
class SpokenToken:
    """A codec token and how many 12.5 Hz frames it lasts."""

    code: int
    duration_frames: int


@dataclass(frozen=True)
class Step:
    """What one step gave.

    text_token: None once the text has ended; speech_token (Talker id) and length: None for text alone; spoken: the
    token *before* with its duration; focus: which text token the alignment head looked at most when the speech token
    was chosen, None where nothing was fed yet or there is no such head; the times are wall-clock, shared by the answers
    of one call.
    """

    text_token: int | None
    speech_token: int | None
    length: int | None
    spoken: SpokenToken | None
    ended: End
    focus: int | None
    thinker_ms: float
    talker_ms: float


@dataclass
class Generation:
    """An answer in the making.

    talker_steps: how often the Talker ran for it; delayed: Talker inputs [D] of the delay, waiting to be fed at once;
    written: the end of its text; marked: it came to the mark; cut: it did, or turned in circles, and was ended.
    """

    slot: int
    options: GenerationOptions
    prompt_positions: int
    delay_tokens: int
    frame_rate: Tensor
    joint: JointStep
    ended: End = ""
    steps: int = 0
    text_frozen: bool = False
    previous_text: int = -1
    pending_code: int | None = None
    starts_sampled: int = 0
    forced_spoken: int = 0
    talker_steps: int = 0
    delayed: list[Tensor] = field(default_factory=list)
    written: tuple[int, ...] = ()
    marked: bool = False
    cut: bool = False

    @property
    def forcing_speech(self) -> bool:
        """Whether the next speech token is a forced one."""
        left = self.forced_spoken < len(self.options.forced_speech)
        return left and self.starts_sampled >= self.delay_tokens

    @property
    def thinker_hidden(self) -> Tensor:
        """[H]: what the next text token is chosen from."""
        return self.joint.state.thinker[self.slot].clone()

    @property
    def talker_hidden(self) -> Tensor | None:
        """[D]: what the next speech token is chosen from; None for text alone."""
        return self.joint.state.talker[self.slot].clone() if self.options.speech else None


@dataclass
class _Choice:
    """The tokens of one answer's step; -1 where there is none."""

    text: int = -1
    speech: int = -1
    length: int = -1
    focus: int | None = None
    forced: bool = False


@dataclass(frozen=True)
class _Report:
    """A copy of the slots' numbers on its way to the host; `arrived` waits for it."""

    numbers: Tensor
    arrived: Callable[[], object]


class Runner(PromptSlots):
    """Runs one model for several conversations at once, each in a slot of its own.

    attention, steps: back ends by name; None for what suits the device. rows: answers that will take a step together.
    """

    def __init__(
        self,
        model: FlexiSLM,
        special: SpecialIds,
        slots: int,
        max_positions: int,
        *,
        attention: PagedAttention | None = None,
        steps: str | None = None,
        rows: int | None = None,
        late: bool | None = None,
        shares: bool | None = None,
    ) -> None:
        device, config = model.device, model.config
        if attention is None:
            head_dims = (config.thinker.head_dim, config.talker.head_dim)
            attention = attention_named(device, model.dtype, head_dims)
        super().__init__(model, special, slots, max_positions, attention, shares)
        self.joint = JointStep(model, special, attention, self.thinker_cache, self.talker_cache)
        self.steps = make_steps(steps_name(device, steps), buckets_for(rows or slots), slots, device)
        self.late = device.type == "cuda" if late is None else late
        self._report: _Report | None = None
        self._numbers: dict[int, list[int]] = {}

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Makes every step ready that callers can ask for."""
        # How often the Talker draws by lot is the model's, not the caller's; both are small beside the networks.
        for name, work in (("think", self.joint.think), ("talk", self.joint.talk), ("lot", self.joint.talk_by_lot)):
            self.steps.warm(name, work, self._widths())

    @torch.inference_mode()
    def start(self, slot: int, options: GenerationOptions) -> Generation:
        """Begin to answer the slot's prompt."""
        self.rewind(slot, self.positions(slot))
        prompt, state, config = self.prompts[slot], self.joint.state, self.model.config
        if options.speech:
            self.prefill_talkers([slot], {slot: options.output_hz})
        generation = Generation(
            slot=slot,
            options=options,
            prompt_positions=self.positions(slot),
            delay_tokens=config.speech_delay_tokens,
            frame_rate=self.model.frame_rate(options.output_hz),
            joint=self.joint,
        )
        self._reserve(generation)
        numbers = [0] * state.numbers.shape[1]
        numbers[SPEECH], numbers[SPEAKS], numbers[PROMPT] = AUDIO_START, options.speech, generation.prompt_positions
        numbers[DRAWS], numbers[FOCUS] = options.uniforms is not None, -1
        state.numbers[slot] = torch.tensor(numbers)
        state.rate[slot] = generation.frame_rate
        if options.uniforms is not None:
            known = torch.from_numpy(options.uniforms)[: state.uniforms.shape[1]]
            state.uniforms[slot, : len(known)] = known.to(state.uniforms.device)
        rows = torch.tensor([slot], device=self.model.device)
        self.joint.choose_text(rows, prompt.thinker[-1:], options.first_among)
        if options.speech and not config.agogic.delay_is_given:
            self._choose_speech(rows, prompt.talker[-1:], 0, drawing=options.uniforms is not None)
        self._send_report()
        return generation

    @torch.inference_mode()
    def way_back(self, generations: Sequence[Generation]) -> Callable[[], None]:
        """Undoes the next step of these answers as far as the networks' state goes, where it fails halfway."""
        state, report = self.joint.state, self._report
        rows = torch.tensor([generation.slot for generation in generations], device=self.model.device)
        kept = [(whole, whole.index_select(0, rows)) for whole in (state.numbers, state.thinker, state.talker)]
        caches = (self.thinker_cache, self.talker_cache)
        held = [[cache.held[generation.slot] for cache in caches] for generation in generations]

        @torch.inference_mode()
        def back() -> None:
            for whole, before in kept:
                whole.index_copy_(0, rows, before)
            for generation, lengths in zip(generations, held, strict=True):
                for cache, length in zip(caches, lengths, strict=True):
                    cache.truncate(generation.slot, length)
                self._reserve(generation)
            self._report = report

        return back

    def _reserve(self, generation: Generation) -> None:
        """Pages for all of its answer, so that steps need not ask for any."""
        # A step that is read late may have been followed by one too many.
        last = generation.prompt_positions + generation.options.max_steps + 1
        caches = (self.thinker_cache, self.talker_cache) if generation.options.speech else (self.thinker_cache,)
        for cache in caches:
            cache.reserve(generation.slot, min(last, cache.max_positions))

    @torch.inference_mode()
    def step(self, generations: Sequence[Generation]) -> list[Step]:
        """One text token and one speech token of each answer (none of them ended), each by itself as far as it goes."""
        assert all(not generation.ended for generation in generations)
        started = time.perf_counter()
        before, times = self._report, (0.0, 0.0)
        assert before is not None
        # What is forced on the networks must be known before they go on.
        forced = any(
            one.options.forced_text or one.options.forced_speech or one.cut or one.options.mark >= 0
            for one in generations
        )
        late = self.late and not forced
        if late:
            times = self._feed(generations)
        before.arrived()
        self._numbers = {one.slot: before.numbers[one.slot].tolist() for one in generations}
        choices = [self._choice(generation) for generation in generations]
        spoken = [self._book(generation, choice) for generation, choice in zip(generations, choices, strict=True)]
        if not late:
            going = [generation for generation in generations if generation.ended != "end"]
            for generation, choice in zip(generations, choices, strict=True):
                self._force(generation, choice)
            times = self._feed(going) if going else times
        thinker_ms = (time.perf_counter() - started) * 1e3 - times[1]
        return [
            self._finish(generation, choice, token, thinker_ms, times[1])
            for generation, choice, token in zip(generations, choices, spoken, strict=True)
        ]

    def _choice(self, generation: Generation) -> _Choice:
        """The step's tokens, as the networks chose them or as they are forced or given."""
        numbers, options, choice = self._numbers[generation.slot], generation.options, _Choice()
        if not generation.text_frozen:
            forced = options.forced_text
            if generation.steps < len(forced):
                choice.text = forced[generation.steps]
            else:
                choice.text = self._unless_over(generation, numbers[TEXT])
        if not options.speech:
            return choice
        choice.focus = numbers[FOCUS] if numbers[FOCUS] >= 0 else None
        choice.speech, choice.length = numbers[SPEECH], numbers[LENGTH]
        choice.forced = not self._in_given_delay(generation) and generation.forcing_speech
        if choice.forced:
            choice.speech = options.forced_speech[generation.forced_spoken] + CODE_OFFSET
            generation.forced_spoken += 1
        elif choice.speech == AUDIO_START:
            generation.starts_sampled += 1
        elif choice.speech == AUDIO_END:
            generation.starts_sampled = 0
        return choice

    def _unless_over(self, generation: Generation, token: int) -> int:
        """`token`, or the end of the text (<|im_end|> and a line break) where it is the mark or would only go round
        once more."""
        if generation.cut:
            return self.special.newline
        if token == generation.options.mark:
            generation.marked = generation.cut = True
            return self.special.im_end
        if not generation.options.ends_circles:
            return token
        if token in (self.special.im_end, self.special.end_of_text, self.special.newline):
            return token  # padding, where there is some, repeats itself by rule
        generation.written = (*generation.written, token)[-SEEN_TOKENS:]
        generation.cut = in_circles(generation.written)
        return self.special.im_end if generation.cut else token

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

    def _force(self, generation: Generation, choice: _Choice) -> None:
        """Tells the networks which tokens are forced on them."""
        numbers = self.joint.state.numbers
        if (generation.steps < len(generation.options.forced_text) or generation.cut) and not generation.text_frozen:
            numbers[generation.slot, TEXT] = choice.text
        if choice.forced:
            numbers[generation.slot, SPEECH] = choice.speech

    def _feed(self, generations: Sequence[Generation]) -> tuple[float, float]:
        """Feeds the chosen tokens, whatever they are, and has the next ones chosen; ms of Thinker and Talker."""
        started = time.perf_counter()
        writing = [generation.slot for generation in generations if not generation.text_frozen]
        self._run("think", self.joint.think, self.thinker_cache, writing)
        thought = time.perf_counter()
        speaking = [generation for generation in generations if generation.options.speech]
        stepping = [generation for generation in speaking if not self._in_given_delay(generation)]
        drawing = any(generation.options.uniforms is not None for generation in stepping)
        name, work = ("lot", self.joint.talk_by_lot) if drawing else ("talk", self.joint.talk)
        self._run(name, work, self.talker_cache, [generation.slot for generation in stepping])
        for generation in stepping:
            generation.talker_steps += 1
        for generation in speaking:
            if self._in_given_delay(generation):
                self._delay(generation)
        self._send_report()
        return (thought - started) * 1e3, (time.perf_counter() - thought) * 1e3

    def _run(self, name: str, work: Work, cache: PagedCache, slots: Sequence[int]) -> None:
        for part in in_buckets(slots, self.steps.buckets):
            needed, in_place = cache.width(part), None
            if not self.steps.sees_host:
                needed = next(width for width in self._widths() if width >= needed)
            elif len(part) == 1 and self.attention.masked:
                in_place = cache.in_place(part[0])
            self.steps.run(name, work, part, needed, in_place)
            for slot in part:
                cache.stepped(slot)

    def _widths(self) -> list[int]:
        """Pages that steps are made for which cannot see how long their rows are."""
        every = self.thinker_cache.pages_each
        # Back ends that follow the lengths on the device do not mind how many pages they are shown.
        return sorted({-(-every // 4), -(-every // 2), every}) if self.attention.masked else [every]

    def _delay(self, generation: Generation) -> None:
        """A given token of the delay: the Talker reads all of them as one piece, when the last is there."""
        rows = torch.tensor([generation.slot], device=self.model.device)
        generation.delayed.append(self.joint.talker_inputs(rows)[0])
        if len(generation.delayed) < generation.delay_tokens:
            return
        piece = torch.stack(generation.delayed)
        generation.delayed.clear()
        watch, cache = self.model.config.alignment_head, self.talker_cache
        hidden, looks = self.model.talker_model.prefill(
            piece, cache, [generation.slot], [len(piece)], self.attention, watch
        )
        if looks is not None:
            self.joint.look(rows, self.joint.state.numbers.index_select(0, rows), looks)
        generation.talker_steps += 1
        drawing = generation.options.uniforms is not None
        self._choose_speech(rows, hidden[-1:], generation.steps + 1, drawing=drawing)

    def _choose_speech(self, rows: Tensor, hidden: Tensor, number: int, *, drawing: bool) -> None:
        own = self.joint.state.numbers.index_select(0, rows)
        self.joint.choose_speech(rows, own, hidden, torch.full_like(rows, number), drawing=drawing)

    def _finish(
        self,
        generation: Generation,
        choice: _Choice,
        spoken: SpokenToken | None,
        thinker_ms: float,
        talker_ms: float,
    ) -> Step:
        """What the step gave, and what of it the next one must know."""
        generation.steps += 1
        if not generation.ended and generation.steps >= generation.options.max_steps:
            generation.ended = "max_steps"
        was_frozen = generation.text_frozen
        # Without padding, the text stream ends for good behind <|im_end|> and a line break.
        closed = generation.previous_text == self.special.im_end and choice.text == self.special.newline
        generation.previous_text = choice.text
        if closed and self.model.config.no_pad and generation.options.speech and not was_frozen:
            generation.text_frozen = True
            # The Thinker is not run any more, which would have told the Talker.
            self.joint.state.numbers[generation.slot, HUSHED] = 1
        speech = generation.options.speech
        return Step(
            text_token=None if was_frozen else choice.text,
            speech_token=choice.speech if speech else None,
            length=choice.length if speech else None,
            spoken=spoken,
            ended=generation.ended,
            focus=choice.focus,
            thinker_ms=thinker_ms,
            talker_ms=talker_ms,
        )

    def _send_report(self) -> None:
        """Has the numbers copied to the host as they are once all that was asked for is done."""
        numbers = self.joint.state.numbers
        if numbers.device.type != "cuda":
            self._report = _Report(numbers.clone(), lambda: None)
            return
        copy = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        copy.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._report = _Report(copy, event.synchronize)
