"""Which page of a cache belongs to whom: counted references, so that sequences share pages, and pages by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

SCRATCH = 0
"""The page that rows write to which have nothing to write; it belongs to nobody and is never given out."""


class CacheFullError(Exception):
    """There is no page left, or a sequence grew past the positions that it was given."""


class BlockPool:
    """Pages 1 to `pages` - 1.

    A page whose content has a name (`publish`) is kept after its last holder has let go of it, until its place is
    needed: whoever comes with the same content finds it there. The page that was let go last is taken first, as a
    processor has memory only for pages that were ever written.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = dict.fromkeys(range(pages - 1, 0, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # named, held by nobody, the oldest first
        self._references = [0] * pages
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._kept)

    def take(self, preferred: int | None = None) -> int:
        """A page of one's own, `preferred` where that is free. Raises `CacheFullError`."""
        if preferred in self._free:
            page = preferred
            del self._free[page]
        elif self._free:
            page, _ = self._free.popitem()
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        else:
            raise CacheFullError(f"all {self.pages - 1} pages of the cache are in use; lower model.slots")
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One holder more."""
        self._kept.pop(page, None)
        self._references[page] += 1

    def release(self, page: int) -> None:
        """One holder less."""
        assert self._references[page] > 0, f"page {page} is held by nobody"
        self._references[page] -= 1
        if self._references[page]:
            return
        if page in self._name_of:
            self._kept[page] = None
        else:
            self._free[page] = None

    def is_own(self, page: int) -> bool:
        """Whether its only holder may write to it."""
        return self._references[page] == 1 and page not in self._name_of

    def publish(self, name: bytes, page: int) -> None:
        """Says what a full page holds; the first page of a name keeps it."""
        if name not in self._page_of and page not in self._name_of:
            self._page_of[name] = page
            self._name_of[page] = name

    def find(self, name: bytes) -> int | None:
        """The page of that content, if there is one; to be held with `share`."""
        return self._page_of.get(name)

    def check(self, holdings: Iterable[Sequence[int]]) -> None:
        """Asserts that every page is free, kept or held by exactly those who say so."""
        counted = [0] * self.pages
        for pages in holdings:
            for page in pages:
                counted[page] += 1
        assert counted == self._references
        idle = {page for page in range(1, self.pages) if not counted[page]}
        assert idle == set(self._free) | set(self._kept) and not set(self._free) & set(self._kept)
        assert set(self._kept) <= set(self._name_of) == set(self._page_of.values())
        assert SCRATCH not in idle and not counted[SCRATCH]

    def _forget(self, page: int) -> None:
        del self._page_of[self._name_of.pop(page)]


def page_names(ids: Sequence[int], page_positions: int, salt: str = "") -> list[bytes]:
    """Names of the full pages of a sequence: each depends on all ids up to the page's end, and on `salt`."""
    names, before = [], salt.encode()
    for start in range(0, len(ids) - page_positions + 1, page_positions):
        content = b"".join(int(id_).to_bytes(8, "little", signed=True) for id_ in ids[start : start + page_positions])
        before = blake2b(before + content, digest_size=16).digest()
        names.append(before)
    return names
