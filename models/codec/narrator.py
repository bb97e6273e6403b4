"""FlexiCodec-TTS from text to sound: a voice's recording, its words and a sentence give the sentence in that voice.

narrator = load_narrator(files, Path("artts.safetensors"), Path("whisper-large-v3/tokenizer.json"))
voice = narrator.voice(samples, "What the recording says.", frame_rate=0.91)
sound = narrator.say("Good morning.", voice)          # [N] at 16 kHz, by the codec; or narrator.codes(...)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.flexicodec_checkpoint import CodecFiles, load_artts, load_flexicodec
from models.codec.spoken_text import ENGLISH, SpokenText
from streaming.flexicodec.artts import ArSampling, ArTts, TimedCodes
from streaming.flexicodec.flexicodec import FlexiCodec, SpeechCodes

LONGEST_FRAMES = 8
"""The model has classes for up to 9 frames, the codec was trained with 8."""


@dataclass(frozen=True)
class ReadVoice:
    """A recording as the model reads it. frame_rate: similarity above which the codec merged, 0.86 or 0.91."""

    tokens: TimedCodes
    words: str
    frame_rate: float


NOBODY = TimedCodes([], [])


class Narrator:
    """The networks of text-to-speech; `codec` must be the one that the model was trained with."""

    def __init__(self, reader: SpokenText, network: ArTts, codec: FlexiCodec) -> None:
        self.reader, self.network, self.codec = reader, network, codec

    def voice(self, audio: Tensor, words: str, frame_rate: float = 0.91) -> ReadVoice:
        """The voice of samples [N] at 16 kHz, in which `words` are said.

        The original merges the recording by whatever threshold was used last; here it is the rate asked for.
        """
        with torch.inference_mode():
            codes = self.codec.encode(audio, frame_rate, quantizers=1)
        return ReadVoice(TimedCodes(codes.semantic.tolist(), codes.durations.tolist()), words, frame_rate)

    def codes(
        self,
        text: str,
        voice: ReadVoice | None = None,
        *,
        language: str = ENGLISH,
        frame_rate: float = 0.91,
        sampling: ArSampling = ArSampling(),  # noqa: B008
        generator: torch.Generator | None = None,
    ) -> SpeechCodes:
        """The sentence as codes with durations, at the voice's frame rate where there is a voice.

        A token whose predicted duration is 0 is not heard and left out, as in the original.
        """
        ids = self.reader.ids(text, language, voice.words if voice else "")
        prompt = voice.tokens if voice else NOBODY
        rate = voice.frame_rate if voice else frame_rate
        spoken = self.network.generate(ids, rate, prompt, sampling, generator)
        heard = [(code, min(frames, LONGEST_FRAMES)) for code, frames in _pairs(spoken) if frames]
        codes, durations = (torch.tensor([pair[side] for pair in heard], dtype=torch.int64) for side in (0, 1))
        return SpeechCodes(codes, None, durations)

    def say(self, text: str, voice: ReadVoice | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """The sentence as samples [N] at 16 kHz, decoded from its semantic codes alone; none where nothing is said."""
        codes = self.codes(text, voice, generator=generator)
        if not len(codes.semantic):
            return torch.zeros(0)
        with torch.inference_mode():
            return self.codec.decode(codes)


def load_narrator(files: CodecFiles, weights: Path, tokenizer: Path) -> Narrator:
    """`weights` is artts.safetensors, `tokenizer` Whisper large-v3's tokenizer.json. Raises `CheckpointError`."""
    return Narrator(SpokenText.load(tokenizer), load_artts(weights), load_flexicodec(files))


def _pairs(spoken: TimedCodes) -> list[tuple[int, int]]:
    return list(zip(spoken.codes, spoken.durations, strict=True))
