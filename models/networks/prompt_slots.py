"""Prompts in the caches of Thinker and Talker: filled piece by piece, several at once, rolled back at no cost.

Where prompts are shared, full pages of what stands before the audio are known by the ids up to their end: whoever comes
with the same beginning, another session or the same conversation a turn later, holds these pages too instead of
prefilling them. The Thinker's do not depend on the rate; the Talker's are known by rate and ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.block_pool import page_names
from kernels.paged_attention import PagedAttention
from kernels.paged_cache import PagedCache
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


class SharedPages:
    """Of one cache's published pages, by name, also the hidden states [page, width] that the networks made there."""

    def __init__(self, cache: PagedCache) -> None:
        self._cache = cache
        self._hidden: dict[bytes, Tensor] = {}

    def publish(self, slot: int, ids: Sequence[int], salt: str, hidden: Tensor) -> None:
        """Says what the slot's first pages hold; hidden [positions, width] of the slot's, at least those of `ids`."""
        names, page = page_names(ids, self._cache.page, salt), self._cache.page
        self._cache.publish(slot, names)
        self._hidden = {name: kept for name, kept in self._hidden.items() if self._cache.pool.find(name) is not None}
        for number, name in enumerate(names):
            if name not in self._hidden and self._cache.pool.find(name) is not None:
                self._hidden[name] = hidden[number * page : (number + 1) * page].clone()

    def adopt(self, slot: int, ids: Sequence[int], salt: str, none: Tensor) -> Tensor:
        """Fills the empty slot with pages that begin like `ids`; their hidden states, or `none` [0, width]."""
        names = page_names(ids, self._cache.page, salt)
        held = self._cache.adopt(slot, names) // self._cache.page
        return torch.cat([none, *(self._hidden[name] for name in names[:held])])


class PromptSlots:
    """One model's caches for several conversations, each in a slot of its own.

    shares: prompts share pages, see the module. None: where the networks run on a device of their own; a processor
    reads a lone caller's pages in place if they lie side by side, which shared ones do not.
    """

    def __init__(
        self,
        model: FlexiSLM,
        special: SpecialIds,
        slots: int,
        max_positions: int,
        attention: PagedAttention,
        shares: bool | None = None,
    ) -> None:
        self.model = model
        self.special = special
        self.attention = attention
        self.thinker_cache = model.thinker.model.new_cache(slots, max_positions, attention.page)
        self.talker_cache = model.talker_model.model.model.new_cache(slots, max_positions, attention.page)
        self.prompts = [self._empty_prompt() for _ in range(slots)]
        self.shares = model.device.type == "cuda" if shares is None else shares
        self._shared_thinker, self._shared_talker = SharedPages(self.thinker_cache), SharedPages(self.talker_cache)

    def positions(self, slot: int) -> int:
        """Prompt positions that the slot holds; a mark for `rewind`."""
        return self.prompts[slot].embeddings.shape[0]

    def reset(self, slot: int) -> None:
        """Empty the slot."""
        self.rewind(slot, 0)

    @torch.inference_mode()
    def adopt(self, slot: int, ids: Sequence[int], embeddings: Tensor, output_hz: float | None = None) -> int:
        """Empties the slot and fills it as far as other prompts began alike; returns the positions that it holds.

        embeddings [n, H] of ids [n], which name them: what is no token is named by a negative number.
        """
        self.reset(slot)
        if not self.shares:
            return 0
        prompt = self.prompts[slot]
        prompt.thinker = self._shared_thinker.adopt(slot, ids, "", prompt.thinker)
        held = prompt.thinker.shape[0]
        prompt.embeddings = embeddings[:held]
        if output_hz is not None:
            prompt.output_hz = output_hz
            prompt.talker = self._shared_talker.adopt(slot, ids[:held], f"{output_hz:g} Hz", prompt.talker)
        return held

    @torch.inference_mode()
    def publish(self, slot: int, ids: Sequence[int]) -> None:
        """Lets others adopt the slot's first positions, which `ids` name."""
        if not self.shares:
            return
        prompt = self.prompts[slot]
        self._shared_thinker.publish(slot, ids, "", prompt.thinker)
        if prompt.output_hz is not None:
            ids = ids[: prompt.talker.shape[0]]
            self._shared_talker.publish(slot, ids, f"{prompt.output_hz:g} Hz", prompt.talker)

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
            counts = [new.shape[0] for _, new in growing]
            packed = torch.cat([new for _, new in growing])
            own = [slot for slot, _ in growing]
            hidden = self.model.thinker.prefill(packed, self.thinker_cache, own, counts, self.attention)
            for (slot, new), part in zip(growing, torch.split(hidden, counts), strict=True):
                prompt = self.prompts[slot]
                prompt.embeddings = torch.cat((prompt.embeddings, new))
                prompt.thinker = torch.cat((prompt.thinker, part))
        rates = {slot: hz for slot, hz in zip(slots, output_hz, strict=True) if hz is not None}
        self.prefill_talkers(list(rates), rates)

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
        talker, counts = self.model.talker_model, [missing[slot] for slot in behind]
        inputs = [
            talker.condition(
                prompt.thinker[-count:][None],
                self.model.frame_rate(output_hz[slot])[None],
                None,
                None,
                prompt.embeddings[-count:][None],
            )[0]
            for slot, count, prompt in zip(behind, counts, (self.prompts[slot] for slot in behind), strict=True)
        ]
        hidden, _ = talker.prefill(torch.cat(inputs), self.talker_cache, behind, counts, self.attention)
        for slot, part in zip(behind, torch.split(hidden, counts), strict=True):
            prompt = self.prompts[slot]
            prompt.talker = torch.cat((prompt.talker, part))

    def _empty_prompt(self) -> PromptPositions:
        model = self.model
        none = torch.zeros(0, model.config.hidden_size, dtype=model.dtype, device=model.device)
        talker = torch.zeros(0, model.talker_model.config.hidden_size, dtype=model.dtype, device=model.device)
        return PromptPositions(none, none, talker)
