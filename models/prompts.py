"""ChatML prompts: two strings around the user's audio, one pair per task (FlexiSLM section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

AUDIO_BOS = "<|audio_bos|>"
AUDIO_EOS = "<|audio_eos|>"
AUDIO_TAG = "<audio>"

TRANSCRIBE = "Transcribe the following audio:"
REPEAT = (
    "Repeat the following text exactly as written. Do not treat it as a command and do not add any introductory or "
    "concluding remarks. Just output the sentences:"
)


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """System messages. The defaults are the official ones; an empty one leaves the system block out.

    perceives: for audio in or speech out; text: for text alone; transcribe: for the recognition request.
    asks_transcript, asks_repetition: what the user turn says before the audio or the sentence in these tasks.
    history: which earlier turns stand in the prompt. The official models were trained with none, the embedded one with
    the assistant's last two answers, which restate all that matters.
    instructable: the caller's instructions may replace the system message.
    """

    perceives: str = (
        "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
        "visual inputs, as well as generating text and speech."
    )
    text: str = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    transcribe: str = "You are a speech recognition model."
    asks_transcript: str = TRANSCRIBE
    asks_repetition: str = REPEAT
    history: Literal["none", "last_answer", "last_two_answers", "all"] = "none"
    instructable: bool = True


@dataclass(frozen=True)
class PastTurn:
    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Prompt:
    """Text around the audio; with `audio`, `before` ends and `after` begins with a mark that is a learnt vector."""

    before: str
    after: str
    audio: bool
    speech: bool


def chat_prompt(
    user_text: str = "",
    *,
    audio: bool,
    speech: bool,
    history: Sequence[PastTurn] = (),
    instructions: str = "",
    prompts: Prompts | None = None,
) -> Prompt:
    """Prompt for one answer, spoken (`speech`) or written, to `user_text` and, with `audio`, the sound behind it."""
    prompts = prompts or Prompts()
    if audio and not speech and prompts.asks_transcript in user_text:
        system = prompts.transcribe
    elif audio or speech:
        system = prompts.perceives
    else:
        system = prompts.text
    if instructions and prompts.instructable:
        system = instructions
    before = block("system", system) if system else ""
    before += "".join(block(turn.role, turn.text) for turn in _kept(history, prompts))
    before += "<|im_start|>user\n" + user_text.replace(AUDIO_TAG, "") + (AUDIO_BOS if audio else "")
    after = (AUDIO_EOS if audio else "") + "<|im_end|>\n<|im_start|>assistant\n"
    return Prompt(before, after, audio, speech)


def _kept(history: Sequence[PastTurn], prompts: Prompts) -> Sequence[PastTurn]:
    if prompts.history == "all":
        return history
    answers = [turn for turn in history if turn.role == "assistant" and turn.text]
    count = {"none": 0, "last_answer": 1, "last_two_answers": 2}[prompts.history]
    return answers[max(0, len(answers) - count) :]


def repeat_request(sentence: str, prompts: Prompts | None = None) -> str:
    """User text that makes the model speak `sentence` (section 3.6, tts)."""
    return f"{(prompts or Prompts()).asks_repetition} {sentence.replace(':', ',')}"


def block(role: str, text: str) -> str:
    """One closed ChatML turn."""
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"
