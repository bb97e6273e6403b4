"""A prompt in the caches of a Runner, filled while the user speaks, and the slots it is kept in.

A slot holds the prompt of the utterance heard last or the answer at hand. It may be taken away from a prompt that
nobody works on just now; its owner keeps the embeddings, so that it can be filled again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from models.networks.generation import Generation, GenerationOptions, Runner
from models.networks.prompts import Prompt
from models.networks.tokenizer import TextTokenizer
from worker.parts import RequestError

MAX_POSITIONS = 2048
ANSWER_POSITIONS = 640
"""Positions kept free for the end of the prompt and the longest answer."""
PROMPT_POSITIONS = MAX_POSITIONS - ANSWER_POSITIONS


class SlotPool:
    """Slots of a Runner on loan; who holds one that it does not need just now loses it when they run out."""

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots))
        self._holders: list[Prefill] = []

    def take(self, holder: Prefill) -> int:
        """A slot for `holder`. Raises RequestError where all are in use."""
        if not self._free:
            idle = next((other for other in self._holders if not other.busy), None)
            if idle is None:
                raise RequestError("busy", "every slot of the model is at work; end an utterance or an answer first")
            idle.lose_slot()
        self._holders.append(holder)
        return self._free.pop()

    def give_back(self, holder: Prefill, slot: int) -> None:
        self._holders.remove(holder)
        self._free.append(slot)


class Prefill:
    """A prompt on its way into the caches: text before the audio, audio as it comes, text behind it."""

    def __init__(self, runner: Runner, tokenizer: TextTokenizer, pool: SlotPool, output_hz: float) -> None:
        self.runner = runner
        self.output_hz = output_hz
        self.busy = True
        self.prefill_ms = 0.0
        self._answering = False
        self._closed = False
        self._tokenizer = tokenizer
        self._pool = pool
        self._slot: int | None = None
        self._before = ""
        self._ids: list[int] = []
        self._audio_groups = 0
        self._end = 0

    def lose_slot(self) -> None:
        """Gives the slot back; the prompt has to be prefilled anew."""
        if self._slot is not None:
            self.runner.reset(self._slot)
            self._pool.give_back(self, self._slot)
            self._slot = None

    def close(self) -> None:
        """Not needed any more once the answer at hand, if there is one, has ended."""
        self._closed, self.busy = True, self._answering
        if not self._answering:
            self.lose_slot()

    def complete(self) -> None:
        """All audio is there: from now on only an answer keeps it busy."""
        self.busy = self._answering

    def answered(self) -> None:
        """The answer has ended or was given up; the prompt stays for another one."""
        self._answering = self.busy = False
        if self._closed:
            self.lose_slot()

    def reserve(self) -> None:
        """Takes a slot. Raises RequestError where all are in use."""
        if self._slot is None:
            self._slot = self._pool.take(self)

    def start(self, prompt: Prompt) -> Tensor:
        """Starts the prompt anew; the embeddings [n, H] of what stands before the audio and no other prompt has
        prefilled, which `extend` must add."""
        self.reserve()
        assert self._slot is not None
        self.runner.reset(self._slot)
        self._before, self._audio_groups, self._end = prompt.before, 0, 0
        self._ids = self.runner.model.ids_before(prompt, self._tokenizer)
        embeddings = self.runner.model.embed_named(self._ids)
        if len(embeddings) > self._room():
            raise RequestError(
                "context_too_long",
                f"instructions and conversation do not fit into the model's {PROMPT_POSITIONS} positions; "
                "shorten the instructions",
            )
        self._end = self.runner.adopt(self._slot, self._ids, embeddings, self.output_hz)
        return embeddings[self._end :]

    def publish(self) -> None:
        """What stands before the audio is all there: other prompts may begin with it."""
        if self._slot is not None:
            self.runner.publish(self._slot, self._ids)

    def mark(self) -> tuple[int, int]:
        """Where the prompt stands, for `back_to`."""
        return self._end, self._audio_groups

    def back_to(self, mark: tuple[int, int]) -> None:
        """Forgets the audio added since; what stood before it need not be prefilled again."""
        if self._slot is not None:
            self._end, self._audio_groups = mark
            self.runner.rewind(self._slot, self._end)

    def ready_for(self, prompt: Prompt, groups: int, output_hz: float) -> bool:
        """Gets ready to answer a prompt with so many groups of audio; false where it has to be filled in anew."""
        self.busy = self._answering = True
        self.output_hz = output_hz
        if self._slot is None or (prompt.before, groups) != (self._before, self._audio_groups) or not self._room():
            return False
        self.runner.rewind(self._slot, self._end)
        return True

    def _room(self) -> int:
        return PROMPT_POSITIONS - self._end


def open_prompts(prefills: Sequence[Prefill], prompts: Sequence[Prompt]) -> None:
    """What stands before the audio, of several prompts at once. Raises RequestError for one that does not fit."""
    extend(prefills, [prefill.start(prompt) for prefill, prompt in zip(prefills, prompts, strict=True)])
    for prefill in prefills:
        prefill.publish()


def begin_answers(
    prefills: Sequence[Prefill],
    prompts: Sequence[Prompt],
    audio: Sequence[Tensor | None],
    options: Sequence[GenerationOptions],
) -> list[Generation]:
    """Finishes several prompts and begins to answer them; what is prefilled already is used where it fits.

    audio: all of a turn [G, H], None where it was written; of more than fits, the end is what is answered. Raises
    RequestError.
    """
    started = time.perf_counter()
    rows = list(zip(prefills, prompts, audio, options, strict=True))
    anew = [
        (prefill, prompt, heard)
        for prefill, prompt, heard, chosen in rows
        if not prefill.ready_for(prompt, 0 if heard is None else len(heard), chosen.output_hz)
    ]
    if anew:
        open_prompts([prefill for prefill, _, _ in anew], [prompt for _, prompt, _ in anew])
        spoken = [(prefill, heard) for prefill, _, heard in anew if heard is not None]
        add_audio([prefill for prefill, _ in spoken], [heard[-prefill._room() :] for prefill, heard in spoken])
        for prefill, heard in spoken:
            prefill._audio_groups = len(heard)
    runner = prefills[0].runner
    slots = [prefill._slot for prefill in prefills if prefill._slot is not None]
    after = [runner.model.embed_after(prompt, prefill._tokenizer) for prefill, prompt, _, _ in rows]
    runner.extend_together(slots, after, [chosen.output_hz if chosen.speech else None for chosen in options])
    answers = [runner.start(slot, chosen) for slot, chosen in zip(slots, options, strict=True)]
    share_ms = (time.perf_counter() - started) * 1e3 / len(rows)
    for prefill in prefills:
        prefill.prefill_ms += share_ms
    return answers


def extend(prefills: Sequence[Prefill], embeddings: Sequence[Tensor]) -> None:
    """Adds embeddings [n, H] to several prompts that have room for them."""
    started = time.perf_counter()
    rows = [(prefill, slot) for prefill in prefills if (slot := prefill._slot) is not None]
    if not rows:
        return
    runner = rows[0][0].runner
    runner.extend_together([slot for _, slot in rows], embeddings, [prefill.output_hz for prefill, _ in rows])
    share_ms = (time.perf_counter() - started) * 1e3 / len(rows)
    for prefill, slot in rows:
        prefill._end = runner.positions(slot)
        prefill.prefill_ms += share_ms


def add_audio(prefills: Sequence[Prefill], audio: Sequence[Tensor]) -> None:
    """Merged embeddings [G, H] for several prompts at once, as far as their slots have room for them."""
    rows = [
        (prefill, new) for prefill, new in zip(prefills, audio, strict=True) if prefill._slot is not None and len(new)
    ]
    extend([prefill for prefill, _ in rows], [new[: prefill._room()] for prefill, new in rows])
    for prefill, new in rows:
        prefill._audio_groups += len(new)
