"""Keys and values of many sequences in pages of one pool, with tables and lengths where the networks are.

The host plans: it gives pages to a sequence (`reserve`), cuts it (`truncate`), shares it (`publish`, `adopt`). The
device steps: `decode` finds the places of one new position of each row from tables and lengths alone, so that a
recorded step can be played again for other rows. `prefill` plans further positions of some sequences, which the host
knows.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.block_pool import SCRATCH, BlockPool, CacheFullError


@dataclass(frozen=True)
class PrefillPlan:
    """Where new positions of some sequences go, packed one behind the other.

    starts, counts: positions held before, and new, of each sequence; where int64 [tokens]: places in the pool;
    positions int64 [tokens]; offsets int32 [sequences + 1]: where each sequence's tokens begin; ends int32
    [sequences]: positions held afterwards; table int32 [sequences, pages].
    """

    sequences: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    where: Tensor
    positions: Tensor
    offsets: Tensor
    ends: Tensor
    table: Tensor


@dataclass(frozen=True)
class Decode:
    """Where one new position of each row goes.

    sequence, where int64 [rows]; positions, ends int64 [rows]: held before and with the new one; table int32
    [rows, pages]. For back ends that copy pages together: flat int32 [rows * pages], the tables in one row, and mask
    [rows, 1, 1, pages * page] to be added to scores; for the others short_ends int32 [rows], the ends as their kernels
    want them. in_place: first page, and positions with the new one, where a single row's pages lie side by side and the
    host knows it.
    """

    sequence: Tensor
    where: Tensor
    positions: Tensor
    ends: Tensor
    table: Tensor
    flat: Tensor | None
    mask: Tensor | None
    short_ends: Tensor | None
    in_place: tuple[int, int] | None


class PagedCache:
    """values [layers, keys and values, pages, page, kv_heads, head_dim]; a CPU has memory only where it is written.

    page: positions of one page; held: positions of each sequence, as far as the host knows.
    """

    def __init__(
        self,
        layers: int,
        sequences: int,
        max_positions: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        page: int = 64,
        pages: int | None = None,
    ) -> None:
        self.page, self.max_positions = page, max_positions
        self.pages_each = -(-max_positions // page)
        self.pool = BlockPool(1 + sequences * self.pages_each if pages is None else pages)
        device = torch.device(device)
        # Masked-out positions must hold finite numbers: a NaN times a zero weight would still be NaN.
        self.values = _lazy_zeros((layers, 2, self.pool.pages, page, kv_heads, head_dim), dtype, device)
        self.layers = list(self.values.unbind(0))
        self._flat = [layer.view(2, -1, kv_heads, head_dim).unbind(0) for layer in self.layers]
        self.idle = sequences
        """The sequence of rows that do nothing; all its pages are the scratch page."""
        self.tables = torch.zeros(sequences + 1, self.pages_each, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(sequences + 1, dtype=torch.int64, device=device)
        # Of every position, where in the pool it is: steps look it up instead of computing it from the table.
        self.places = torch.zeros(sequences + 1, self.pages_each * page, dtype=torch.int64, device=device)
        self._keys = torch.arange(self.pages_each * page, device=device)
        self._seen = torch.zeros(self.pages_each * page, dtype=dtype, device=device)
        self.held = [0] * sequences
        self._pages: list[list[int]] = [[] for _ in range(sequences)]

    # --- the host's part ---

    def reserve(self, sequence: int, positions: int) -> None:
        """Gives the sequence pages for so many positions, of its own where it will write. Raises `CacheFullError`."""
        if positions > self.max_positions:
            raise CacheFullError(
                f"the conversation needs {positions} positions but a slot holds {self.max_positions}; start a new one"
            )
        pages, before = self._pages[sequence], list(self._pages[sequence])
        first = self.held[sequence] // self.page
        for index in range(first, min(len(pages), -(-positions // self.page))):
            if not self.pool.is_own(pages[index]):
                own = self.pool.take()
                self.values[:, :, own] = self.values[:, :, pages[index]]
                self.pool.release(pages[index])
                pages[index] = own
        while len(pages) * self.page < positions:
            # Side by side wherever possible, so that a row alone can be read in place.
            pages.append(self.pool.take(1 + sequence * self.pages_each + len(pages)))
        if pages != before:
            self._tell(sequence)

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets everything from position `length` on, and pages reserved beyond it."""
        if not 0 <= length <= self.held[sequence]:
            raise ValueError(f"sequence {sequence} holds {self.held[sequence]} positions and cannot be cut to {length}")
        pages = self._pages[sequence]
        while len(pages) > -(-length // self.page):
            self.pool.release(pages.pop())
        self.held[sequence] = length
        self.lengths[sequence] = length

    def publish(self, sequence: int, names: Sequence[bytes]) -> None:
        """Says what the sequence's first pages hold, as far as they are full (`page_names`)."""
        for name, page in zip(names, self._pages[sequence][: self.held[sequence] // self.page], strict=False):
            self.pool.publish(name, page)

    def adopt(self, sequence: int, names: Sequence[bytes]) -> int:
        """Fills the empty sequence with published pages, as far as there are any; returns the positions it holds."""
        assert not self.held[sequence]
        self.truncate(sequence, 0)
        for name in names:
            page = self.pool.find(name)
            if page is None:
                break
            self.pool.share(page)
            self._pages[sequence].append(page)
        self.held[sequence] = len(self._pages[sequence]) * self.page
        self.lengths[sequence] = self.held[sequence]
        self._tell(sequence)
        return self.held[sequence]

    def check(self) -> None:
        """Asserts that tables, lengths and references agree; for idle moments and tests."""
        self.pool.check(self._pages)
        for sequence, (pages, held) in enumerate(zip(self._pages, self.held, strict=True)):
            assert len(pages) * self.page >= held == int(self.lengths[sequence])
            assert self.tables[sequence, : len(pages)].tolist() == pages
            first = self.places[sequence, : len(pages) * self.page : self.page]
            assert first.tolist() == [page * self.page for page in pages]

    def prefill(self, sequences: Sequence[int], counts: Sequence[int]) -> PrefillPlan:
        """Places `counts` new positions behind what `sequences` hold; `commit` when every layer has written them."""
        starts = [self.held[sequence] for sequence in sequences]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        for sequence, end in zip(sequences, ends, strict=True):
            self.reserve(sequence, end)
        positions = np.concatenate([np.arange(*span) for span in zip(starts, ends, strict=True)])
        tables = [np.array(self._pages[sequence]) for sequence in sequences]
        where = np.concatenate(
            [
                table[own // self.page] * self.page + own % self.page
                for table, own in zip(tables, np.split(positions, np.cumsum(counts)[:-1]), strict=True)
            ]
        )
        width = max(len(table) for table in tables)
        table = np.stack([np.pad(own, (0, width - len(own))) for own in tables])
        tokens = torch.from_numpy(np.stack((where, positions))).to(self.lengths.device)
        return PrefillPlan(
            tuple(sequences),
            tuple(starts),
            tuple(counts),
            tuple(tuple(self._pages[sequence]) for sequence in sequences),
            tokens[0],
            tokens[1],
            self._int32([0, *np.cumsum(counts)]),
            self._int32(ends),
            self._int32(table),
        )

    def commit(self, plan: PrefillPlan) -> None:
        """Counts the planned positions as held."""
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True):
            self.held[sequence] = start + count
            self.lengths[sequence] = start + count

    def width(self, sequences: Sequence[int]) -> int:
        """Pages that a step of these sequences looks at."""
        return max(self.held[sequence] // self.page + 1 for sequence in sequences)

    def in_place(self, sequence: int) -> tuple[int, int] | None:
        """`Decode.in_place` of a row alone."""
        pages = self._pages[sequence][: self.held[sequence] // self.page + 1]
        side_by_side = pages == list(range(pages[0], pages[0] + len(pages)))
        return (pages[0], self.held[sequence] + 1) if side_by_side else None

    # --- the device's part ---

    def decode(
        self,
        rows: Tensor,
        width: int,
        *,
        inactive: Tensor | None = None,
        masked: bool = True,
        in_place: tuple[int, int] | None = None,
    ) -> Decode:
        """The next position of the sequences rows int64 [rows], whose tables are looked at for `width` pages.

        Rows that are `inactive` bool [rows] write into the scratch page. `reserve` must have been called for all;
        `advance` when every layer has written.
        """
        sequence = rows if inactive is None else rows.masked_fill(inactive, self.idle)
        length = self.lengths.index_select(0, sequence)
        table = self.tables.index_select(0, sequence)[:, :width]
        where, ends = self.places[sequence, length], length + 1
        mask = flat = short_ends = None
        if not masked:
            short_ends = ends.to(torch.int32)
        elif in_place is None:
            keys = width * self.page
            flat = table.flatten()
            mask = self._seen[:keys].masked_fill(self._keys[:keys] > length[:, None], float("-inf"))[:, None, None]
        return Decode(sequence, where, length, ends, table, flat, mask, short_ends, in_place)

    def write(self, layer: int, where: Tensor, key: Tensor, value: Tensor) -> None:
        """Keys and values [tokens, kv_heads, head_dim] at the places where int64 [tokens]."""
        keys, values = self._flat[layer]
        keys.index_copy_(0, where, key)
        values.index_copy_(0, where, value)

    def advance(self, step: Decode) -> None:
        """Counts the new position of every row as held; the host counts with `stepped`."""
        self.lengths.index_copy_(0, step.sequence, step.ends)
        self.lengths[self.idle :].zero_()

    def stepped(self, sequence: int) -> None:
        """What `advance` did to a sequence, for the host's own count."""
        self.held[sequence] += 1

    def _tell(self, sequence: int) -> None:
        pages = self._pages[sequence]
        row = self._int32([*pages, *[SCRATCH] * (self.pages_each - len(pages))])
        self.tables[sequence] = row
        within = self._keys[: self.page]
        self.places[sequence] = torch.add(within, row[:, None], alpha=self.page).flatten()

    def _int32(self, numbers: object) -> Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype=np.int32)).to(self.lengths.device)


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on a CPU before they are written: torch would write every one of them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Not numpy's zeros: those come in huge pages, of which the first words of a conversation touch hundreds; clearing
    # them holds every caller up for 100 ms.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
