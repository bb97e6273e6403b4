"""One step of Thinker and Talker over rows of slots, without the host: what an answer is lives in tensors that stay.

    think   the text chosen last is fed; the next one is chosen
    talk    the speech token and the length chosen last are fed, with what the Thinker made; the next are chosen

Both read and write the slots' tensors alone, so that they can be recorded. The host reads `numbers`, which hold all
that it has to know, and writes them where it knows better: what is forced, and what is over.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.paged_attention import PagedAttention
from kernels.paged_cache import PagedCache
from kernels.sampling import draw, filtered_probabilities
from kernels.step_runner import InPlace
from models.networks.flexislm import FlexiSLM
from models.networks.tokenizer import SpecialIds

SPEAKS, TEXT, PREVIOUS, HUSHED, FROZEN, SPEECH, LENGTH, STEP, FOCUS, DRAWS, PROMPT = range(11)
"""Columns of `SlotState.numbers`: whether the answer is spoken; the text chosen for the next step, the text before;
whether that step's and the next one's text has ended; the speech token and the length chosen for the next step; the
number of that step; which text position the Talker looked at; and of the answer: whether it is drawn by lot, and the
positions of its prompt. What is compared or written together stands side by side."""
COLUMNS = 11
TOP_K, TOP_P = 20, 0.9
"""Speech tokens are drawn from these (section 4.5)."""


@dataclass(frozen=True)
class SlotState:
    """Of each slot, and of the idle one behind them: numbers int64 [slots, COLUMNS]; uniforms float64 [slots, steps];
    conditions [slots, 3, H]: what the Talker is told, namely `thinker`, which the next text was chosen from, the `rate`
    and `text_input`, what the Thinker was fed; talker [slots, D]: what the next speech token was chosen from; looks
    float32 [slots, positions]: the alignment head's weights, where there is one."""

    numbers: Tensor
    uniforms: Tensor
    conditions: Tensor
    talker: Tensor
    looks: Tensor | None

    @property
    def thinker(self) -> Tensor:
        """[slots, H]."""
        return self.conditions[:, 0]

    @property
    def rate(self) -> Tensor:
        """[slots, H]."""
        return self.conditions[:, 1]

    @property
    def text_input(self) -> Tensor:
        """[slots, H]."""
        return self.conditions[:, 2]

    @staticmethod
    def empty(model: FlexiSLM, slots: int, max_positions: int) -> SlotState:
        device, dtype, hidden = model.device, model.dtype, model.config.hidden_size

        def zeros(width: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(slots + 1, width, dtype=dtype, device=device)

        return SlotState(
            zeros(COLUMNS, torch.int64),
            zeros(max_positions, torch.float64),
            zeros(3 * hidden).unflatten(1, (3, hidden)),
            zeros(model.talker_model.config.hidden_size),
            None if model.config.alignment_head is None else zeros(max_positions, torch.float32),
        )


class JointStep:
    """think and talk over the slots of one model."""

    def __init__(
        self,
        model: FlexiSLM,
        special: SpecialIds,
        attention: PagedAttention,
        thinker_cache: PagedCache,
        talker_cache: PagedCache,
    ) -> None:
        self.model, self.special, self.attention = model, special, attention
        self.thinker_cache, self.talker_cache = thinker_cache, talker_cache
        self.state = SlotState.empty(model, thinker_cache.idle, thinker_cache.max_positions)
        # SPEAKS, TEXT and PREVIOUS of a spoken answer whose text ends for good.
        self._closing = torch.tensor([1, special.newline, special.im_end], device=model.device)

    def think(self, rows: Tensor, width: int, in_place: InPlace | None) -> None:
        """rows int64 [rows] of slots; those whose text has ended are left alone. width: pages to look at."""
        thinker, state = self.model.thinker, self.state
        own = state.numbers.index_select(0, rows)
        text, _, _, frozen = own[:, TEXT:SPEECH].unbind(1)
        inputs = thinker.embed(text)
        if self.model.config.thinker_hears_speech:
            audio, length = self._speech(own)
            both = thinker.combine(inputs, audio, length, state.rate.index_select(0, rows))
            inputs = torch.where(own[:, SPEAKS, None] != 0, both, inputs)
        state.text_input.index_copy_(0, rows, inputs)
        cache = self.thinker_cache
        step = cache.decode(rows, width, inactive=frozen != 0, masked=self.attention.masked, in_place=in_place)
        hidden, _ = thinker.model.decode(inputs, cache, step, self.attention)
        state.thinker.index_copy_(0, rows, hidden)
        ended = frozen
        if self.model.config.no_pad:
            # Without padding, a spoken answer's text ends for good behind <|im_end|> and a line break.
            ended = frozen | (own[:, SPEAKS:HUSHED] == self._closing).all(1)
        written = thinker.text_logits(hidden).argmax(-1)
        state.numbers[:, TEXT:SPEECH].index_copy_(0, rows, torch.stack((written, text, frozen, ended), 1))

    def talk(self, rows: Tensor, width: int, in_place: InPlace | None) -> None:
        """The same for speech; the likeliest token is taken."""
        self._talk(rows, width, in_place, drawing=False)

    def talk_by_lot(self, rows: Tensor, width: int, in_place: InPlace | None) -> None:
        """`talk` where some of the rows are drawn by lot."""
        self._talk(rows, width, in_place, drawing=True)

    def _talk(self, rows: Tensor, width: int, in_place: InPlace | None, *, drawing: bool) -> None:
        own = self.state.numbers.index_select(0, rows)
        cache, watch = self.talker_cache, self.model.config.alignment_head
        step = cache.decode(rows, width, masked=self.attention.masked, in_place=in_place)
        decoder = self.model.talker_model.model.model
        hidden, looks = decoder.decode(self._talker_input(rows, own), cache, step, self.attention, watch)
        if looks is not None:
            self.look(rows, own, looks)
        # The idle slot, which nobody starts anew, counts on for ever.
        number = (own[:, STEP] + 1).clamp_max_(self.state.uniforms.shape[1] - 1)
        self.choose_speech(rows, own, hidden, number, drawing=drawing)

    def talker_inputs(self, rows: Tensor) -> Tensor:
        """What `talk` would feed, [rows, D]."""
        return self._talker_input(rows, self.state.numbers.index_select(0, rows))

    def _talker_input(self, rows: Tensor, own: Tensor) -> Tensor:
        audio, length = self._speech(own)
        conditions = self.state.conditions.index_select(0, rows)
        return self.model.talker_model.condition_step(conditions, audio, length, own[:, HUSHED, None] != 0)

    def _speech(self, own: Tensor) -> tuple[Tensor, Tensor]:
        talker = self.model.talker_model
        return talker.audio_emb(own[:, SPEECH]), talker.length_emb(own[:, LENGTH])

    def look(self, rows: Tensor, own: Tensor, looks: Tensor) -> None:
        """Notes the alignment head's weights looks float32 [rows, positions] over prompt and answer, and the text
        position that has most of them."""
        state = self.state
        assert state.looks is not None
        width = min(looks.shape[1], state.looks.shape[1])
        state.looks[:, :width].index_copy_(0, rows, looks[:, :width])
        prompt = own[:, PROMPT, None]
        written = self.thinker_cache.lengths.index_select(0, rows)[:, None]
        place = torch.arange(looks.shape[1], device=looks.device)
        best = looks.masked_fill((place < prompt) | (place >= written), -1.0).argmax(-1)
        state.numbers[:, FOCUS].index_copy_(0, rows, best - own[:, PROMPT])

    def choose_speech(self, rows: Tensor, own: Tensor, hidden: Tensor, number: Tensor, *, drawing: bool) -> None:
        """The speech token of step `number` int64 [rows], and the length of the one before, from the Talker's hidden
        states [rows, D]; own: the rows' numbers."""
        talker, state = self.model.talker_model, self.state
        state.talker.index_copy_(0, rows, hidden)
        logits = talker.speech_logits(hidden)
        length = talker.length_logits(hidden).argmax(-1)
        speech = logits.argmax(-1)
        if drawing:
            drawn = draw(filtered_probabilities(logits, top_k=TOP_K, top_p=TOP_P), state.uniforms[rows, number])
            speech = torch.where(own[:, DRAWS] != 0, drawn, speech)
        state.numbers[:, SPEECH:FOCUS].index_copy_(0, rows, torch.stack((speech, length, number), 1))

    def choose_text(self, rows: Tensor, hidden: Tensor, among: tuple[int, ...] = ()) -> None:
        """The first text token, from the Thinker's hidden states [rows, H] at the prompt's end; one of
        `among`, where there are some."""
        self.state.thinker.index_copy_(0, rows, hidden)
        logits = self.model.thinker.text_logits(hidden)
        if among:
            allowed = torch.tensor(among, device=logits.device)
            written = allowed[logits[:, allowed].argmax(-1)]
        else:
            written = logits.argmax(-1)
        self.state.numbers[:, TEXT].index_copy_(0, rows, written)
