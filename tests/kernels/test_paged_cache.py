"""Pages of a cache under random use: what is read back is what was written, whoever shares pages with whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kernels.block_pool import BlockPool, CacheFullError, page_names
from kernels.paged_cache import PagedCache

SEQUENCES, PAGE, POSITIONS = 4, 4, 24


class Conversations(RuleBasedStateMachine):
    """Sequences of numbers beside a cache that holds each number as key and its negative as value."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedCache(2, SEQUENCES, POSITIONS, 1, 1, page=PAGE)
        self.held: list[list[int]] = [[] for _ in range(SEQUENCES)]
        self.next = 1

    def write(self, where: torch.Tensor, numbers: list[int]) -> None:
        for layer in (0, 1):
            new = torch.tensor(numbers, dtype=torch.float32)[None, :, None, None] * torch.tensor([1.0, -1.0]).view(
                2, 1, 1, 1
            )
            self.cache.write(layer, where, *(new * (1 + layer)))

    def fresh(self, count: int) -> list[int]:
        self.next += count
        return list(range(self.next - count, self.next))

    @rule(sequence=st.integers(0, SEQUENCES - 1), count=st.integers(1, 9), other=st.integers(0, SEQUENCES - 1))
    def prefill(self, sequence: int, count: int, other: int) -> None:
        sequences = [sequence] if other == sequence else [sequence, other]
        counts = [min(count + n, POSITIONS - len(self.held[own])) for n, own in enumerate(sequences)]
        pairs = [(own, n) for own, n in zip(sequences, counts, strict=True) if n]
        if not pairs:
            return
        plan = self.cache.prefill(*zip(*pairs, strict=True))
        new = [self.fresh(n) for _, n in pairs]
        self.write(plan.where, [number for part in new for number in part])
        self.cache.commit(plan)
        for (own, _), part in zip(pairs, new, strict=True):
            self.held[own] += part

    @rule(sequences=st.sets(st.integers(0, SEQUENCES - 1), min_size=1), resting=st.booleans())
    def decode(self, sequences: set[int], resting: bool) -> None:
        rows = [own for own in sequences if len(self.held[own]) < POSITIONS]
        if not rows:
            return
        for own in rows:
            self.cache.reserve(own, len(self.held[own]) + 1)
        inactive = torch.tensor([resting and number == 0 for number in range(len(rows))])
        step = self.cache.decode(torch.tensor(rows), self.cache.width(rows), inactive=inactive)
        new = self.fresh(len(rows))
        self.write(step.where, new)
        self.cache.advance(step)
        for own, number, rests in zip(rows, new, inactive.tolist(), strict=True):
            if not rests:
                self.cache.stepped(own)
                self.held[own].append(number)

    @rule(sequence=st.integers(0, SEQUENCES - 1), share=st.floats(0, 1))
    def truncate(self, sequence: int, share: float) -> None:
        length = int(share * len(self.held[sequence]))
        self.cache.truncate(sequence, length)
        del self.held[sequence][length:]

    @rule(sequence=st.integers(0, SEQUENCES - 1), reader=st.integers(0, SEQUENCES - 1))
    def share_by_name(self, sequence: int, reader: int) -> None:
        names = page_names(self.held[sequence], PAGE)
        self.cache.publish(sequence, names)
        if reader == sequence:
            return
        self.cache.truncate(reader, 0)
        found = self.cache.adopt(reader, names)
        assert found == len(names) * PAGE
        self.held[reader] = self.held[sequence][:found]

    @precondition(lambda self: any(self.held))
    @invariant()
    def everything_is_read_back(self) -> None:
        self.cache.check()
        for sequence, numbers in enumerate(self.held):
            table = self.cache.tables[sequence, : -(-len(numbers) // PAGE)].long()
            for layer in (0, 1):
                keys, values = self.cache.layers[layer][:, table].flatten(1, 2)[:, : len(numbers), 0, 0]
                assert (keys / (1 + layer)).int().tolist() == numbers
                assert torch.equal(values, -keys)


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_page_is_kept_by_name_until_its_place_is_needed() -> None:
    pool = BlockPool(4)
    first, second = pool.take(), pool.take()
    pool.publish(b"first", first)
    pool.release(first)
    pool.release(second)
    pool.check([])
    assert pool.find(b"first") == first and pool.available == 3
    taken = [pool.take(), pool.take()]
    assert pool.find(b"first") == first and first not in taken
    assert pool.take() == first and pool.find(b"first") is None
    with pytest.raises(CacheFullError, match=r"lower model\.slots"):
        pool.take()


def test_a_found_page_is_held_by_both() -> None:
    pool = BlockPool(3)
    page = pool.take()
    pool.publish(b"name", page)
    pool.share(page)
    assert not pool.is_own(page)
    pool.release(page)
    pool.check([[page]])
    pool.release(page)
    assert pool.find(b"name") == page
    pool.share(page)
    pool.check([[page]])


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, 5), max_size=14), other=st.lists(st.integers(0, 5), max_size=14))
def test_names_are_equal_exactly_as_far_as_beginnings_are(ids: list[int], other: list[int]) -> None:
    mine, theirs = page_names(ids, PAGE), page_names(other, PAGE)
    assert len(mine) == len(ids) // PAGE
    for index, (own, name) in enumerate(zip(mine, theirs, strict=False)):
        end = PAGE * (index + 1)
        assert (own == name) == (ids[:end] == other[:end])
    assert not set(mine) & set(page_names(ids, PAGE, salt="8 Hz"))


def test_a_sequence_has_its_pages_side_by_side_where_nobody_is_in_the_way() -> None:
    cache = PagedCache(1, 3, 16, 1, 1, page=4)
    for sequence in (2, 0, 1):
        cache.reserve(sequence, 5)
    for sequence in (1, 2, 0):
        cache.reserve(sequence, 16)
        plan = cache.prefill([sequence], [13])
        cache.commit(plan)
        assert cache.in_place(sequence) == (1 + 4 * sequence, 14)
    cache.truncate(1, 4)
    cache.truncate(0, 0)
    cache.publish(1, [b"first"])
    assert cache.adopt(0, [b"first"]) == 4
    cache.reserve(0, 9)
    cache.commit(cache.prefill([0], [5]))
    assert cache.in_place(0) is None
