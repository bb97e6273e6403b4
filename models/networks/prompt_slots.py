"""Prompts in the caches of Thinker and Talker: filled piece by piece, several at once, rolled back at no cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.networks.flexislm import FlexiSLM
from models.networks.tokenizer import SpecialIds


@dataclass
class PromptPositions:
    """What a slot's caches were filled with.

    Embeddings, thinker [P, H] and talker [p, D], p <= P, of prompt positions.
    """

    embeddings: Tensor
    thinker: Tensor
    talker: Tensor
    output_hz: float | None = None


class PromptSlots:
    """One model's caches for several conversations, each in a slot of its own."""

    def __init__(self, model: FlexiSLM, special: SpecialIds, slots: int, max_positions: int) -> None:
        self.model = model
        self.special = special
        self.thinker_cache = model.thinker.model.new_cache(slots, max_positions)
        self.talker_cache = model.talker_model.model.model.new_cache(slots, max_positions)
        self.prompts = [self._empty_prompt() for _ in range(slots)]

    def positions(self, slot: int) -> int:
        """Prompt positions that the slot holds; a mark for `rewind`."""
        return self.prompts[slot].embeddings.shape[0]

    def reset(self, slot: int) -> None:
        """Empty the slot."""
        self.rewind(slot, 0)

    def rewind(self, slot: int, positions: int) -> None:
        """Back to the first `positions` prompt positions; answers made in the slot are over. Costs nothing."""
        prompt = self.prompts[slot]
        prompt.embeddings, prompt.thinker = prompt.embeddings[:positions], prompt.thinker[:positions]
        prompt.talker = prompt.talker[:positions]
        self.thinker_cache.truncate(slot, positions)
        self.talker_cache.truncate(slot, prompt.talker.shape[0])

    def extend(self, slot: int, embeddings: Tensor, output_hz: float | None = None) -> None:
        """Prefill further prompt positions, embeddings [n, H].

        With an `output_hz`, which the Talker's positions depend on, the Talker is prefilled as well; else `start` does
        it.
        """
        self.extend_together([slot], [embeddings], [output_hz])

    @torch.inference_mode()
    def extend_together(
        self, slots: Sequence[int], embeddings: Sequence[Tensor], output_hz: Sequence[float | None]
    ) -> None:
        """`extend` of several slots in one go; lengths may differ."""
        for slot in slots:
            self.rewind(slot, self.positions(slot))
        growing = [(slot, new) for slot, new in zip(slots, embeddings, strict=True) if new.shape[0]]
        if growing:
            # Nothing real comes after padding, and the caches forget it.
            padded = pad_sequence([new for _, new in growing], batch_first=True)
            hidden = self.model.thinker.step(padded, self.thinker_cache, [slot for slot, _ in growing])
            for (slot, new), row in zip(growing, hidden, strict=True):
                prompt = self.prompts[slot]
                prompt.embeddings = torch.cat((prompt.embeddings, new))
                prompt.thinker = torch.cat((prompt.thinker, row[: new.shape[0]]))
                self.thinker_cache.truncate(slot, prompt.thinker.shape[0])
        rates = {slot: hz for slot, hz in zip(slots, output_hz, strict=True) if hz is not None}
        # Who has more to make up for, after a change of rate, goes alone, so that the others need no padding.
        lengths = {slot: new.shape[0] for slot, new in growing}
        alike = [slot for slot in rates if self._without_talker(slot, rates[slot]) == lengths.get(slot)]
        self.prefill_talkers(alike, rates)
        for slot in set(rates) - set(alike):
            self.prefill_talkers([slot], rates)

    def _without_talker(self, slot: int, output_hz: float) -> int:
        """Prompt positions that the Talker has not seen at this rate."""
        prompt = self.prompts[slot]
        if prompt.output_hz != output_hz:
            prompt.talker, prompt.output_hz = prompt.talker[:0], output_hz
            self.talker_cache.truncate(slot, 0)
        return prompt.thinker.shape[0] - prompt.talker.shape[0]

    def prefill_talkers(self, slots: Sequence[int], output_hz: Mapping[int, float]) -> None:
        """Lets the Talker see what it has not seen of these slots' prompts, at the given rates."""
        missing = {slot: self._without_talker(slot, output_hz[slot]) for slot in slots}
        behind = [slot for slot in slots if missing[slot]]
        if not behind:
            return
        talker, prompts = self.model.talker_model, [self.prompts[slot] for slot in behind]
        thinker, embeddings = (
            pad_sequence([part[-missing[slot] :] for slot, part in zip(behind, parts, strict=True)], batch_first=True)
            for parts in ([prompt.thinker for prompt in prompts], [prompt.embeddings for prompt in prompts])
        )
        rates = torch.stack([self.model.frame_rate(output_hz[slot]) for slot in behind])
        hidden, _ = talker.step(talker.condition(thinker, rates, None, None, embeddings), self.talker_cache, behind)
        for slot, prompt, row in zip(behind, prompts, hidden, strict=True):
            prompt.talker = torch.cat((prompt.talker, row[: missing[slot]]))
            self.talker_cache.truncate(slot, prompt.talker.shape[0])

    def _empty_prompt(self) -> PromptPositions:
        model = self.model
        none = torch.zeros(0, model.config.hidden_size, dtype=model.dtype, device=model.device)
        talker = torch.zeros(0, model.talker_model.config.hidden_size, dtype=model.dtype, device=model.device)
        return PromptPositions(none, none, talker)
