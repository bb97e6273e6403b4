"""The text tokenizer that lies in a checkpoint, with the ids the generation loop needs resolved by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from models.errors import CheckpointError
from models.networks.prompts import AUDIO_BOS, AUDIO_EOS

# The most: byte-level BPE splits a character into its UTF-8 bytes; and no text is all made of longer tokens than these.
_TOKENS_PER_CHARACTER, _CHARACTERS_PER_TOKEN = 4, 16


@dataclass(frozen=True)
class SpecialIds:
    end_of_text: int
    im_start: int
    im_end: int
    newline: int
    audio_bos: int
    audio_eos: int


class TextTokenizer:
    """Byte-level BPE with ChatML and audio marks."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer = tokenizer
        newline = tokenizer.encode("\n", add_special_tokens=False).ids
        if len(newline) != 1:
            raise CheckpointError(f"{name} splits a line break into {len(newline)} tokens; it is not a Qwen tokenizer")
        names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO_BOS, AUDIO_EOS)
        ids = []
        for token in names:
            identity = tokenizer.token_to_id(token)
            if identity is None:
                raise CheckpointError(f"{name} has no token {token}; take a FlexiSLM tokenizer, not Qwen's")
            ids.append(identity)
        end_of_text, im_start, im_end, audio_bos, audio_eos = ids
        self.special = SpecialIds(end_of_text, im_start, im_end, newline[0], audio_bos, audio_eos)

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """From `tokenizer.json`; from vocabulary and merges through transformers where only those are there."""
        path = directory / "tokenizer.json"
        if path.exists():
            try:
                return cls(Tokenizer.from_file(str(path)), str(path))
            except CheckpointError:
                raise
            except Exception as error:  # the library raises plain Exception
                raise CheckpointError(f"{path} cannot be read ({error}); download it again") from None
        if not (directory / "vocab.json").exists():
            raise CheckpointError(f"{directory} holds no tokenizer.json; copy the checkpoint's tokenizer files into it")
        from transformers import AutoTokenizer  # slow to import and only needed for this layout

        slow = AutoTokenizer.from_pretrained(str(directory))
        return cls(slow.backend_tokenizer, str(directory / "vocab.json"))

    def mark(self, text: str) -> int:
        """The id of a token by its text, -1 where there is none such."""
        identity = self._tokenizer.token_to_id(text)
        return -1 if identity is None else int(identity)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def newest(self, text: str, tokens: int) -> str:
        """The end of the text that has at most so many tokens, from the beginning of a word."""
        if len(text) <= tokens // _TOKENS_PER_CHARACTER:
            return text
        words = text[-tokens * _CHARACTERS_PER_TOKEN :].split()
        first, end = 0, len(words)
        while first < end:
            middle = (first + end) // 2
            fits = len(self.encode(" ".join(words[middle:]))) <= tokens
            first, end = (first, middle) if fits else (middle + 1, end)
        return " ".join(words[first:]) if first or len(text) > tokens * _CHARACTERS_PER_TOKEN else text

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; marks such as <|im_end|> in it become their single ids, and nothing is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def stream(self) -> TextStream:
        return TextStream(self._tokenizer)


class TextStream:
    """Text of ids that come one at a time; held back while a character is incomplete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """The text that `token` completes, often empty for pieces of a character and always for special tokens."""
        return self._stream.step(self._tokenizer, token) or ""
