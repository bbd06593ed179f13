"""Attention in tiles: the online softmax of blocks is the softmax of the whole row, its exponentials are counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.counts import SECTOR
from sim.tiles import (
    FP32,
    log_sum_exp,
    mma_useful,
    normalise,
    rescale,
    seen_pairs,
    store_scattered,
    take_scores,
)
from sim.tiles.chip import EXP, FIELDS, FLOPS, MMA_FLOPS, SM_TO_L2, STORE_SECTORS

ROWS, BLOCK, DIM, FURTHER = 4, 8, 4, 4
LOG2_E = 1.4426950408889634


@given(blocks=st.integers(1, 5), slack=st.integers(0, 8), size=st.sampled_from([1, 30]), seed=st.integers(0, 2**32 - 1))
def test_blocks_after_one_another_are_the_softmax_of_the_row(blocks: int, slack: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = blocks * BLOCK
    scores, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((ROWS, keys), (keys, DIM)))
    scores *= size
    start = rng.integers(-2, keys, ROWS)
    end = rng.integers(-2, keys + 3, ROWS)
    count = np.zeros(len(FIELDS), np.int64)
    maximum, total = np.full(ROWS, -np.inf, np.float32), np.zeros(ROWS, np.float32)
    decay, y = np.empty(ROWS, np.float32), np.zeros((ROWS, DIM), np.float32)
    scale = np.float32(LOG2_E)
    for block in rng.permutation(blocks):
        at = block * BLOCK
        tile = scores[:, at : at + BLOCK].copy()
        how = (scale, slack, maximum, total, decay, FURTHER, FP32, True)
        take_scores(count, tile, start - at, end - at, *how)
        assert tile.max() <= 2.0**slack * (1 + 1e-5)
        rescale(y, decay)
        mma_useful(count, y, tile, v[at : at + BLOCK], seen_pairs(start - at, end - at, BLOCK) * DIM, True)
    normalise(y, total)
    key = np.arange(keys)
    seen = (key >= start[:, None]) & (key < end[:, None])
    exact = np.where(seen, scores.astype(np.float64), -np.inf)
    for row in range(ROWS):
        if not seen[row].any():
            assert log_sum_exp(maximum[row], total[row], scale) == -np.inf
            assert not y[row].any()
            continue
        weights = np.exp(exact[row] - exact[row].max())
        # 16 roundings of a scaled score of up to 128 size, before the exponential; `keys` and a few after it.
        bound = (16 * 4 * size * LOG2_E + 2 * keys + 64) * 2.0**-24
        lse = np.log(weights.sum()) + exact[row].max()
        assert abs(log_sum_exp(maximum[row], total[row], scale) - lse) <= bound * (1 + abs(lse))
        off = np.abs(y[row] - weights @ v / weights.sum())
        assert (off <= bound * (weights @ np.abs(v) / weights.sum())).all()
    assert count[EXP] == ROWS * blocks * (BLOCK + FURTHER)
    assert count[FLOPS] == 2 * DIM * seen.sum()
    assert count[MMA_FLOPS] == 2 * ROWS * blocks * BLOCK * DIM


@given(at=st.lists(st.integers(0, 200), max_size=8, unique=True).map(sorted), width=st.sampled_from([4, 8]))
def test_scattered_stores_count_each_sector_of_a_request_once(at: list[int], width: int) -> None:
    offsets = width * np.array(at, np.int64)
    count, marks = np.zeros(len(FIELDS), np.int64), np.zeros(100, np.uint8)
    store_scattered(count, marks, offsets, width)
    sectors = len({offset // SECTOR for offset in offsets.tolist()})
    assert count[STORE_SECTORS] == sectors == (marks != 0).sum()
    assert count[SM_TO_L2] == SECTOR * sectors
