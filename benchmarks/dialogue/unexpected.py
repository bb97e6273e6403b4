"""`agogic eval unexpected`: 300 things that the barista was not built for, and what a new caller may say first.

Orders of what is not sold, remarks about anything, broken sentences, and sounds in which nobody speaks. An answer is
invented if it restates an order or says what one costs: none was given. Spoken in espeak-ng's voices that training
never drew, or written; sounds go to the model without a turn detector before it, which is the harder case.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.dialogue.disturbances import kitchen, street
from benchmarks.dialogue.unexpected_texts import FIRST_WORDS, FRAGMENTS, OFF_TOPIC, OUTSIDE_THE_MENU
from models.orders import parse_basket
from training.speech_data import espeak
from worker.parts import Pcm, SpeechModel
from worker.turn import Turn, TurnSettings, ask_by_text, ask_by_voice

Progress = Callable[[int, int], None]
SAMPLE_RATE = 16_000
SOUNDS = 50
SOUND_S = (1.0, 5.0)
LONGEST_S = 15.0
NEW_VOICES = (
    "Alex", "Alicia", "Andrea", "aunty", "boris", "Denis", "grandpa", "gustave", "Henrique", "Hugo", "iven3", "klatt4",
    "Marco", "Mario", "miguel", "Nguyen", "paul", "pedro",
)  # fmt: skip
"""Variants of espeak-ng in which no customer of the training spoke."""
_INVENTED = re.compile(r"(okay|sure|great|that is)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Thing:
    """`words` "" where nobody speaks; then `sound` is what is heard."""

    kind: str
    words: str
    sound: Pcm | None = None


def invented(answer: str) -> bool:
    """Whether an answer to what was no order restates one, tries to, or says its price."""
    return parse_basket(answer) is not None or _INVENTED.match(answer) is not None


def _hum(count: int, draw: np.random.Generator) -> Pcm:
    at, pitch = np.arange(count) / SAMPLE_RATE, draw.uniform(40, 400)
    return np.asarray(sum(draw.uniform(0, 1) * np.sin(2 * np.pi * k * pitch * at) for k in range(1, 6)), np.float32)


def _knocks(count: int, draw: np.random.Generator) -> Pcm:
    """Short struck sounds with nothing between them: doors, cups, a pen."""
    sound = np.zeros(count, np.float32)
    for begin in draw.integers(0, count - 3200, int(draw.integers(1, 6))):
        at = np.arange(3200) / SAMPLE_RATE
        struck = np.exp(-draw.uniform(20, 200) * at) * np.sin(2 * np.pi * draw.uniform(90, 3000) * at)
        sound[begin : begin + 3200] += struck * draw.uniform(0.3, 1.0) + draw.standard_normal(3200) * np.exp(-300 * at)
    return sound


def _hiss(count: int, draw: np.random.Generator) -> Pcm:
    return draw.standard_normal(count).astype(np.float32)


def sounds(number: int = SOUNDS) -> Iterator[Pcm]:
    """float32 [1 to 5 s] at 16 kHz: next to nothing, hiss, hum, knocks, kitchens and streets at -55 to -20 dB."""
    makers = (_hiss, _hum, _knocks, lambda n, draw: kitchen(n, draw, ()), lambda n, draw: street(n, draw, ()))
    for index in range(number):
        draw = np.random.default_rng(9000 + index)
        count = int(SAMPLE_RATE * draw.uniform(*SOUND_S))
        sound = makers[index % len(makers)](count, draw)
        level_db = draw.uniform(-90, -70) if index % 10 == 0 else draw.uniform(-55, -20)
        rms = max(float(np.sqrt(np.mean(sound**2))), 1e-9)
        yield (sound / rms * 10 ** (level_db / 20)).clip(-1, 1).astype(np.float32)


def things() -> list[Thing]:
    texts = {"outside the menu": OUTSIDE_THE_MENU, "off topic": OFF_TOPIC, "fragment": FRAGMENTS}
    spoken = [Thing(kind, words) for kind, lines in texts.items() for words in lines]
    return spoken + [Thing("nobody speaks", "", sound) for sound in sounds()]


def say(words: str, index: int) -> Pcm:
    """float32 [samples] at 16 kHz, in one of `NEW_VOICES`. Raises SynthesisError."""
    samples, _ = espeak(words, random.Random(f"unexpected {index}"), variants=NEW_VOICES)
    return samples.astype(np.float32) / 32768


def run(
    model: SpeechModel, spoken: bool, input_hz: float, output_hz: float, progress: Progress | None = None
) -> dict[str, object]:
    """Shares without an invented order, by kind; what was answered instead stands under `invented`. Raises
    SynthesisError."""
    settings = TurnSettings(input_hz=input_hz, output_hz=output_hz)
    asked, total = things(), len(things()) + len(FIRST_WORDS)
    counted, wrong, unanswered, longest_s = Counter[str](), list[dict[str, str]](), 0, 0.0

    def answer(thing: Thing, index: int) -> Turn:
        if thing.sound is None and not spoken:
            return ask_by_text(model, thing.words, settings)
        return ask_by_voice(model, thing.sound if thing.sound is not None else say(thing.words, index), settings)

    for index, thing in enumerate(asked):
        turn = answer(thing, index)
        counted[thing.kind] += 1
        longest_s = max(longest_s, len(turn.pcm) / model.output_sample_rate)
        unanswered += thing.sound is not None and not turn.text.strip()
        if invented(turn.text):
            wrong.append({"kind": thing.kind, "said": thing.words, "heard": turn.transcript, "answered": turn.text})
        if progress is not None:
            progress(index + 1, total)
    first, unlike = 0, list[dict[str, str]]()
    for index, (words, wanted) in enumerate(FIRST_WORDS.items(), len(asked)):
        text = answer(Thing("first words", words), index).text
        first += text == wanted
        if text != wanted:
            unlike.append({"said": words, "answered": text})
        if progress is not None:
            progress(index + 1, total)
    missed = Counter(one["kind"] for one in wrong)
    return {
        "things": len(asked),
        "spoken": spoken,
        "invented_orders": {_named(kind): missed[kind] for kind in counted},
        "no_invented_order_share": round(1 - len(wrong) / len(asked), 4),
        "sounds_unanswered_share": round(unanswered / SOUNDS, 4),
        "longest_answer_s": round(longest_s, 2),
        "first_words": len(FIRST_WORDS),
        "first_words_answered_rightly": first,
        "misses": wrong,
        "first_words_misses": unlike,
    }


def _named(kind: str) -> str:
    return kind.replace(" ", "_")
