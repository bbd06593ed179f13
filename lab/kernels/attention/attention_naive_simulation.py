"""attention_naive's three launches in Numba, tile by tile and row by row."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems import Attention
from sim.counts import Counts
from sim.formats import decode, encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import (
    SimulatedChip,
    count_exp,
    load_patch,
    load_vector,
    mma_useful,
    normalise,
    seen_pairs,
    store_patch,
    store_vector,
)

LANES = 32
SIZE, FLOAT, INDEX = 2, 4, 4  # bytes of an element, a score, an index
CHUNK = 8  # elements in 16 bytes
MMA_M = 16  # rows of a warp
SCORES, ALIGNED = 8, 16  # scores, weights in a sector, at which each row of them begins
LOG2_E = np.float32(1.4426950408889634)


def rows_of(problem: Attention) -> int:
    """Rows of scores that there is room for."""
    return problem.batch * problem.q_heads * problem.q_len


def columns_of(problem: Attention) -> int:
    """Scores of a row that there is room for."""
    return -(-problem.kv_len // ALIGNED) * ALIGNED


class Shape(NamedTuple):
    """The problem and the schedule, for compiled code."""

    q_heads: int
    group: int
    dim: int
    q_len: int
    kv_len: int
    columns: int
    causal: bool
    block_m: int
    block_n: int
    scale: np.float32  # with log2(e)


class Indices(NamedTuple):
    """The index arrays and their sectors."""

    q_starts: NDArray[np.int32]
    kv_lens: NDArray[np.int32]
    kv_starts: NDArray[np.int32]
    q_starts_marks: NDArray[np.uint8]
    kv_lens_marks: NDArray[np.uint8]
    kv_starts_marks: NDArray[np.uint8]


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip, computed = SimulatedChip(launch, machine), "q" in arrays
    scale = np.float32(p.score_scale) * LOG2_E
    shape = Shape(
        p.q_heads, p.group, p.head_dim, p.q_len, p.kv_len, columns_of(p), p.causal, s.block_m, s.block_n, scale
    )
    names = ("q_starts", "kv_lens", "kv_starts")
    indices = Indices(*(np.ascontiguousarray(arrays[name]) for name in names), *chip.marks_of(*names))

    def floats(name: str, columns: int) -> NDArray[np.float32]:
        if not computed:
            return np.zeros((0, columns), np.float32)
        return decode(arrays[name], p.activations).reshape(-1, columns)

    q_columns, kv_columns = p.q_heads * p.head_dim, p.kv_heads * p.head_dim
    scores = arrays["scores"] if computed else np.zeros((0, shape.columns), np.float32)
    sums = arrays["sums"] if computed else np.zeros(0, np.float32)
    if launch.entry == "attention_naive":
        _scores(
            chip.count, chip.marks("q"), chip.marks("k"), chip.marks("scores"), floats("q", q_columns),
            floats("k", kv_columns), scores, indices, shape, launch.grid[0],
        )  # fmt: skip
    elif launch.entry == "attention_naive_softmax":
        weights = floats("weights", shape.columns)
        _softmax(
            chip.count, chip.marks("scores"), chip.marks("weights"), chip.marks("sums"), scores, weights, sums, indices,
            shape, rows_of(p),
        )  # fmt: skip
        if computed:
            arrays["weights"][...] = encode(weights, p.activations)
    else:
        y = np.zeros((p.tokens if computed else 0, q_columns), np.float32)
        _values(
            chip.count, chip.marks("weights"), chip.marks("sums"), chip.marks("v"), chip.marks("y"),
            floats("weights", shape.columns), sums, floats("v", kv_columns), y, indices, shape, launch.grid[0],
        )  # fmt: skip
        if computed:
            there = slice(int(indices.q_starts[0]), int(indices.q_starts[-1]))
            arrays["y"][there] = encode(y, p.output).reshape(arrays["y"].shape)[there]
    return chip.counts()


@njit(cache=True)
def _load_lengths(count, indices, at, warps):
    """A sequence's start and lengths, by every warp of a CTA."""
    for _ in range(warps):
        load_vector(count, indices.q_starts_marks, INDEX * at, INDEX)
        load_vector(count, indices.q_starts_marks, INDEX * (at + 1), INDEX)
        load_vector(count, indices.kv_lens_marks, INDEX * at, INDEX)


@njit(cache=True)
def _load_start(count, indices, at, warps):
    """Where a sequence's keys start, by every warp of a CTA."""
    for _ in range(warps):
        load_vector(count, indices.kv_starts_marks, INDEX * at, INDEX)


@njit(cache=True)
def _seen(shape, token, queries, keys, key, end):
    """Which columns of the block at `key` the rows of a tile at `token` see: those before `end`."""
    for row in range(end.size):
        last = token + row + 1 + keys - queries if shape.causal else keys
        end[row] = last - key if token + row < queries else 0


@njit(cache=True)
def _scores(count, q_marks, k_marks, marks, q, k, scores, indices, shape, ctas):
    across, down = -(-shape.kv_len // shape.block_n), -(-shape.q_len // shape.block_m)
    kv_heads = shape.q_heads // shape.group
    request = CHUNK * LANES // shape.dim
    q_tile = np.empty((shape.block_m, shape.dim), np.float32)
    k_tile = np.empty((shape.dim, shape.block_n), np.float32)  # transposed on its way in
    total = np.empty((shape.block_m, shape.block_n), np.float32)
    start, end = np.zeros(shape.block_m, np.int64), np.empty(shape.block_m, np.int64)
    for cta in range(ctas):
        counter = count[cta % count.shape[0]]
        key, token = cta % across * shape.block_n, cta // across % down * shape.block_m
        of = cta // across // down
        head, at = of % shape.q_heads, of // shape.q_heads
        _load_lengths(counter, indices, at, shape.block_m // MMA_M)
        first, last = indices.q_starts[at], indices.q_starts[at + 1]
        keys, kv_start = indices.kv_lens[at], indices.kv_starts[at]
        if token >= last - first or key >= keys:
            continue
        _load_start(counter, indices, at, shape.block_m // MMA_M)
        columns, kv_columns = shape.q_heads * shape.dim, kv_heads * shape.dim
        load_patch(counter, q_marks, SIZE, q, last, columns, first + token, head * shape.dim, q_tile, request)
        load_patch(
            counter, k_marks, SIZE, k, kv_start + keys, kv_columns, kv_start + key,
            head // shape.group * shape.dim, k_tile.T, request,
        )  # fmt: skip
        _seen(shape, token, last - first, keys, key, end)
        total[:] = 0
        useful = shape.dim * seen_pairs(start, end, shape.block_n)
        mma_useful(counter, total, q_tile, k_tile, useful, q.size > 0)
        row = of * shape.q_len
        for c in range(0, min(shape.block_n, keys - key), CHUNK):
            part = total[:, c : c + CHUNK]
            store_patch(counter, marks, FLOAT, scores, row + last - first, shape.columns, row + token, key + c, part, 8)


@njit(cache=True)
def _softmax(count, score_marks, weight_marks, sum_marks, scores, weights, sums, indices, shape, rows):
    for row in range(rows):
        counter = count[row % count.shape[0]]
        token, at = row % shape.q_len, row // shape.q_len // shape.q_heads
        _load_lengths(counter, indices, at, 1)
        queries, keys = indices.q_starts[at + 1] - indices.q_starts[at], indices.kv_lens[at]
        if token >= queries:
            continue
        end = max(token + keys - queries + 1, 0) if shape.causal else keys
        padded = -(-keys // CHUNK) * CHUNK
        for _ in range(2):
            for c in range(0, end, LANES):
                load_vector(counter, score_marks, FLOAT * (row * shape.columns + c), FLOAT * min(LANES, end - c))
        for start, stop in ((0, end), (end, padded)):
            for c in range(start, stop, LANES):
                load = SIZE * (row * shape.columns + c)
                store_vector(counter, weight_marks, load, SIZE * min(LANES, stop - c))
        store_vector(counter, sum_marks, FLOAT * row, FLOAT)
        count_exp(counter, end)
        if scores.size > 0:
            sums[row] = _weigh(scores[row, :end], weights[row], padded, shape.scale)


@njit(cache=True)
def _weigh(scores, weights, padded, scale):
    """Scores to weights, zeros behind them; returns their sum."""
    total = np.float32(0)
    if scores.size > 0:
        largest = scores[0]
        for score in scores:
            largest = max(largest, score)
        for c in range(scores.size):
            weights[c] = np.exp2((scores[c] - largest) * scale)
            total += weights[c]
    for c in range(scores.size, padded):
        weights[c] = 0
    return total


@njit(cache=True)
def _values(count, weight_marks, sum_marks, v_marks, y_marks, weights, sums, v, y, indices, shape, ctas):
    down, kv_heads = -(-shape.q_len // shape.block_m), shape.q_heads // shape.group
    numerics = v.size > 0
    tile = np.empty((shape.block_m, shape.block_n), np.float32)
    v_tile = np.empty((shape.block_n, shape.dim), np.float32)
    total = np.empty((shape.block_m, shape.dim), np.float32)
    start, end = np.zeros(shape.block_m, np.int64), np.empty(shape.block_m, np.int64)
    for cta in range(ctas):
        counter = count[cta % count.shape[0]]
        token, of = cta % down * shape.block_m, cta // down
        head, at = of % shape.q_heads, of // shape.q_heads
        _load_lengths(counter, indices, at, shape.block_m // MMA_M)
        first, last = indices.q_starts[at], indices.q_starts[at + 1]
        keys, kv_start = indices.kv_lens[at], indices.kv_starts[at]
        if token >= last - first:
            continue
        _load_start(counter, indices, at, shape.block_m // MMA_M)
        row = of * shape.q_len
        total[:] = 0
        for key in range(0, keys, shape.block_n):
            width = min(shape.block_n, -(-(keys - key) // CHUNK) * CHUNK)
            tile[:, width:] = 0
            load_patch(
                counter, weight_marks, SIZE, weights, row + last - first, shape.columns, row + token, key,
                tile[:, :width], CHUNK * LANES // shape.block_n,
            )  # fmt: skip
            load_patch(
                counter, v_marks, SIZE, v, kv_start + keys, kv_heads * shape.dim, kv_start + key,
                head // shape.group * shape.dim, v_tile, CHUNK * LANES // shape.dim,
            )  # fmt: skip
            _seen(shape, token, last - first, keys, key, end)
            useful = shape.dim * seen_pairs(start, end, shape.block_n)
            mma_useful(counter, total, tile, v_tile, useful, numerics)
        for r in range(0, min(shape.block_m, last - first - token), 8):
            rows = min(8, last - first - token - r)
            load_vector(counter, sum_marks, FLOAT * (row + token + r), FLOAT * rows)
            if numerics:
                normalise(total[r : r + rows], sums[row + token + r : row + token + r + rows])
        for c in range(0, shape.dim, CHUNK):
            part = total[:, c : c + CHUNK]
            store_patch(
                counter, y_marks, SIZE, y, last, shape.q_heads * shape.dim, first + token,
                head * shape.dim + c, part, 8,
            )  # fmt: skip
