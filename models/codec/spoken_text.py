"""What FlexiCodec-TTS reads: a language mark and Whisper's BPE of the text, English as phonemes (FlexiCodec 14).

English goes through espeak's American voice: no stress marks, none for words taken for foreign ones, punctuation as it
stood. Phonemes that the BPE would break into bytes are then written with letters that it knows.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from models.errors import CheckpointError

ENGLISH = "en"
REFERENCE_JOINT = ", "

_PUNCTUATION = re.compile(r'(\s*[;:,.!?¡¿—…"«»“”(){}\[\]]+\s*)')
_STRESS_AND_FLAGS = re.compile(r"[ˈˌ]|\([a-z-]+\)")
_LETTERS = (
    ("^", "'"), ("ː", "~"), ("ʌ", "α"), ("ɑ", "α"), ("ɪ", "ι"), ("ʊ", "υ"), ("ɹ", "r"), ("ɐ", "a"), ("ʃ", "ρ"),
    ("ɛ", "ε"), ("ŋ", "ng"), ("ɡ", "g"), ("ɔ", "ο"), ("ʒ", "ψ"), ("ɾ", "τ"), ("ɚ", "ər"), ("ᵻ", "i"), ("ɜ", "ə"),
)  # fmt: skip

Phonemise = Callable[[str], str]


class PhonemeError(Exception):
    """English cannot be turned into phonemes; the message says what to do."""


class SpokenText:
    """Ids of what is to be said. phonemise: IPA of a stretch of English without punctuation."""

    def __init__(self, tokenizer: Tokenizer, name: str, phonemise: Phonemise) -> None:
        self._tokenizer, self._name, self._phonemise = tokenizer, name, phonemise

    @classmethod
    def load(cls, path: Path) -> SpokenText:
        """From the `tokenizer.json` of Whisper large-v3, whose 51,866 tokens the model has rows for."""
        try:
            return cls(Tokenizer.from_file(str(path)), str(path), espeak)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read ({error}); take Whisper large-v3's tokenizer.json") from None

    def ids(self, text: str, language: str = ENGLISH, reference: str = "") -> list[int]:
        """Ids of `text`, behind the words of the voice's recording where there is one.

        Raises `CheckpointError` for a language that the tokenizer has no mark for, and `PhonemeError`.
        """
        mark = self._tokenizer.token_to_id(f"<|{language}|>")
        if mark is None:
            raise CheckpointError(f"{self._name} has no mark for the language {language!r}; give a code such as 'en'")
        whole = reference + REFERENCE_JOINT + text if reference else text
        if language == ENGLISH:
            whole = english_letters(whole, self._phonemise)
        return [mark, *self._tokenizer.encode(whole, add_special_tokens=False).ids]


def english_letters(text: str, phonemise: Phonemise) -> str:
    """The text as the model knows it: phonemes in its own letters, punctuation where it was."""
    pieces = _PUNCTUATION.split(text)
    # Every other piece is punctuation with the space around it.
    spoken = [piece if index % 2 or not piece.strip() else phonemise(piece) for index, piece in enumerate(pieces)]
    written = _STRESS_AND_FLAGS.sub("", "".join(spoken))
    for phoneme, letter in _LETTERS:
        written = written.replace(phoneme, letter)
    return written


def espeak(text: str) -> str:
    """IPA of English text without punctuation, by the program espeak-ng. Raises `PhonemeError`."""
    program = shutil.which("espeak-ng") or shutil.which("espeak")
    if program is None:
        raise PhonemeError("English is spoken from phonemes, which espeak-ng makes; install the package espeak-ng")
    command = [program, "-q", "--ipa", "-v", "en-us", "--stdin"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PhonemeError(f"{program} failed ({done.stderr.strip()}); install the package espeak-ng with its data")
    return " ".join(done.stdout.split())
