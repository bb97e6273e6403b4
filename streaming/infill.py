"""Streaming with flow decoders that see everything: each chunk is filled in behind clean mel, with a little look-ahead.

The official Voicebox was trained to continue a clean prefix. A chunk's window is

    prompt (fixed) | newest generated mel (bounded) | the chunk | look-ahead

of which prompt and generated mel are given clean, the rest starts as noise and only the chunk is kept. The look-ahead
is made again with the next chunk, and serves the vocoder as its own look-ahead until then. Noise belongs to the
absolute frame, so that both times start from the same. With one chunk as long as the utterance this is the official
decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming.flow import Voicebox
from streaming.flow_decoder import check_code
from streaming.mel24k import MEL_BINS
from streaming.unmerge import UPSAMPLING

NOISE_FRAMES = 1024


@dataclass(frozen=True)
class InfillDials:
    """Steps and guidance as in `Voicebox.solve`; frames are 12.5 Hz.

    `chunk_frames` are the lengths of the first chunks, the last repeats: short ones first, so that sound comes soon.
    `context_frames` of generated mel are kept as prefix, besides the prompt.
    """

    steps: int = 15
    guidance: float = 2.0
    rescale: float = 0.75
    chunk_frames: tuple[int, ...] = (4, 8, 16)
    look_ahead_frames: int = 4
    context_frames: int = 25

    def __post_init__(self) -> None:
        if not self.chunk_frames or min(self.chunk_frames) < 1:
            raise ValueError(f"chunk_frames must be lengths of at least 1 frame, not {self.chunk_frames}")
        if self.steps < 1 or self.look_ahead_frames < 0 or self.context_frames < 0:
            raise ValueError("steps must be at least 1, look-ahead and context at least 0 frames")


@dataclass(frozen=True)
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

    codes int64 [prefix + target] at 12.5 Hz, prefix mel [4 prefix, 128], noise [4 target, 128].
    """

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

    def __init__(self, prompt: PromptVoice, dials: InfillDials, codebook_size: int, noise: Tensor) -> None:
        self._prompt, self._dials, self._codebook_size, self._noise = prompt, dials, codebook_size, noise
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
        return Window(
            torch.cat((self._prompt.codes, own)),
            torch.cat((self._prompt.mel, self._mel)),
            self._noise[frame % NOISE_FRAMES],
            kept,
        )

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
        self.noise = noise.to(weight)

    def begin(self, prompt: PromptVoice | None) -> InfillStream:
        """A new utterance; without a prompt the weights choose a speaker."""
        weight = self.voicebox.cond_emb.weight
        if prompt is None:
            nothing = torch.zeros(0, dtype=torch.int64, device=weight.device)
            voice = PromptVoice(nothing, weight.new_zeros(0, MEL_BINS))
        else:
            voice = PromptVoice(prompt.codes.to(weight.device), prompt.mel.to(weight))
        return InfillStream(voice, self.dials, self.voicebox.config.codebook_size, self.noise)

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

    def _solve(self, windows: Sequence[Window]) -> list[Tensor]:
        """The target of every window by Euler steps, rows padded on the right."""
        dials, network = self.dials, self.voicebox.diff_estimator
        prefix = [window.prefix.shape[0] for window in windows]
        target = [window.noise.shape[0] for window in windows]
        device = self.noise.device
        # [rows, frames] of the conditional pass (prefix and target) and of the bare one (target alone)
        whole_real = _real([p + t for p, t in zip(prefix, target, strict=True)], device)
        bare_real = _real(target, device)
        # Where each row's target stands in its sequence; past its end it points at padding, which nobody reads.
        place = torch.tensor(prefix, device=device)[:, None] + torch.arange(bare_real.shape[1], device=device)
        place = place.clamp_max(whole_real.shape[1] - 1)[:, :, None].expand(-1, -1, MEL_BINS)
        codes = torch.nn.utils.rnn.pad_sequence([window.codes for window in windows], batch_first=True)
        condition = self.voicebox.cond_emb(codes).repeat_interleave(UPSAMPLING, dim=1)
        clean = torch.nn.utils.rnn.pad_sequence(
            [torch.cat((window.prefix, torch.zeros_like(window.noise))) for window in windows], batch_first=True
        )
        x = torch.nn.utils.rnn.pad_sequence([window.noise for window in windows], batch_first=True)
        whole_mask, bare_mask = self.voicebox.mask(whole_real), self.voicebox.mask(bare_real)
        nothing = condition.new_zeros(*bare_real.shape, condition.shape[2])
        for step in range(dials.steps):
            t = torch.full((len(windows),), (step + 0.5) / dials.steps, device=device)
            noisy = clean.clone()
            for row, (start, count) in enumerate(zip(prefix, target, strict=True)):
                noisy[row, start : start + count] = x[row, :count]
            velocity = network(noisy, t, condition, whole_mask).gather(1, place)
            if dials.guidance > 0:
                bare = network(x, t, nothing, bare_mask)
                guided = velocity + dials.guidance * (velocity - bare)
                ratio = _spread(velocity, bare_real) / _spread(guided, bare_real)
                velocity = dials.rescale * guided * ratio + (1 - dials.rescale) * guided
            x = x + velocity / dials.steps
        return [row[:frames] for row, frames in zip(x, target, strict=True)]


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
