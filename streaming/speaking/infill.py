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

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kernels.rope import Rotation
from streaming.speaking.flow import Memory, Voicebox
from streaming.speaking.flow_decoder import check_code
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.unmerge import UPSAMPLING

NOISE_FRAMES = 1024
REHEARSED_FRAMES = 12
"""12.5 Hz: how much a prompt is followed by while its keys and values are made. With nothing behind it they would be
twice as far from those of real answers; more than this changes little."""


@dataclass(frozen=True)
class InfillDials:
    """Steps and guidance as in `Voicebox.solve`; frames are 12.5 Hz.

    `chunk_frames` are the lengths of the first chunks, the last repeats: short ones first, so that sound comes soon,
    each at most twice the one before, which is heard while it is made.
    `context_frames` of generated mel are kept as prefix, besides the prompt. The prefix goes through the network at
    every `prefix_every`-th step, the prompt with it unless `keep_prompt`; 1 and False are the official decode.
    """

    steps: int = 15
    guidance: float = 2.0
    rescale: float = 0.75
    chunk_frames: tuple[int, ...] = (4, 8, 16)
    look_ahead_frames: int = 4
    context_frames: int = 25
    prefix_every: int = 3
    keep_prompt: bool = True

    def __post_init__(self) -> None:
        if not self.chunk_frames or min(self.chunk_frames) < 1:
            raise ValueError(f"chunk_frames must be lengths of at least 1 frame, not {self.chunk_frames}")
        if self.steps < 1 or self.look_ahead_frames < 0 or self.context_frames < 0:
            raise ValueError("steps must be at least 1, look-ahead and context at least 0 frames")
        if self.prefix_every < 1:
            raise ValueError(f"prefix_every must be at least 1 step, not {self.prefix_every}")


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


@dataclass(frozen=True)
class _Given:
    """What a pass through the network is given besides mel and time; mask as for `attend`."""

    condition: Tensor
    rotation: Rotation
    mask: Tensor | None


@dataclass(frozen=True)
class _Batch:
    """Windows as rows [prompt, padded | prefix, padded | target, padded], the prompt in the memory alone.

    clean [rows, prefix, 128], noise [rows, target, 128], real bool [rows, target]. Passes: over prefix and target;
    over the target without a prefix, as guidance asks for; and over the target with the prefix in the memory, below
    which stand the bare rows again if there is guidance.
    """

    clean: Tensor
    noise: Tensor
    real: Tensor
    prompt_frames: int
    whole: _Given
    bare: _Given
    between: _Given


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

    def __init__(self, voicebox: Voicebox, dials: InfillDials, seed: int = 0) -> None:
        if voicebox.unmerge is not None or voicebox.config.chunk_frames:
            raise ValueError("chunk-causal weights stream exactly; use FlowDecoder for them")
        self.voicebox, self.dials = voicebox, dials
        weight = voicebox.cond_emb.weight
        noise = torch.randn(NOISE_FRAMES, MEL_BINS, generator=torch.Generator().manual_seed(seed))
        self.noise = noise.to(weight.device)
        self._remembered: WeakKeyDictionary[PromptVoice, Memory] = WeakKeyDictionary()

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
        chunks = []
        for stream, window, target in zip(streams, windows, self._solve(windows), strict=True):
            kept = window.kept * UPSAMPLING
            chunks.append(Chunk(target[:kept], target[kept:]))
            stream.accept(target[:kept])
        return chunks

    def _solve(self, windows: Sequence[Window], made: list[Memory] | None = None) -> list[Tensor]:
        """The target of every window by Euler steps. `made` is given the prefixes' keys and values at every step that
        makes them."""
        dials, network = self.dials, self.voicebox.diff_estimator
        batch, rows, guided = self._batch(windows), len(windows), dials.guidance > 0
        remembered, held = batch.prompt_frames, batch.clean.shape[1]
        # Rows of the bare passes, which see no prefix, stand below the others.
        memory = self._room(2 * rows if guided else rows, remembered + held + batch.noise.shape[1])
        given_memory = (memory[0][:rows], memory[1][:rows])
        x = batch.noise
        for step, gains in enumerate(network.step_gains(dials.steps).unsqueeze(1)):
            if step % dials.prefix_every == 0:
                for row, window in enumerate(windows):
                    for own, kept in zip(memory, window.prompt, strict=True):
                        own[row, :, :, : kept.shape[3]] = kept[step // dials.prefix_every]
                whole = torch.cat((batch.clean, x), dim=1)
                velocity = self._pass(whole, gains, batch.whole, given_memory)[:, held:]
                if made is not None:
                    keys, values = (part[:rows, :, :, remembered : remembered + held].clone() for part in memory)
                    made.append((keys, values))
                bare = self._pass(x, gains, batch.bare, None) if guided else velocity
            elif guided:
                velocity, bare = self._pass(x.repeat(2, 1, 1), gains, batch.between, memory).chunk(2)
            else:
                velocity = bare = self._pass(x, gains, batch.between, memory)
            if guided:
                further = velocity + dials.guidance * (velocity - bare)
                ratio = _spread(velocity, batch.real) / _spread(further, batch.real)
                velocity = dials.rescale * further * ratio + (1 - dials.rescale) * further
            x = x + velocity / dials.steps
        return [row[: window.noise.shape[0]] for row, window in zip(x, windows, strict=True)]

    def _pass(self, x: Tensor, gains: Tensor, given: _Given, memory: Memory | None) -> Tensor:
        """Velocity in float32, like all that the steps add up; only the network's products are in its own type."""
        network, dtype = self.voicebox.diff_estimator, self.voicebox.cond_emb.weight.dtype
        return network.with_cache(x.to(dtype), gains, given.condition, given.rotation, given.mask, memory).float()

    def _batch(self, windows: Sequence[Window]) -> _Batch:
        network, hidden = self.voicebox.diff_estimator, self.voicebox.config.hidden
        prompt = [window.prompt[0].shape[3] for window in windows]
        prefix = [window.prefix.shape[0] for window in windows]
        target = [window.noise.shape[0] for window in windows]
        device, dtype = self.noise.device, self.voicebox.cond_emb.weight.dtype
        prompt_real, prefix_real, real = (_real(part, device) for part in (prompt, prefix, target))
        held, frames = prefix_real.shape[1], real.shape[1]
        own = torch.arange(frames, device=device)
        before = torch.tensor([prompt, prefix], device=device)[:, :, None]
        positions = torch.cat((before[0] + torch.arange(held, device=device), before.sum(0) + own), 1)
        condition = torch.cat(
            (
                self._condition([w.codes[: n // UPSAMPLING] for w, n in zip(windows, prefix, strict=True)]),
                self._condition([w.codes[n // UPSAMPLING :] for w, n in zip(windows, prefix, strict=True)]),
            ),
            1,
        )
        seen = torch.cat((prompt_real, prefix_real, real), 1)
        whole = _Given(condition, network.rotation(positions, dtype), self.voicebox.mask(seen))
        nothing = network.cond_mlp(condition.new_zeros(1, 1, hidden)).expand(len(windows), frames, -1)
        bare_rotation = network.rotation(own.expand(len(windows), -1), dtype)
        bare = _Given(nothing, bare_rotation, self.voicebox.mask(real))
        between = _Given(condition[:, held:], _target_of(whole.rotation, held), whole.mask)
        if self.dials.guidance > 0:
            hidden_before = torch.cat((torch.zeros_like(seen[:, :-frames]), real), 1)
            between = _Given(
                torch.cat((between.condition, nothing)),
                _stacked(between.rotation, bare_rotation),
                self.voicebox.mask(torch.cat((seen, hidden_before))),
            )
        pad = torch.nn.utils.rnn.pad_sequence
        return _Batch(
            clean=pad([window.prefix for window in windows], batch_first=True),
            noise=pad([window.noise for window in windows], batch_first=True),
            real=real,
            prompt_frames=prompt_real.shape[1],
            whole=whole,
            bare=bare,
            between=between,
        )

    def _condition(self, codes: list[Tensor]) -> Tensor:
        """Embedded condition [rows, 4 * longest, hidden] of rows of codes."""
        padded = torch.nn.utils.rnn.pad_sequence(codes, batch_first=True)
        vectors = self.voicebox.cond_emb(padded).repeat_interleave(UPSAMPLING, dim=1)
        return self.voicebox.diff_estimator.cond_mlp(vectors)  # type: ignore[no-any-return]

    def _room(self, rows: int, frames: int) -> Memory:
        """Room for the keys and values of so many frames."""
        config = self.voicebox.config
        shape = (rows, config.num_layers, config.num_heads, frames, config.hidden // config.num_heads)
        weight = self.voicebox.cond_emb.weight
        return weight.new_zeros(shape), weight.new_zeros(shape)


def _target_of(rotation: Rotation, held: int) -> Rotation:
    return rotation[0][:, :, held:], rotation[1][:, :, held:]


def _stacked(rotation: Rotation, below: Rotation) -> Rotation:
    return torch.cat((rotation[0], below[0])), torch.cat((rotation[1], below[1]))


def _real(lengths: Sequence[int], device: torch.device) -> Tensor:
    """bool [rows, longest]: which places of padded rows are filled."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


def _spread(x: Tensor, real: Tensor) -> Tensor:
    """Standard deviation over the real frames of each row, unbiased: [rows, 1, 1]."""
    weight = real[:, :, None].to(x.dtype)
    count = weight.sum((1, 2), keepdim=True) * x.shape[2]
    mean = (x * weight).sum((1, 2), keepdim=True) / count
    square = ((x - mean).square() * weight).sum((1, 2), keepdim=True)
    return (square / (count - 1)).sqrt()
