"""The pages of a KV cache: who holds them, when they may be used again, and which hold a prefix that others share."""

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from sim.errors import InputError


class PageKey(NamedTuple):
    """A full page in the tree of prefixes: what comes before it (an entry's number, or a salt), and its tokens."""

    parent: int | str
    tokens: bytes


class PagePool:
    """Pages 1 to `pages` - 1; page 0 is the null page, where tokens of nobody go.

    Each page is live (some table holds it), fenced (given back, but a step that may touch it is not complete), cached
    (given back, and its tokens are known: the next to share that prefix takes it, the next to need a page evicts the
    oldest) or free. Raises InputError for fewer than two pages.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        if pages < 2:
            raise InputError(f"a pool has the null page and at least one more; pages = {pages}")
        self.pages, self.page_tokens = pages, page_tokens
        self.refs = [0] * pages  # tables that hold a page
        self._free = list(range(pages - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the next to be evicted first
        self._fenced: deque[tuple[int, int]] = deque()  # (step, page), by step
        self._fence = [-1] * pages  # the step that a page without holders waits for; -1: none
        self._entries: list[tuple[int, PageKey] | None] = [None] * pages  # (number, entry) of published pages
        self._tree: dict[PageKey, int] = {}  # their pages; equality of keys compares all tokens of the chain
        self._numbers = 0
        self._completed = -1
        self._waiting = 0  # fenced pages

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self._free) + len(self._cached)

    @property
    def fenced(self) -> int:
        """Pages that can be taken once the steps in flight are complete."""
        return self._waiting

    def states(self) -> dict[str, list[int]]:
        """Every page but the null page, by its state."""
        fenced = [page for page in range(1, self.pages) if self._fence[page] >= 0]
        live = [page for page in range(1, self.pages) if self.refs[page]]
        return {"live": live, "fenced": fenced, "cached": list(self._cached), "free": list(self._free)}

    def take(self) -> int:
        """A page for one new table; raises InputError where none is available."""
        if self._free:
            page = self._free.pop()
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        else:
            raise InputError(f"all {self.pages - 1} pages are in use")
        self.refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """Let one more table hold a page that is live or that `match` found."""
        if not self.refs[page]:
            if self._fence[page] >= 0:
                self._fence[page] = -1
                self._waiting -= 1
            else:
                del self._cached[page]
        self.refs[page] += 1

    def release(self, pages: Sequence[int], fence: int) -> None:
        """One table gives its pages back, which step `fence` was the last to touch; raises ValueError for one it lacks.

        The last page goes first, so that no page is evicted before those that continue it.
        """
        for page in reversed(pages):
            if not self.refs[page]:
                raise ValueError(f"page {page} is released and nobody holds it")
            self.refs[page] -= 1
            if self.refs[page]:
                continue
            if fence <= self._completed:
                self._put_away(page)
            else:
                self._fence[page] = fence
                self._fenced.append((fence, page))
                self._waiting += 1

    def complete(self, step: int) -> None:
        """All steps up to this one are over: what was fenced by them can be used."""
        self._completed = step
        while self._fenced and self._fenced[0][0] <= step:
            fence, page = self._fenced.popleft()
            if self._fence[page] == fence:  # else it was shared meanwhile
                self._fence[page] = -1
                self._waiting -= 1
                self._put_away(page)

    def publish(self, page: int, parent: int | str, tokens: array) -> int:
        """Enter a full page whose keys and values are computed; returns the number that its continuations name.

        Where another page already holds the same prefix this one stays out of the tree, and the other's number is it.
        """
        entry = PageKey(parent, tokens.tobytes())
        if (holder := self._tree.get(entry)) is None:
            self._tree[entry], self._entries[page] = page, (self._numbers, entry)
            self._numbers += 1
            holder = page
        held = self._entries[holder]
        assert held is not None
        return held[0]

    def match(self, salt: str, tokens: array) -> tuple[list[int], int | str]:
        """The pages that hold the longest known prefix, and the number of the last; one token at least is left over."""
        found: list[int] = []
        chain: int | str = salt
        for first in range(0, len(tokens) - self.page_tokens, self.page_tokens):
            page = self._tree.get(PageKey(chain, tokens[first : first + self.page_tokens].tobytes()))
            if page is None:
                break
            found.append(page)
            held = self._entries[page]
            assert held is not None
            chain = held[0]
        return found, chain

    def published(self, page: int) -> bool:
        """Whether others may find this page; it is then never written."""
        return self._entries[page] is not None

    def _put_away(self, page: int) -> None:
        if self._entries[page] is None:
            self._free.append(page)
        else:
            self._cached[page] = None

    def _forget(self, page: int) -> None:
        held = self._entries[page]
        assert held is not None
        del self._tree[held[1]]
        self._entries[page] = None
