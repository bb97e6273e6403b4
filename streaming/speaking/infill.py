"""Streaming with flow decoders that see everything: each chunk is filled in behind clean mel, with a little look-ahead.

The official Voicebox was trained to continue a clean prefix. A chunk's window is

    prompt (fixed) | newest generated mel (bounded) | the chunk | look-ahead

of which prompt and generated mel are given clean, the rest starts as noise and only the chunk is kept. The look-ahead
is made again with the next chunk, and serves the vocoder as its own look-ahead until then. Noise belongs to the
absolute frame, so that both times start from the same. With one chunk as long as the utterance, and the prefix made
anew at every step, this is the official decode.

Most of a window is prefix, which the steps of a chunk do not change, though they change what the network makes of it:
`prefix_every` says how many steps go on with the same keys and values of the prefix. Most of a prefix is the prompt,
the same in all answers: `keep_prompt` makes its keys and values once, while the voice says the beginning of its prompt
over again, and every window of every answer in this voice attends to those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kernels.recorder import Plain, Recorder
from streaming.speaking.flow import Memory, Voicebox
from streaming.speaking.flow_decoder import check_code
from streaming.speaking.infill_window import Guidance, WindowBatch, WindowShape
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.unmerge import UPSAMPLING

NOISE_FRAMES = 1024
MOST_ROWS = 4
"""Windows that are solved together where shapes are fixed: a few fill a GPU, and each row holds 30 MB for good."""
REHEARSED_FRAMES = 12
"""12.5 Hz: how much a prompt is followed by while its keys and values are made. With nothing behind it they would be
twice as far from those of real answers; more than this changes little."""


@dataclass(frozen=True)
class InfillDials:
    """Steps and guidance as in `Voicebox.solve`; frames are 12.5 Hz.

    `chunk_frames` are the lengths of the first chunks, the last repeats: short ones first, so that sound comes soon,
    each at most twice the one before, which is heard while it is made.
    `context_frames` of generated mel are kept as prefix, besides the prompt. The prefix goes through the network at
    every `prefix_every`-th step, the prompt with it unless `keep_prompt`; 1 and False are the official decode. The
    first `guided_steps` are guided, all by default.
    """

    steps: int = 15
    guidance: float = 2.0
    rescale: float = 0.75
    chunk_frames: tuple[int, ...] = (4, 8, 16)
    look_ahead_frames: int = 4
    context_frames: int = 25
    prefix_every: int = 3
    keep_prompt: bool = True
    guided_steps: int = 1_000

    def __post_init__(self) -> None:
        if not self.chunk_frames or min(self.chunk_frames) < 1:
            raise ValueError(f"chunk_frames must be lengths of at least 1 frame, not {self.chunk_frames}")
        if self.steps < 1 or self.look_ahead_frames < 0 or self.context_frames < 0:
            raise ValueError("steps must be at least 1, look-ahead and context at least 0 frames")
        if self.prefix_every < 1 or self.guided_steps < 0:
            raise ValueError(f"prefix_every must be at least 1 step, not {self.prefix_every}; guided_steps at least 0")


@dataclass(frozen=True, eq=False)
class PromptVoice:
    """Whom to sound like: codes int64 [P] at 12.5 Hz and the normalised mel [4 P, 128] that they stand for."""

    codes: Tensor
    mel: Tensor

    def __post_init__(self) -> None:
        if self.mel.shape != (UPSAMPLING * self.codes.shape[0], MEL_BINS):
            raise ValueError(
                f"a prompt of {self.codes.shape[0]} codes does not fit mel of shape {list(self.mel.shape)}"
            )


@dataclass(frozen=True)
class Window:
    """What one chunk is made from; the first `kept` of the target's frames are the chunk.

    `prompt` is remembered and stands before the prefix: keys and values [steps that make them, layers, heads, frames,
    head_dim], no frames where the prompt is part of the prefix. codes int64 [prefix + target] at 12.5 Hz, prefix mel
    [4 prefix, 128], noise [4 target, 128].
    """

    prompt: Memory
    codes: Tensor
    prefix: Tensor
    noise: Tensor
    kept: int


@dataclass(frozen=True)
class Chunk:
    """mel [4 kept, 128] is final; `ahead` [4 look-ahead, 128] is a preview of what follows, empty at the end."""

    mel: Tensor
    ahead: Tensor


class InfillStream:
    """One utterance on its way from codes to mel."""

    def __init__(
        self, prompt: PromptVoice, remembered: Memory, dials: InfillDials, codebook_size: int, noise: Tensor
    ) -> None:
        self._prompt, self._remembered, self._dials = prompt, remembered, dials
        self._codebook_size, self._noise = codebook_size, noise
        self._codes: list[int] = []  # 12.5 Hz frames from `_first` on
        self._first = 0
        self._made = 0  # frames rendered
        self._chunks = 0
        self._mel = prompt.mel[:0]  # newest generated mel, at most the context
        self._ended = False

    def push(self, code: int, duration_frames: int) -> None:
        """The next code. Raises `SpeechCodeError`."""
        check_code(code, duration_frames, self._codebook_size)
        self._codes.extend([code] * duration_frames)

    def end(self) -> None:
        """No more codes will come."""
        self._ended = True

    @property
    def ready(self) -> bool:
        """Whether `window` has a chunk to offer."""
        pending = self._first + len(self._codes) - self._made
        return pending > 0 and (self._ended or pending >= self._chunk() + self._dials.look_ahead_frames)

    @property
    def next_frames(self) -> int:
        """12.5 Hz frames that the next chunk has, if codes do not end before."""
        return self._chunk()

    def window(self) -> Window:
        """The window of the next chunk; to be followed by `accept`."""
        pending = self._first + len(self._codes) - self._made
        wanted = self._chunk() + self._dials.look_ahead_frames
        # A rest that would not fill chunk and look-ahead is made in one go.
        kept, target = (self._chunk(), wanted) if pending >= wanted else (pending, pending)
        at = self._made - self._first
        context = self._mel.shape[0] // UPSAMPLING
        own = torch.tensor(self._codes[at - context : at + target], dtype=torch.int64, device=self._prompt.codes.device)
        frame = self._made * UPSAMPLING + torch.arange(target * UPSAMPLING, device=self._noise.device)
        noise = self._noise[frame % NOISE_FRAMES]
        if self._dials.keep_prompt:
            return Window(self._remembered, own, self._mel, noise, kept)
        codes, prefix = torch.cat((self._prompt.codes, own)), torch.cat((self._prompt.mel, self._mel))
        return Window(self._remembered, codes, prefix, noise, kept)

    def accept(self, mel: Tensor) -> None:
        """The chunk's mel [4 kept, 128], which becomes context."""
        self._made += mel.shape[0] // UPSAMPLING
        self._chunks += 1
        context = self._dials.context_frames * UPSAMPLING
        self._mel = torch.cat((self._mel, mel))[-context:] if context else self._mel
        drop = self._made - self._mel.shape[0] // UPSAMPLING - self._first
        self._codes, self._first = self._codes[drop:], self._first + drop

    def _chunk(self) -> int:
        return self._dials.chunk_frames[min(self._chunks, len(self._dials.chunk_frames) - 1)]


class InfillDecoder:
    """A full-attention Voicebox with its dials, for any number of utterances at once."""

    def __init__(self, voicebox: Voicebox, dials: InfillDials, seed: int = 0, recorder: Recorder | None = None) -> None:
        if voicebox.unmerge is not None or voicebox.config.chunk_frames:
            raise ValueError("chunk-causal weights stream exactly; use FlowDecoder for them")
        self.voicebox, self.dials = voicebox, dials
        weight = voicebox.cond_emb.weight
        noise = torch.randn(NOISE_FRAMES, MEL_BINS, generator=torch.Generator().manual_seed(seed))
        self.noise = noise.to(weight.device)
        self._remembered: WeakKeyDictionary[PromptVoice, Memory] = WeakKeyDictionary()
        self._longest_prompt = 0
        self.recorder: Recorder = recorder or Plain()
        self._batches: dict[WindowShape, WindowBatch] = {}
        with torch.inference_mode():
            periods = -(-dials.steps // dials.prefix_every)
            every = voicebox.diff_estimator.step_gains(dials.steps)
            padded = torch.cat((every, every[-1:].expand(periods * dials.prefix_every - dials.steps, -1, -1)))
            self._gains = padded.unflatten(0, (periods, dials.prefix_every))

    @torch.inference_mode()
    def begin(self, prompt: PromptVoice | None) -> InfillStream:
        """A new utterance; without a prompt the weights choose a speaker.

        The first utterance of a prompt takes the time to remember it.
        """
        weight = self.voicebox.cond_emb.weight
        if prompt is None:
            nothing = torch.zeros(0, dtype=torch.int64, device=weight.device)
            prompt = PromptVoice(nothing, torch.zeros(0, MEL_BINS))
        voice = PromptVoice(prompt.codes.to(weight.device), prompt.mel.to(weight.device, torch.float32))
        self._longest_prompt = max(self._longest_prompt, len(prompt.mel))
        if prompt not in self._remembered:
            self._remembered[prompt] = self._remember(voice)
        remembered = self._remembered[prompt]
        return InfillStream(voice, remembered, self.dials, self.voicebox.config.codebook_size, self.noise)

    def _remember(self, voice: PromptVoice) -> Memory:
        """Keys and values of the prompt at every step that makes the prefix anew; of no frames unless it is kept."""
        made: list[Memory] = []
        nothing = self._room(-(-self.dials.steps // self.dials.prefix_every), 0)
        if self.dials.keep_prompt and len(voice.codes):
            again = voice.codes[:REHEARSED_FRAMES]
            noise = self.noise[: UPSAMPLING * len(again)]
            self._solve([Window(nothing, torch.cat((voice.codes, again)), voice.mel, noise, len(again))], made)
        return (torch.cat([keys for keys, _ in made]), torch.cat([values for _, values in made])) if made else nothing

    @torch.inference_mode()
    def render(self, streams: Sequence[InfillStream]) -> list[Chunk]:
        """The next chunk of each stream (all of them ready); a stream gives what it gives alone."""
        windows = [stream.window() for stream in streams]
        together = MOST_ROWS if self.recorder.fixed else len(windows)
        targets: list[Tensor] = []
        for start in range(0, len(windows), together):
            targets += self._solve(windows[start : start + together])
        chunks = []
        for stream, window, target in zip(streams, windows, targets, strict=True):
            kept = window.kept * UPSAMPLING
            chunks.append(Chunk(target[:kept], target[kept:]))
            stream.accept(target[:kept])
        return chunks

    def _solve(self, windows: Sequence[Window], made: list[Memory] | None = None) -> list[Tensor]:
        """The target of every window by Euler steps. `made` is given the prefixes' keys and values of every period."""
        recorder = self.recorder if made is None else Plain()  # a prompt is remembered once, in a shape of its own
        batch = self._filled(windows, recorder)
        shape = batch.shape
        recorder.run((shape, "prepare"), batch.prepare)
        for number, guided in enumerate(self._guided):
            for row, window in enumerate(windows):
                for own, kept in zip((batch.keys, batch.values), window.prompt, strict=True):
                    own[row, :, :, : kept.shape[3]] = kept[number]
            recorder.run((shape, guided), self._period(batch, guided))
            if made is not None:
                held = slice(shape.prompt, shape.prompt + shape.prefix)
                made.append((batch.keys[:, :, :, held].clone(), batch.values[:, :, :, held].clone()))
        return [row[: window.noise.shape[0]].clone() for row, window in zip(batch.x, windows, strict=False)]

    @property
    def _guided(self) -> list[tuple[bool, ...]]:
        """Period by period, which of its steps are guided."""
        dials = self.dials
        steps = [dials.guidance > 0 and step < dials.guided_steps for step in range(dials.steps)]
        return [tuple(steps[at : at + dials.prefix_every]) for at in range(0, dials.steps, dials.prefix_every)]

    def _period(self, batch: WindowBatch, guided: tuple[bool, ...]) -> Callable[[], None]:
        guidance = Guidance(self.dials.guidance, self.dials.rescale)
        return partial(batch.period, self._gains, guided, guidance, self.dials.steps)

    def _filled(self, windows: Sequence[Window], recorder: Recorder) -> WindowBatch:
        """The windows as rows; of fixed shapes, the places are those of the next larger one."""
        prompt = [window.prompt[0].shape[3] for window in windows]
        prefix = [window.prefix.shape[0] for window in windows]
        target = [window.noise.shape[0] for window in windows]
        shape = WindowShape(len(windows), max(prompt), max(prefix), max(target))
        batch = self._batch(self._fixed(shape)) if recorder.fixed else WindowBatch(self.voicebox, shape)
        held = batch.shape.prefix // UPSAMPLING
        for place in (batch.number, batch.clean, batch.x):  # of what was there before, nothing may grow
            place.zero_()
        lengths = torch.zeros(batch.lengths.shape, dtype=torch.int64)
        lengths[:, : len(windows)] = torch.tensor([prompt, prefix, target])
        batch.lengths.copy_(lengths, non_blocking=True)
        for row, window in enumerate(windows):
            kept = window.prefix.shape[0]
            batch.clean[row, :kept] = window.prefix
            batch.x[row, : window.noise.shape[0]] = window.noise
            codes = window.codes[: kept // UPSAMPLING], window.codes[kept // UPSAMPLING :]
            batch.codes[row, : len(codes[0])] = codes[0]
            batch.codes[row, held : held + len(codes[1])] = codes[1]
        return batch

    def _fixed(self, shape: WindowShape) -> WindowShape:
        """The next larger of few shapes."""
        dials = self.dials
        targets = [UPSAMPLING * (chunk + dials.look_ahead_frames) for chunk in dials.chunk_frames]
        context = UPSAMPLING * dials.context_frames + (0 if dials.keep_prompt else self._longest_prompt)
        return WindowShape(
            1 << (shape.rows - 1).bit_length(),
            max(shape.prompt, self._longest_prompt if dials.keep_prompt else 0),
            max(shape.prefix, context),
            min((known for known in targets if known >= shape.target), default=shape.target),
        )

    def _batch(self, shape: WindowShape) -> WindowBatch:
        """The batch of a fixed shape, made ready when it is first asked for."""
        if shape not in self._batches:
            batch = self._batches[shape] = WindowBatch(self.voicebox, shape)
            self.recorder.ready((shape, "prepare"), batch.prepare)
            for guided in dict.fromkeys(self._guided):
                batch.number.zero_()
                self.recorder.ready((shape, guided), self._period(batch, guided))
        return self._batches[shape]

    @torch.inference_mode()
    def warm_up(self, rows: int) -> None:
        """Makes ready what up to so many utterances at once can ask for; prompts are known by then."""
        if self.recorder.fixed:
            most = min(rows, MOST_ROWS) - 1
            for count in sorted((1 << power for power in range(most.bit_length() + 1)), reverse=True):
                for chunk in self.dials.chunk_frames:
                    target = UPSAMPLING * (chunk + self.dials.look_ahead_frames)
                    self._batch(self._fixed(WindowShape(count, 0, 0, target)))

    def _room(self, rows: int, frames: int) -> Memory:
        """Room for the keys and values of so many frames."""
        config, weight = self.voicebox.config, self.voicebox.cond_emb.weight
        shape = (rows, config.num_layers, config.num_heads, frames, config.hidden // config.num_heads)
        return weight.new_zeros(shape), weight.new_zeros(shape)
