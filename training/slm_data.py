"""What stage 2 learns from: prompts with their answers, drawn at random, and the answers' speech streams.

Text and speech of an answer run side by side (FlexiSLM section 4.1): the code spoken at a position is predicted one
position before it, and how long it lasts is predicted where it is fed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.networks.prompts import PastTurn, chat_prompt, repeat_request
from models.networks.prompts import Prompts as PromptTexts
from models.networks.talker import AUDIO_END, AUDIO_START, CODE_OFFSET
from models.orders import parse_order
from training.conversations import (
    KINDS,
    WIDE_SEED,
    after_another_order,
    answers_before,
    exchanges_before,
    numbered_kind,
    numbered_turn,
    question_for,
    turn_of_kind,
)
from training.features import Clip, held_out, without_silence
from training.phrases import DECLINE
from training.speech_codes import SpokenText
from training.voice_codes import RATES_HZ
from training.wide_world import SILENCE, wide_turn
from training.world import Turn, confirm, pool_turn

IGNORE = -100
KIND_SHARES = {
    "order": 0.24,
    "change": 0.26,
    "price": 0.13,
    "closing": 0.09,
    "cancel": 0.03,
    "repeat": 0.07,
    "small talk": 0.11,
    "decline": 0.07,
}
"""How often each kind of turn is drawn: what depends on earlier answers far more often than customers say it."""

PROMPTS = PromptTexts(
    perceives="",
    text="",
    transcribe="",
    asks_transcript="Transcribe:",
    asks_repetition="Repeat:",
    history="last_two_answers",
    history_tokens=120,
    request_tokens=120,
    instructable=False,
)


class Shares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of what is drawn: spoken turns and sentences to repeat; the rest are written turns.

    Of the spoken turns: `recorded` orders, of which `copied` went through telephones, `declined` open sentences, and
    `silence` (noise in which nobody speaks, answered by nothing). Of the written ones and the synthesised customers:
    `wide`, turns of `training.wide_world`.
    """

    spoken: float = 0.66
    repeated: float = 0.15
    recorded: float = 0.45
    copied: float = 0.4
    declined: float = 0.04
    silence: float = 0.0
    wide: float = 0.0


History = Literal["last_two_answers", "last_three_exchanges"]


def prompts_with(history: History) -> PromptTexts:
    """The embedded model's prompts with that much of what was said before."""
    return msgspec.structs.replace(PROMPTS, history=history)


@dataclass(frozen=True)
class Item:
    """One example. `before` and `after` surround the audio (if any) in the prompt, as text ids."""

    before: list[int]
    after: list[int]
    answer: list[int]
    clip: Clip | None
    input_hz: float
    speech: SpokenText | None
    output_hz: float


class Prompts:
    """Text ids around the user's turn, as `models.networks.prompts` lays them out."""

    def __init__(self, tokenizer: Tokenizer, texts: PromptTexts = PROMPTS) -> None:
        self.tokenizer = tokenizer
        self.texts = texts
        self.end = [tokenizer.token_to_id("<|im_end|>"), *tokenizer.encode("\n").ids]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    @property
    def with_questions(self) -> bool:
        """The history holds what the user said as well."""
        return self.texts.history == "last_three_exchanges"

    def around(self, past: Sequence[PastTurn], user_text: str, *, audio: bool) -> tuple[list[int], list[int]]:
        """Text ids before and after the audio; `past` is what was said before, oldest first."""
        prompt = chat_prompt(user_text, audio=audio, speech=True, history=past, prompts=self.texts)
        return self.ids(prompt.before), self.ids(prompt.after)

    def answer(self, text: str) -> list[int]:
        return self.ids(text) + self.end


class Examples:
    """Draws items: spoken orders and other turns, transcription, written turns, sentences to repeat."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        synthetic: list[Clip],
        recordings: list[tuple[Clip, dict[str, str]]],
        spoken: list[SpokenText],
        rng: random.Random,
        shares: Shares,
        copies: Sequence[tuple[Clip, dict[str, str]]] = (),
        noises: Sequence[np.ndarray] = (),
        history: History = "last_two_answers",
    ) -> None:
        """`copies`: recordings changed by what they went through, of clips that are not held out; `noises`: log10 power
        [frames, 80] of places where nobody speaks."""
        self.rng = rng
        self.shares = shares
        self.tokenizer = tokenizer
        self.prompts = Prompts(tokenizer, prompts_with(history))
        self.noises = noises
        self.synthetic = synthetic
        self.pool = [clip for clip in synthetic if clip.seed is not None]
        self.pool_of_kind: dict[str, list[Clip]] = {what: [] for what in (*KINDS, "wide")}
        for clip in self.pool:
            assert clip.seed is not None
            self.pool_of_kind[numbered_kind(clip.seed)].append(clip)
        self.general = [clip for clip in synthetic if clip.seed is None]
        self.recordings = [pair for pair in recordings if not held_out(pair[0].name)]
        self.trimmed = [(replace(clip, mel=without_silence(clip.mel)), slots) for clip, slots in self.recordings]
        self.copies = [pair for pair in copies if not held_out(pair[0].name)]
        self.tests = [pair for pair in recordings if held_out(pair[0].name)]
        self.spoken: dict[str, list[SpokenText]] = defaultdict(list)
        for recording in spoken:
            self.spoken[recording.text].append(recording)
        self.spoken[SILENCE] = [silent_speech()]
        self.replies = [text for text in self.spoken if parse_order(text) is not None]
        self.other_speech = [text for text in self.spoken if text and parse_order(text) is None]

    def draw(self, with_audio: bool) -> Item:
        draw = self.rng.random()
        if with_audio and draw < self.shares.spoken:
            return self._spoken_turn()
        if draw < self.shares.spoken + self.shares.repeated and self.spoken:
            return self._repeat()
        return self._written_turn()

    def _kind(self) -> str:
        return self.rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]

    def _item(self, before: list[int], after: list[int], text: str, clip: Clip | None) -> Item:
        speech, output_hz = None, self.rng.choice(RATES_HZ)
        if text in self.spoken:
            speech = self.rng.choice(self.spoken[text])
            output_hz = self.rng.choice(list(speech.codes))
        return Item(before, after, self.prompts.answer(text), clip, self._input_hz(), speech, output_hz)

    def _input_hz(self) -> float:
        return self.rng.choice((12.5, 12.5, 8.0, 6.25, 6.25, 5.0, 4.0))

    def _spoken_turn(self) -> Item:
        draw = self.rng.random()
        if self.noises and self.rng.random() < self.shares.silence:
            before, after = self.prompts.around(self._before_order(), "", audio=True)
            return self._item(before, after, SILENCE, self._silence())
        if draw < self.shares.recorded:
            clip, slots = self._recorded_order()
            before, after = self.prompts.around(self._before_order(), "", audio=True)
            return self._item(before, after, confirm(slots), clip)
        if draw < 0.9 - self.shares.declined:
            turn, clip = self._synthesised_turn()
            before, after = self.prompts.around(self._before(turn), "", audio=True)
            return self._item(before, after, turn.reply, clip)
        if draw < 0.90:
            clip = self.rng.choice(self.general)
            before, after = self.prompts.around(self._before_order(), "", audio=True)
            return self._item(before, after, DECLINE, clip)
        while not (clip := self.rng.choice(self.synthetic)).text:
            pass
        before, after = self.prompts.around([], PROMPTS.asks_transcript, audio=True)
        return self._item(before, after, clip.text, clip)

    def _synthesised_turn(self) -> tuple[Turn, Clip]:
        wide = self.rng.random() < self.shares.wide
        clip = self.rng.choice(self.pool_of_kind["wide" if wide else self._kind()] or self.pool)
        assert clip.seed is not None
        turn = numbered_turn(clip.seed)
        if self.rng.random() < 0.6 and clip.seed < WIDE_SEED:
            turn = after_another_order(turn, self.rng)
        return turn, clip

    def _silence(self) -> Clip:
        """A stretch of a place without a speaker, or next to no sound at all."""
        frames = self.rng.randrange(60, 500)
        if self.rng.random() < 0.3:
            return Clip(np.full((frames, 80), -9.0, np.float16), "", None, "silence")
        noise = self.rng.choice(self.noises)
        start = self.rng.randrange(len(noise) - frames)
        return Clip(noise[start : start + frames], "", None, "noise")

    def _before(self, turn: Turn) -> list[PastTurn]:
        if self.prompts.with_questions:
            return exchanges_before(turn, self.rng)
        return [PastTurn("assistant", answer) for answer in answers_before(turn, self.rng)]

    def _recorded_order(self) -> tuple[Clip, dict[str, str]]:
        if self.copies and self.rng.random() < self.shares.copied:
            return self.rng.choice(self.copies)
        return self.rng.choice(self.trimmed if self.rng.random() < 0.85 else self.recordings)

    def _before_order(self) -> list[PastTurn]:
        """What may have been said before an order that stands for itself."""
        if self.rng.random() < 0.6:
            return []
        if self.rng.random() < 0.4:
            return [PastTurn("assistant", "Hello, what can I get you?")]
        past: list[PastTurn] = []
        for _ in range(self.rng.choice((1, 1, 2))):
            answer = pool_turn(self.rng.randrange(6000)).reply
            past += [PastTurn("user", question_for(answer, self.rng)), PastTurn("assistant", answer)]
        return past

    def _repeat(self) -> Item:
        text = self.rng.choice(self.replies if self.rng.random() < 0.65 else self.other_speech)
        before, after = self.prompts.around([], repeat_request(text, PROMPTS), audio=False)
        return self._item(before, after, text, None)

    def _written_turn(self) -> Item:
        if self.general and self.rng.random() < 0.5 * self.shares.declined:
            said = self._typed(self.rng.choice(self.general).text)
            before, after = self.prompts.around(self._before_order(), said, audio=False)
            return self._item(before, after, DECLINE, None)
        wide = self.rng.random() < self.shares.wide
        turn = wide_turn(self.rng) if wide else turn_of_kind(self._kind(), self.rng)
        before, after = self.prompts.around(self._before(turn), self._typed(turn.user), audio=False)
        return self._item(before, after, turn.reply, None)

    def _typed(self, text: str) -> str:
        draw = self.rng.random()
        if draw < 0.3:
            return text
        typed = text[0].upper() + text[1:].replace(" i ", " I ").replace(" i'", " I'")
        return typed if draw < 0.5 else typed + self.rng.choice(".?.!")


def silent_speech() -> SpokenText:
    """The speech of an answer without words: none."""
    nothing = np.zeros(0, np.int64)
    return SpokenText(SILENCE, {hz: (nothing, nothing) for hz in RATES_HZ}, [])


@dataclass(frozen=True)
class SpeechTargets:
    """Talker ids and length classes, each int64 [rows, positions]: what is fed, and what is to be predicted there
    (`IGNORE` where nothing is)."""

    fed_tokens: Tensor
    fed_lengths: Tensor
    next_tokens: Tensor
    next_lengths: Tensor


def speech_streams(codes: np.ndarray, durations: np.ndarray, delay_tokens: int) -> tuple[Tensor, Tensor]:
    """Talker ids and length classes, each int64 [delay + codes + 1]; a code's duration stands one place behind it."""
    tokens = [AUDIO_START] * delay_tokens + [int(c) + CODE_OFFSET for c in codes] + [AUDIO_END]
    lengths = [0] * (delay_tokens + 1) + [int(d) for d in durations]
    return torch.tensor(tokens), torch.tensor(lengths)


def speech_targets(
    streams: list[tuple[Tensor, Tensor]], fed: list[Tensor], starts: list[int], positions: int
) -> SpeechTargets:
    """Streams laid behind prompts of `starts` positions: what is fed at start + k is predicted at start + k - 1.

    `fed` are the streams' Talker ids as the model hears itself, which training may have falsified.
    """
    rows = len(streams)
    targets = SpeechTargets(
        torch.full((rows, positions), AUDIO_START),
        torch.zeros(rows, positions, dtype=torch.int64),
        torch.full((rows, positions), IGNORE),
        torch.full((rows, positions), IGNORE),
    )
    for row, ((tokens, lengths), heard, start) in enumerate(zip(streams, fed, starts, strict=True)):
        end = start + len(tokens) - 1
        targets.fed_tokens[row, start:end] = heard[:-1]
        targets.fed_lengths[row, start:end] = lengths[:-1]
        targets.next_tokens[row, start - 1 : end] = tokens
        targets.next_lengths[row, start - 1 : end] = lengths
    return targets


def word_of_tokens(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The word (counted by spaces) that each token belongs to; -1 for special tokens and newlines."""
    owner, word = [], 0
    for index, token in enumerate(ids):
        piece = tokenizer.id_to_token(token)
        if piece.startswith("<|") or piece == "Ċ":
            owner.append(-1)
            continue
        word += piece.startswith("Ġ") and index > 0
        owner.append(word)
    return owner
