"""Whether lengths and block tables mean what a kernel may trust: it reads and writes wherever they say."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lab.problems import Attention
from lab.problems.attention import NULL_PAGE
from sim.errors import InputError


def require_legal(problem: Attention, indices: Mapping[str, NDArray]) -> None:
    """Raise InputError, naming the first bad value, where index arrays go beyond the problem's capacities.

    Of a block table the pages of keys that some query sees must be there: those before a window may be gone.
    """
    p = problem
    starts, kv_lens = (indices[name].astype(np.int64) for name in ("q_starts", "kv_lens"))
    bounds = np.concatenate(([0], starts, [p.tokens]))  # between which q_starts ascend
    if (bad := _first(np.diff(bounds) < 0)) is not None:
        i = min(bad, p.batch)
        raise InputError(
            f"q_starts must ascend from 0 to at most {p.tokens:,}, the rows of q; "
            f"q_starts[{i}] = {starts[i]:,}" + (f" follows {starts[i - 1]:,}" if bad == i > 0 else "")
        )
    q_lens = np.diff(starts)
    if (b := _first(q_lens > p.q_len)) is not None:
        raise InputError(f"sequences have at most {p.q_len:,} queries; sequence {b} has {q_lens[b]:,}")
    if (b := _first((kv_lens < 0) | (kv_lens > p.kv_len))) is not None:
        raise InputError(f"kv_lens are from 0 to {p.kv_len:,}; kv_lens[{b}] = {kv_lens[b]:,}")
    if p.page:
        _require_pages(p, q_lens, kv_lens, indices["block_table"])
        return
    ends = indices["kv_starts"][: p.batch] + kv_lens
    if (b := _first((kv_lens > 0) & (ends > p.kv_rows))) is not None:
        raise InputError(f"k has {p.kv_rows:,} rows; the keys of sequence {b} end at {ends[b]:,}")


def _require_pages(problem: Attention, q_lens: NDArray, kv_lens: NDArray, table: NDArray) -> None:
    p = problem
    first = np.maximum(kv_lens - q_lens + 1 - p.window, 0) // p.page if p.window else np.zeros_like(kv_lens)
    column = np.arange(table.shape[1])
    used = (column >= first[:, None]) & (column < -(-kv_lens // p.page)[:, None]) & (q_lens > 0)[:, None]
    if (bad := _first(used & ((table <= NULL_PAGE) | (table >= p.pool_pages)))) is not None:
        b, i = divmod(bad, table.shape[1])
        raise InputError(
            f"pages are from {NULL_PAGE + 1} to {p.pool_pages - 1:,}; block_table[{b}, {i}] = {table[b, i]:,}, "
            f"of a sequence of {kv_lens[b]:,} keys, {p.page:,} a page"
        )
    if p.causal:
        _require_own_pages(used & (column >= (kv_lens - q_lens)[:, None] // p.page), table)


def _require_own_pages(written: NDArray, table: NDArray) -> None:
    """Refuse a page that two sequences write to: causal queries are tokens whose keys are new in the cache."""
    sequences, pages = np.nonzero(written)[0], table[written]
    order = np.argsort(pages, kind="stable")
    sequences, pages = sequences[order], pages[order]
    if (at := _first((pages[1:] == pages[:-1]) & (sequences[1:] != sequences[:-1]))) is not None:
        raise InputError(
            f"sequences share only pages that are full before their queries' keys; page {pages[at]:,} has such keys of "
            f"sequences {sequences[at]} and {sequences[at + 1]}"
        )


def _first(wrong: NDArray[np.bool_]) -> int | None:
    """The place of the first true value, if there is one."""
    return int(wrong.argmax()) if wrong.any() else None
