"""One answer on its way from the prompt's end to samples, a unit at a time."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.wire import CODEC_FRAME_RATE_HZ, ResponseStats
from models.networks.generation import Generation, GenerationOptions, Step
from models.networks.prompts import CALL, Prompt
from streaming.speaking.unmerge import OUTPUT_FRAME_SAMPLES
from worker.calls.caller import Calling
from worker.ears.ear import realised_hz
from worker.listener import PipelineListener
from worker.parts import Finished, Pcm, Sound, Spoken, TextPiece, Unit
from worker.prefill import Prefill
from worker.voices.tokens import SpokenTokens
from worker.words import WordClock

if TYPE_CHECKING:
    from worker.pipeline import Pipeline

LONGEST_PER_LETTER, LONGEST_PAUSE = 2.5, 25.0
"""12.5 Hz frames: an answer that lasts longer than this for its letters is cut."""


class PipelineSpeaker:
    """One answer: a `Speaker`. Each unit is one joint step of Thinker and Talker or one chunk of sound.

    Where a spoken answer comes to a call, its speech ends, and what the Thinker has to write is made in a second
    generation from the same prompt, without the Talker.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prefill: Prefill,
        prompt: Prompt,
        utterance: PipelineListener | None,
        options: GenerationOptions,
        calling: Calling | None = None,
    ) -> None:
        self._calling = calling
        self._writes = calling is not None and calling.silent
        self._all_text = ""
        self._started = time.perf_counter()
        self._pipeline = pipeline
        self._runner = pipeline.runner
        self.prefill = prefill
        self.prompt = prompt
        self.utterance = utterance
        self.options = options
        self._prefilled_before_ms = prefill.prefill_ms
        self._answer: Generation | None = None
        self._stream = pipeline.networks.tokenizer.stream()
        voice = pipeline.networks.voice
        self.voice = voice.begin() if voice is not None and options.speech else None
        self._words = WordClock(OUTPUT_FRAME_SAMPLES, pipeline.networks.slm.config.alignment_head is not None)
        self._text_tokens = 0
        self._tokens = SpokenTokens()
        self._looked_at: int | None = None
        self._first_token_ms = 0.0
        self._thinker_ms = 0.0
        self._talker_ms = 0.0

    @property
    def answer(self) -> Generation:
        assert self._answer is not None
        return self._answer

    def begun(self, answer: Generation) -> None:
        """The prompt is complete, and this is what goes on from it."""
        self._answer = answer

    @property
    def text(self) -> str:
        return self._words.text_so_far.strip()

    @property
    def made_samples(self) -> int:
        return self._tokens.frames * OUTPUT_FRAME_SAMPLES

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        if self.voice is not None:
            self.voice.pace(hurried=hurried, alone=alone, next_in_s=next_in_s)

    @property
    def unit(self) -> Unit:
        if self.voice is not None and self.voice.ready:
            return "sound"
        if self._answer is None:
            return "beginning"
        return "end" if self._over() else "token"

    @property
    def talks(self) -> bool:
        return self._answer is not None and not self._over()

    @property
    def unit_samples(self) -> int:
        return self.voice.next_samples if self.voice is not None and self.voice.ready else 0

    @property
    def cuts(self) -> tuple[int, ...]:
        return self.voice.cuts if self.voice is not None and self.voice.ready else ()

    def cut(self, samples: int) -> None:
        assert self.voice is not None
        self.voice.cut(samples)

    def step(self) -> list[Spoken]:
        if self.unit != "end":
            return self._pipeline.step([self], self.unit)[0]
        self.close()
        if self.answer.ended != "end":
            return [Finished("max_output_tokens")]
        calls = self._calling.read(self._all_text) if self._calling is not None else []
        return [*calls, Finished("completed")]

    def close(self) -> None:
        """The answer is over or given up: its slot serves the next one."""
        self.prefill.answered()
        if self.utterance is None:
            self.prefill.close()

    def stats(self) -> ResponseStats:
        spoken, frames = len(self._tokens.all), self._tokens.frames
        hearing = self.utterance.hearing if self.utterance else None
        return ResponseStats(
            first_token_ms=self._first_token_ms,
            encode_ms=self.utterance.encode_ms if self.utterance else 0.0,
            prefill_ms=self.prefill.prefill_ms - (0.0 if self.utterance else self._prefilled_before_ms),
            thinker_ms=self._thinker_ms,
            talker_ms=self._talker_ms,
            flow_ms=self.voice.flow_ms if self.voice else 0.0,
            vocoder_ms=self.voice.vocoder_ms if self.voice else 0.0,
            text_tokens=self._text_tokens,
            speech_tokens=spoken,
            speech_frames=frames,
            prompt_positions=self._answer.prompt_positions if self._answer else 0,
            input_frames=hearing.frames if hearing else 0,
            input_groups=hearing.groups if hearing else 0,
            realised_input_hz=realised_hz(hearing) if hearing else 0.0,
            realised_output_hz=CODEC_FRAME_RATE_HZ * spoken / frames if frames else 0.0,
            requested_output_hz=self.options.output_hz,
            talker_steps=self._answer.talker_steps if self._answer else 0,
        )

    def take(self, step: Step) -> list[Spoken]:
        """What a joint step of Thinker and Talker gave to this answer."""
        self._thinker_ms += step.thinker_ms
        self._talker_ms += step.talker_ms
        events: list[Spoken] = []
        if step.text_token is not None:
            piece = self._stream.push(step.text_token)
            self._all_text += piece
            self._text_tokens += 1
            self._writes |= self._calling is not None and step.text_token == self._pipeline.mark
            if not self._writes:
                if step.text_token == self._runner.special.im_end:
                    self._words.end_text()
                self._words.text(piece)
                if piece:
                    events.append(TextPiece(piece))
        if step.spoken is not None and self.voice is not None:
            span = self._tokens.add(step.spoken.code, step.spoken.duration_frames)
            if span is not None:
                self._first_token_ms = self._first_token_ms or (time.perf_counter() - self._started) * 1e3
                self.voice.push(span.code, span.duration_frames)
                self._words.speech(span.duration_frames, self._looked_at)
        # The head's weights belong to the code chosen in this step, whose duration comes with the next.
        self._looked_at = step.focus
        if self.answer.marked and (self._over() or not self.text):
            self._write_on()
        elif self.voice is not None and self._over():
            self.voice.end()
        return events

    def _write_on(self) -> None:
        """What was to be said is said: the rest is written."""
        if self.text and self.voice is not None:
            self.voice.end()
        else:
            self.voice = None
        begun = f"{self._all_text}{CALL}\n"
        self.prompt = replace(self.prompt, after=self.prompt.after + begun)
        self.options = replace(self.options, speech=False, uniforms=None, mark=-1)
        self._all_text, self._writes, self._answer = begun, True, None
        self._stream = self._pipeline.networks.tokenizer.stream()

    def _over(self) -> bool:
        """Whether no more tokens will come."""
        return bool(self.answer.ended) or (self.options.speech and self._runs_on())

    def _runs_on(self) -> bool:
        """Whether sound goes on long after every word must have been said, or longer than any answer should last: a
        small Talker can miss its end."""
        longest = self._pipeline.networks.slm.config.agogic.longest_answer_s
        if self._tokens.frames >= longest * CODEC_FRAME_RATE_HZ:
            return True
        return self._words.text_ended and self._tokens.frames > LONGEST_PER_LETTER * len(self.text) + LONGEST_PAUSE

    def take_sound(self, pcm: Pcm) -> list[Spoken]:
        """The next samples of the voice, and what is said in them."""
        assert self.voice is not None
        words = (
            self._words.rest() if self.voice.finished else self._words.begun(self.voice.samples / OUTPUT_FRAME_SAMPLES)
        )
        tokens = self._tokens.heard(self.voice.samples)
        return [Sound(pcm, tokens, words)] if len(pcm) else []
