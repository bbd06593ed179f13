"""lab.attention on the simulated chip: the kernel that is chosen gives what attention is by its definition."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lab
from lab.choice import is_solvable
from lab.problems import Attention
from sim.machine import H100
from tests.lab.ops.attention_by_hand import attend
from tests.lab.ops.attention_calls import BF16, LENS, STARTS, arrays


@pytest.mark.skipif(not is_solvable(Attention(2, 4, 2, 64, 4, 4), H100), reason="no kernel takes it yet")
def test_the_simulated_chip_runs_what_is_chosen() -> None:
    q, k, v = arrays((6, 4, 64), (6, 2, 64), (6, 2, 64))
    y = lab.attention(q, k, v, q_starts=STARTS, kv_lens=LENS, scale=0.1)
    for start, end in ((0, 2), (2, 6)):
        here = [array[start:end].astype(np.float64) for array in (q, k, v)]
        assert np.allclose(y[start:end].astype(np.float64), attend(*here, 0.1)[0], rtol=2.0**-6, atol=2.0**-6)


@pytest.mark.parametrize("page", [0, 1, 16])
def test_the_simulated_chip_takes_parts_of_a_projection_as_they_are(page: int) -> None:
    """As dense copies, which another kernel may take; what is behind a row is never looked at."""
    (qkv,) = arrays((6, 8, 64))
    q, k, v = qkv[:, :4], qkv[:, 4:6], qkv[:, 6:]
    (pool,) = arrays((9, 2, 2, page, 64)) if page else (None,)
    cache = {"k": pool, "block_table": np.arange(1, 9, dtype=np.int32).reshape(2, 4)} if page else {"k": k, "v": v}
    lengths = {"q_starts": STARTS, "kv_lens": LENS}
    found = lab.attention(q, **cache, **lengths)
    dense = lab.attention(q.copy(), **{name: array.copy() for name, array in cache.items()}, **lengths)
    assert np.allclose(found.astype(np.float64), dense.astype(np.float64), rtol=2.0**-6, atol=2.0**-6)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from([BF16, np.dtype(np.float16)]),
    dim=st.sampled_from([64, 128]),
    page=st.sampled_from([0, 1, 16, 64, 128]),
    q_lens=st.tuples(st.integers(17, 70), st.integers(0, 70)),
    more=st.integers(0, 90),
    window=st.sampled_from([None, 0, 40]),
    group=st.sampled_from([1, 3, 4]),
    packed=st.booleans(),
)
def test_every_option_of_prefill_reaches_the_simulated_chip(
    dtype: Any, dim: int, page: int, q_lens: tuple[int, int], more: int, window: int | None, group: int, packed: bool
) -> None:
    """`window` None: no causal mask. Keys are `more` than queries where they are paged, else q's own."""
    starts = np.array([0, q_lens[0], sum(q_lens)], np.int32)
    lens = np.array([n + more if page and n else n for n in q_lens], np.int32)
    columns = -(-int(lens.max()) // max(page, 1))
    rows = (sum(q_lens), (group + 2), dim)
    (qkv,) = arrays(rows, dtype=dtype)
    parts = qkv[:, :group], qkv[:, group : group + 1], qkv[:, group + 1 :]
    q, k, v = parts if packed else [part.copy() for part in parts]
    given: dict[str, Any] = {"q": q, "k": k, "v": v}
    if page:
        (cache,) = arrays((1 + 2 * columns, 2, 1, page, dim), dtype=dtype)
        table = np.random.default_rng(0).permutation(np.arange(1, len(cache), dtype=np.int32)).reshape(2, columns)
        given = {"q": q, "k": cache, "block_table": table}
    causal = {"causal": False} if window is None else {"window": window}
    y, lse = lab.attention(**given, **causal, q_starts=starts, kv_lens=lens, lse=True)
    for b in range(2):
        here, token = slice(*starts[b : b + 2]), np.arange(lens[b])
        own = (k[here], v[here])
        if page:
            own = tuple(cache[table[b, token // page], i, :, token % page] for i in (0, 1))
        wide = [array.astype(np.float64) for array in (q[here], *own)]
        expected, log_sums = attend(*wide, dim**-0.5, window is not None, window or 0)
        assert np.allclose(y[here].astype(np.float64), expected, rtol=2.0**-6, atol=2.0**-6)
        assert np.allclose(lse[here], log_sums, rtol=2.0**-16, atol=2.0**-16)
