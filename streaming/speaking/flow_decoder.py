"""The embedded flow decoder chunk by chunk: duration-tagged codes in, 50 Hz mel out, equal to the whole at once.

`CodeFrames` collects one session's codes and cuts them into chunks as a `ChunkPlan` says; `FlowDecoder.step` turns one
or several chunks of every row into mel. They come with their own frames and the network's look-ahead of the next ones;
what the plan hides of these, and what is missing at the end of speech, is marked as not real.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from streaming.layers.module import StreamingModule
from streaming.speaking.chunk_plan import ChunkPlan, Layout
from streaming.speaking.flow import Voicebox
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.unmerge import MAX_DURATION_FRAMES, UPSAMPLING, Frames, UnmergeState

_NOISE_FRAMES = 512


class SpeechCodeError(ValueError):
    """A code or a duration outside what the decoder knows."""


def check_code(code: int, duration_frames: int, codebook_size: int) -> None:
    """Raises SpeechCodeError unless a code of this book may last so many 12.5 Hz frames."""
    if not 0 <= code < codebook_size:
        raise SpeechCodeError(f"speech code {code} is not in 0 to {codebook_size - 1}")
    if not 1 <= duration_frames <= MAX_DURATION_FRAMES:
        raise SpeechCodeError(f"a speech code lasts 1 to {MAX_DURATION_FRAMES} frames, not {duration_frames}")


@dataclass(frozen=True)
class FlowDials:
    """Euler steps (one state is made for one number of steps) and how much of the unit noise to start from."""

    steps: int = 2
    noise_scale: float = 0.3


@dataclass(frozen=True)
class FlowChunk:
    """Chunks and the look-ahead behind them, [rows, chunks + look-ahead] each: codes, position, duration int64; real
    bool. `layout` [rows, chunks] says where each chunk begins and ends and how far it looks."""

    codes: Tensor
    position: Tensor
    duration: Tensor
    real: Tensor
    layout: Layout

    @staticmethod
    def stack(rows: list[FlowChunk]) -> FlowChunk:
        """Equally long chunks of several sessions as the rows of one."""
        parts = [(row.codes, row.position, row.duration, row.real) for row in rows]
        layouts = [(row.layout.start, row.layout.end, row.layout.visible) for row in rows]
        layout = Layout(*(torch.cat(column) for column in zip(*layouts, strict=True)))
        codes, position, duration, real = (torch.cat(column) for column in zip(*parts, strict=True))
        return FlowChunk(codes, position, duration, real, layout)

    def real_frames(self, look_ahead_frames: int) -> list[int]:
        """12.5 Hz frames of each row that the chunks themselves render; four mel frames come of each."""
        return [int(n) for n in self.real[:, : self.real.shape[1] - look_ahead_frames].sum(1)]


class CodeFrames:
    """One session's codes on their way into chunks; behind them is room for the network's `look_ahead_frames`.

    Where `hurried`, it takes the chunks that are complete instead of waiting for as many as the plan takes together;
    never more than `most_chunks`, and at first no fewer than `first_chunks`.
    """

    def __init__(self, plan: ChunkPlan, look_ahead_frames: int, codebook_size: int) -> None:
        self.plan, self.look_ahead_frames, self.codebook_size = plan, look_ahead_frames, codebook_size
        self.hurried = False
        self.most_chunks = max(plan.together)
        self.first_chunks = 1
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._chunks = self._calls = 0
        self._ended = False

    def push(self, code: int, duration_frames: int) -> None:
        """The next code. Raises SpeechCodeError."""
        check_code(code, duration_frames, self.codebook_size)
        self._waiting.extend((code, place, duration_frames) for place in range(duration_frames))

    def end(self) -> None:
        """No more codes will come."""
        self._ended = True

    @property
    def ready(self) -> bool:
        """Whether `take` has something."""
        if self._ended:
            return bool(self._waiting)
        return self._complete(self._lengths())

    @property
    def drained(self) -> bool:
        """Whether nothing will come any more."""
        return self._ended and not self._waiting

    @property
    def next_frames(self) -> int:
        """12.5 Hz frames that the next chunks have together, if codes do not end before."""
        return sum(self._lengths())

    @property
    def cuts(self) -> list[int]:
        """12.5 Hz frames that the next chunks could have together if they were fewer, the fewest first."""
        lengths = self._lengths()
        sums = list(accumulate(lengths[:-1]))[self._fewest - 1 :]
        return [frames for frames in sums if frames < len(self._waiting)]

    def cut(self, frames: int) -> None:
        """The next chunks have no more frames than that, one of the `cuts`: `most_chunks` says so."""
        self.most_chunks = 1 + list(accumulate(self._lengths())).index(frames)

    def take(self) -> FlowChunk | None:
        """The next chunks as one row, or None while codes are missing or nothing is left."""
        if not self.ready:
            return None
        lengths = self._lengths()
        while len(lengths) > 1 and sum(lengths[:-1]) >= len(self._waiting):
            lengths.pop()
        kept = sum(lengths)
        rows = list(self._waiting)[: kept + self.plan.ahead(self._chunks + len(lengths) - 1)]
        for _ in range(min(kept, len(self._waiting))):
            self._waiting.popleft()
        layout = self.plan.layout(kept, self._chunks)
        self._chunks += len(lengths)
        self._calls += 1
        width = kept + self.look_ahead_frames
        table = torch.zeros(3, 1, width, dtype=torch.int64)
        table[:, 0, : len(rows)] = torch.tensor(rows).T
        real = (torch.arange(width) < len(rows)).unsqueeze(0)
        return FlowChunk(table[0], table[1], table[2], real, layout.as_row())

    @property
    def _fewest(self) -> int:
        """Chunks that the next call makes at least."""
        return 1 if self._calls else self.first_chunks

    def _lengths(self) -> list[int]:
        """12.5 Hz frames of each chunk of the next call."""
        chunks = min(self.plan.chunks(self._calls), self.most_chunks)
        if not self._calls:
            chunks = max(chunks, self.first_chunks)
        lengths = [self.plan.length(self._chunks + index) for index in range(chunks)]
        while self.hurried and not self._ended and len(lengths) > self._fewest and not self._complete(lengths):
            lengths.pop()
        return lengths

    def _complete(self, lengths: list[int]) -> bool:
        """Whether the next chunks, so long, and all that the last of them sees are there."""
        return len(self._waiting) >= sum(lengths) + self.plan.ahead(self._chunks + len(lengths) - 1)


@dataclass
class FlowState:
    frames: Tensor  # [rows] int64, mel frames made
    unmerge: UnmergeState
    keys: Tensor  # [rows, steps, layers, heads, context, head_dim], newest last, rotated
    values: Tensor
    gains: Tensor  # [rows, steps, norms, hidden], what the Euler times make of the norms


class FlowDecoder(StreamingModule[FlowState]):
    """A chunk-causal Voicebox with its dials. `step` gives [rows, 4 * frames of the chunk, 128].

    Chunks follow `plan`, uniform ones with the whole look-ahead by default. Raises ValueError.
    """

    noise: Tensor

    def __init__(self, voicebox: Voicebox, dials: FlowDials, plan: ChunkPlan | None = None) -> None:
        super().__init__()
        config = voicebox.config
        if voicebox.unmerge is None or config.chunk_frames == 0 or config.chunk_frames % UPSAMPLING:
            raise ValueError(
                f"streaming needs weights with unmerge and with chunk_frames a multiple of {UPSAMPLING}, "
                f"not {config.chunk_frames}"
            )
        self.voicebox, self.unmerge, self.dials = voicebox, voicebox.unmerge, dials
        self.plan = plan or voicebox.plan()
        self.look_ahead_frames = voicebox.unmerge.config.look_ahead_frames
        if max(self.plan.look_ahead) > self.look_ahead_frames:
            raise ValueError(f"these weights look {self.look_ahead_frames} frames ahead, not {self.plan.look_ahead}")
        self.context = config.context_chunks * config.chunk_frames
        # Noise belongs to the absolute frame, so that neither chunking nor neighbours can change it.
        noise = torch.randn(_NOISE_FRAMES, MEL_BINS, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise, persistent=False)

    def frames(self) -> CodeFrames:
        """An empty collector for a new utterance."""
        return CodeFrames(self.plan, self.look_ahead_frames, self.voicebox.config.codebook_size)

    def forward(self, codes: Tensor, durations: Tensor) -> Tensor:
        """codes and durations int64 [batch, G], durations 0 where absent -> mel [batch, 4 * frames, 128]."""
        condition = self.voicebox.condition(codes, durations, self.plan)
        length = durations.sum(1, keepdim=True) * UPSAMPLING
        index = torch.arange(condition.shape[1], device=condition.device)
        start = self.noise[index % _NOISE_FRAMES].expand(condition.shape[0], -1, -1) * self.dials.noise_scale
        return self.voicebox.solve(
            condition, start.to(condition.dtype), steps=self.dials.steps, real=index < length, plan=self.plan
        )

    @torch.no_grad()
    def initial_state(self, batch: int) -> FlowState:
        config, weight = self.voicebox.config, self.voicebox.cond_emb.weight
        head_dim = config.hidden // config.num_heads
        shape = (batch, self.dials.steps, config.num_layers, config.num_heads, self.context, head_dim)
        return FlowState(
            torch.zeros(batch, dtype=torch.int64, device=weight.device),
            self.unmerge.initial_state(batch),
            weight.new_zeros(shape),
            weight.new_zeros(shape),
            self.voicebox.diff_estimator.step_gains(self.dials.steps).repeat(batch, 1, 1, 1),
        )

    def step(self, x: FlowChunk, state: FlowState) -> tuple[Tensor, FlowState]:
        """Mel of the chunks; of a last one only the first 4 * real frames mean anything."""
        vectors = self.voicebox.cond_emb(x.codes)
        frames_in = Frames(vectors, x.position, x.duration, x.real)
        condition, unmerge = self.unmerge.step(frames_in, state.unmerge, layout=x.layout)
        frames = condition.shape[1]
        mask = self._mask(x, state.frames)
        frame = state.frames[:, None] + torch.arange(frames, device=vectors.device)
        mel = (self.noise[frame % _NOISE_FRAMES] * self.dials.noise_scale).to(vectors.dtype)
        keys, values = self._grown(state.keys, frames), self._grown(state.values, frames)
        network, steps = self.voicebox.diff_estimator, self.dials.steps
        given, rotation = network.cond_mlp(condition), network.rotation(frame, vectors.dtype)
        for index in range(steps):
            memory = keys[:, index], values[:, index]
            velocity = network.with_cache(mel, state.gains[:, index], given, rotation, mask, memory)
            mel = mel + velocity / steps
        new = FlowState(state.frames + frames, unmerge, keys[..., frames:, :], values[..., frames:, :], state.gains)
        return mel, new

    def _grown(self, past: Tensor, frames: int) -> Tensor:
        """The cache with room for `frames` more at its end; the one copy of it that a step makes."""
        grown = past.new_empty(*past.shape[:4], self.context + frames, past.shape[5])
        grown[..., : self.context, :] = past
        return grown

    def _mask(self, x: FlowChunk, seen: Tensor) -> Tensor:
        """[rows, 1, frames, context + frames]: of cached frames those that exist, of new ones the real ones, both as
        far as the chunk of a frame reaches."""
        start, end = (
            edge.to(seen.device).repeat_interleave(UPSAMPLING, dim=1)[:, :, None] * UPSAMPLING
            for edge in (x.layout.start, x.layout.end)
        )
        frames = start.shape[1]
        real = x.real[:, : frames // UPSAMPLING].repeat_interleave(UPSAMPLING, dim=1)
        key = torch.arange(-self.context, frames, device=seen.device)
        exists = torch.cat((-key[: self.context] <= seen[:, None], real), dim=1)
        within = (key >= start - self.context) & (key < end)
        own = key == torch.arange(frames, device=seen.device)[:, None]
        return (within & exists[:, None, :] | own).unsqueeze(1)
