"""The tile schedule of the prefill kernels fed by TMA, counted and computed: _work.cuh, _stream.cuh, _results.cuh."""

from collections import namedtuple
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.kernels.attention.prefill import (
    BOX_COLUMNS,
    CHUNK,
    FLOAT,
    INDEX,
    LANE_ELEMENTS,
    LANES,
    LSE_ROWS,
    SCALES,
    SIZE,
    WARP_ROWS,
    box_rows,
    span_count,
    terms,
    tokens_of,
    whole_spans,
)
from sim.formats import encode
from sim.jit import njit
from sim.launch import Launch
from sim.tiles import (
    ELEMENT,
    FP8,
    SimulatedChip,
    add_atomically,
    copy_tile,
    count_exp,
    load_tile,
    load_vector,
    log_sum_exp,
    mma_useful,
    normalise,
    rescale,
    round_to_fp8,
    seen_pairs,
    store_scattered,
    store_vector,
    take_scores,
)

THREADS = 4  # that share a row
LOG2_E = np.float32(1.4426950408889634)


class Shape(NamedTuple):
    """The problem and the schedule, for compiled code."""

    batch: int
    q_len: int
    kv_heads: int
    group: int
    dim: int
    causal: bool
    window: int
    page: int
    row_pages: int
    pages: int
    lse: bool
    q_row: int  # heads of a row of q
    kv_row: int
    rows_of_q: int
    rows_of_kv: int
    tokens: int  # of a tile
    block_m: int
    block_n: int
    box_rows: int
    section: int
    slack: int
    of_q: int  # elements
    of_kv: int
    of_weights: int  # as they are rounded; where they become terms of fp8 they are not before that
    terms: int  # of fp8; 0: none
    headroom: int  # powers of two by which such weights are larger
    splits: int
    whole: int  # spans that are not split
    cluster: int
    copiers: int


Marks = namedtuple(  # the sectors of each array
    "Marks", "q k v y lse q_starts kv_lens places part_y part_log_sums arrived q_scale k_scale v_scale"
)


class Data(NamedTuple):
    """The arrays as matrices, those of k and v as their boxes lie in them; only indices where the rest is counted."""

    q: NDArray
    k: NDArray
    v: NDArray
    y: NDArray[np.float32]
    lse: NDArray[np.float32]
    q_starts: NDArray[np.int32]
    kv_lens: NDArray[np.int32]
    places: NDArray[np.int32]
    score_scale: NDArray[np.float32]  # of each KV head, with log2(e)
    value_scale: NDArray[np.float32]


class Work(NamedTuple):
    """A tile of queries or a part of it, as _work.cuh has it."""

    query: int
    tokens: int
    head: int
    sequence: int
    keys: int
    diagonal: int
    first: int
    last: int


def simulate(launch: Launch, arrays: Mapping[str, NDArray], chip: SimulatedChip, copiers: int = 0) -> None:
    """Every tile of a launch, an SM's after one another; writes y and lse where `arrays` has q.

    `copiers` are the warps that copy rows to shared memory and read the lengths; 0: a producer does, by TMA.
    """
    p, s = launch.problem, launch.schedule
    fp8 = p.kv == "fp8"
    shape = Shape(
        p.batch, p.q_len, p.kv_heads, p.group, p.head_dim, p.causal, p.window, p.page, p.pages_per_sequence,
        p.pool_pages, p.lse, p.row_heads(p.q_heads), p.row_heads(p.kv_heads),
        p.tokens, p.kv_rows, tokens_of(p, s.block_m), s.block_m, s.block_n,
        box_rows(p, s), s.section, s.slack, ELEMENT[p.activations], ELEMENT[p.kv],
        ELEMENT["fp32" if fp8 else p.activations], terms(p) if fp8 else 0, s.headroom if fp8 else 0,
        s.splits, whole_spans(p, s, launch.ctas // s.cluster), s.cluster, copiers,
    )  # fmt: skip
    places = "block_table" if p.page else "kv_starts"
    k, v = ("cache", "cache") if p.page else ("k", "v")
    names = ("q", k, v, "y", "lse", "q_starts", "kv_lens", places, "part_y", "part_log_sums", "arrived")
    marks = Marks(*chip.marks_of(*names, *SCALES))
    computed = "q" in arrays
    width = p.head_dim if p.page else shape.kv_row * p.head_dim  # of a row of the matrix that k and v are

    def matrix(name: str, columns: int) -> NDArray:
        return arrays[name].reshape(-1, columns) if computed else np.zeros((0, columns), p.inputs[name].storage)

    def scale(name: str) -> NDArray[np.float32]:
        return arrays[name] if computed and name in p.inputs else np.ones(p.kv_heads, np.float32)

    rows = p.tokens * p.q_heads if computed else 0
    y, lse = np.zeros((rows, p.head_dim), np.float32), np.zeros(rows if p.lse else 0, np.float32)
    q_starts, kv_lens, flat = (np.ascontiguousarray(arrays[x]).reshape(-1) for x in ("q_starts", "kv_lens", places))
    score_scale = np.float32(p.score_scale) * LOG2_E * scale("q_scale") * scale("k_scale")
    data = Data(
        matrix("q", p.head_dim), matrix(k, width), matrix(v, width), y, lse, q_starts, kv_lens, flat,
        score_scale, scale("v_scale"),
    )  # fmt: skip
    ctas = min(launch.ctas, len(chip.count))  # those beyond come after them on the same SMs
    chip.on_all_cores(_grid, chip.count, marks, data, shape, ctas, span_count(p, s))
    if computed:
        written = slice(int(data.q_starts[0]), int(data.q_starts[-1]))
        arrays["y"][written] = encode(y, p.output).reshape(p.tokens, p.q_heads, p.head_dim)[written]
        if p.lse:
            arrays["lse"][written] = lse.reshape(p.tokens, p.q_heads)[written]


@njit(cache=True, nogil=True)
def _grid(core, cores, count, marks, data, shape, ctas, spans):
    for cta in range(core, ctas, cores):
        _cta(count, marks, data, shape, cta, ctas, spans)


@njit(cache=True)
def _cta(count, marks, data, shape, cta, ctas, spans):
    """One CTA's tile of every span of its cluster."""
    q = np.zeros((shape.block_m, shape.dim), np.float32)  # no load reaches the rows that are no query's
    k = np.empty((shape.dim, shape.block_n), np.float32)  # transposed on its way in, as the product wants it
    v = np.empty((shape.block_n, shape.dim), np.float32)
    scores = np.empty((shape.block_m, shape.block_n), np.float32)
    y = np.empty((shape.splits, shape.block_m, shape.dim), np.float32)
    log_sums = np.empty((shape.splits, shape.block_m), np.float32)
    parts = np.zeros((shape.splits, 2), np.int64)  # keys that each split sees: from, to
    rank = cta % shape.cluster
    for span in range(cta // shape.cluster, spans, ctas // shape.cluster):
        splits = shape.splits if span >= shape.whole else 1
        for split in range(splits):
            work, exists = _work(count[cta], marks, data, shape, span, split, splits, rank)
            if exists:
                _tile(count[cta], marks, data, shape, work, q, k, v, scores, y[split], log_sums[split])
            parts[split] = shape.block_n * work.first, shape.block_n * work.last
        if exists:
            if splits > 1:
                tile = (span - shape.whole) * shape.cluster + rank
                _merge(count[cta], marks, data, shape, work, tile, parts, y, log_sums)
            _store(count[cta], marks, data, shape, work, splits, y[0], log_sums[0])


@njit(cache=True)
def _work(count, marks, data, shape, index, split, splits, rank):
    """Part `split` of so many of tile `rank` of span `index`, and whether the span exists.

    Sections of heads come after one another, in a section the last spans first.
    """
    most = shape.cluster * shape.tokens
    heads, blocks = shape.batch * shape.kv_heads, -(-shape.q_len // most)
    before = index // (shape.section * blocks) * shape.section
    width, inside = min(shape.section, heads - before), index - before * blocks
    head, token = before + inside % width, (blocks - 1 - inside // width) * most
    sequence = head // shape.kv_heads
    for _ in range(max(shape.copiers, 1)):
        load_vector(count, marks.q_starts, INDEX * sequence, INDEX)
        load_vector(count, marks.q_starts, INDEX * (sequence + 1), INDEX)
        load_vector(count, marks.kv_lens, INDEX * sequence, INDEX)
        if shape.page == 0:
            load_vector(count, marks.places, INDEX * sequence, INDEX)
    start = data.q_starts[sequence]
    queries = data.q_starts[sequence + 1] - start
    tokens, keys = min(most, queries - token), data.kv_lens[sequence]
    diagonal = token + keys - queries + 1
    end = diagonal + tokens - 1 if shape.causal else keys
    first = max(diagonal - shape.window, 0) // shape.block_n if shape.window > 0 else 0
    seen = max(-(-max(end, 0) // shape.block_n) - first, 0)
    last = first + seen * (split + 1) // splits
    first += seen * split // splits
    offset = rank * shape.tokens
    mine = max(min(tokens - offset, shape.tokens), 0)
    work = Work(start + token + offset, mine, head % shape.kv_heads, sequence, keys, diagonal + offset, first, last)
    return work, tokens > 0


@njit(cache=True)
def _tile(count, marks, data, shape, work, q, k, v, scores, y, log_sums):
    """A tile of queries against its blocks, from the last to the first."""
    numerics = data.q.size > 0
    scale = data.score_scale[work.head]
    _load_queries(count, marks, data, shape, work, q)
    y[:] = 0
    maximum, total = np.full(shape.block_m, -np.inf, np.float32), np.zeros(shape.block_m, np.float32)
    decay = np.empty(shape.block_m, np.float32)
    start, end = np.empty(shape.block_m, np.int64), np.empty(shape.block_m, np.int64)
    for block in range(work.last - 1, work.first - 1, -1):
        if shape.page > 0 and shape.copiers == 0:
            if block == work.last - 1:
                _load_pages(count, marks, shape, work, block)
                _load_pages(count, marks, shape, work, max(block - 1, work.first))
            _load_pages(count, marks, shape, work, max(block - 2, work.first))
        elif shape.page > 0:
            for _ in range(2):  # of keys, of values
                _look_up(count, marks, shape, work, block)
        _load_block(count, marks.k, data.k, data.places, shape, work, block, 0, k.T)
        _load_block(count, marks.v, data.v, data.places, shape, work, block, 1, v)
        v[max(work.keys - block * shape.block_n, 0) :] = 0
        _visible(shape, work, block, start, end)
        live = work.tokens * shape.group
        useful = shape.dim * seen_pairs(start[:live], end[:live], shape.block_n)
        scores[:] = 0
        mma_useful(count, scores, q, k, useful, numerics)
        for _ in range(1, shape.terms):
            mma_useful(count, scores, q, k, 0, False)
        take_scores(
            count, scores, start, end, scale, shape.slack, maximum, total, decay, THREADS, shape.of_weights, numerics
        )
        if numerics and shape.terms > 0:
            round_to_fp8(scores, np.float32(2.0**shape.headroom), shape.terms)
        if numerics:
            rescale(y, decay)
        mma_useful(count, y, scores, v, useful, numerics)
        for _ in range(1, shape.terms):
            mma_useful(count, y, scores, v, 0, False)
    if numerics:
        normalise(y, total)
        y *= data.value_scale[work.head]
        for row in range(shape.block_m):
            log_sums[row] = log_sum_exp(maximum[row], total[row], scale)


@njit(cache=True)
def _load_queries(count, marks, data, shape, work, q):
    """A box of whole tokens, token by token; warps copy those that are there, where they see a key."""
    rows, heads = shape.rows_of_q, shape.q_row
    if shape.copiers > 0:
        rows = work.query + work.tokens if work.last > work.first else 0
    for token in range(shape.tokens):
        row = token * shape.group
        at = (work.query + token) * heads + work.head * shape.group
        for column in range(0, shape.dim, BOX_COLUMNS):
            part = q[row : row + shape.group, column : column + BOX_COLUMNS]
            _load(count, marks.q, data.q, rows * heads, shape.dim, at, column, part, shape.of_q, shape)
    if shape.of_q == FP8:
        load_vector(count, marks.q_scale, FLOAT * work.head, FLOAT)
    if shape.terms > 0:
        load_vector(count, marks.k_scale, FLOAT * work.head, FLOAT)
        load_vector(count, marks.v_scale, FLOAT * work.head, FLOAT)
    if shape.terms > 1:
        for row in range(shape.block_m):
            if not np.isfinite(q[row]).all():
                q[row] = np.nan


@njit(cache=True)
def _load(count, marks, source, rows, columns, row, column, tile, element, shape):
    if shape.copiers == 0:
        load_tile(count, marks, source, rows, columns, row, column, tile, element)
    else:
        copy_tile(count, marks, source, rows, columns, row, column, tile, element)


@njit(cache=True)
def _key(shape, work, block, lane):
    """The first key of a lane's box; beyond the sequence's last page that page again."""
    key = block * shape.block_n + lane * shape.box_rows
    return max(min(key, (work.keys - 1) // shape.box_rows * shape.box_rows), 0) if shape.page > 0 else key


@njit(cache=True)
def _load_pages(count, marks, shape, work, block):
    """The pages of a block, one for every lane."""
    first, last = _key(shape, work, block, 0) // shape.page, _key(shape, work, block, LANES - 1) // shape.page
    load_vector(count, marks.places, INDEX * (work.sequence * shape.row_pages + first), INDEX * (last - first + 1))


@njit(cache=True)
def _look_up(count, marks, shape, work, block):
    """The pages of the rows of each request that copies keys, or values."""
    together, row = LANES * CHUNK // (SIZE * shape.dim), work.sequence * shape.row_pages
    end = min((block + 1) * shape.block_n, work.keys)
    for key in range(block * shape.block_n, end, together):
        first, last = key // shape.page, (min(key + together, end) - 1) // shape.page
        load_vector(count, marks.places, INDEX * (row + first), INDEX * (last - first + 1))


@njit(cache=True)
def _load_block(count, marks, source, places, shape, work, block, value, tile):
    """Keys (value = 0) or values (1) of a block, box by box; warps copy those that are there."""
    for lane in range(shape.block_n // shape.box_rows):
        key = _key(shape, work, block, lane)
        missing = block * shape.block_n + lane * shape.box_rows >= work.keys
        if shape.page == 0:
            rows, width = shape.rows_of_kv, shape.kv_row * shape.dim
            row, first = places[work.sequence] + key, work.head * shape.dim
        else:
            page = min(max(places[work.sequence * shape.row_pages + key // shape.page], 0), shape.pages - 1)
            rows, width = 2 * shape.pages * shape.kv_heads * shape.page, shape.dim
            row, first = ((2 * page + value) * shape.kv_heads + work.head) * shape.page + key % shape.page, 0
        if shape.copiers > 0:
            rows = 0 if missing else row + min(work.keys - key, shape.box_rows)
        for column in range(0, shape.dim, BOX_COLUMNS):
            to = lane * shape.box_rows
            part = tile[to : to + shape.box_rows, column : column + BOX_COLUMNS]
            _load(count, marks, source, rows, width, row, first + column, part, shape.of_kv, shape)


@njit(cache=True)
def _visible(shape, work, block, start, end):
    """Which columns of a block each row sees."""
    at = block * shape.block_n
    for row in range(shape.block_m):
        seen = work.diagonal + row // shape.group
        start[row] = (seen - shape.window if shape.window > 0 else 0) - at
        end[row] = (min(seen, work.keys) if shape.causal else work.keys) - at


@njit(cache=True)
def _merge(count, marks, data, shape, work, index, parts, y, log_sums):
    """Every part stores its rows; the last of each sixteen merges the queries' into the first part's."""
    live, row_bytes = work.tokens * shape.group, FLOAT * shape.dim
    warps = shape.block_m // WARP_ROWS
    start, end = np.empty(shape.block_m, np.int64), np.empty(shape.block_m, np.int64)
    _visible(shape, work, 0, start, end)
    count_exp(count, warps * LANES * (-(-shape.splits // 2)))  # a lane has a row's even parts, or its odd ones
    for split in range(shape.splits):
        top = (index * shape.splits + split) * shape.block_m
        store_vector(count, marks.part_log_sums, FLOAT * top, FLOAT * shape.block_m)
        if parts[split, 1] > parts[split, 0]:
            store_vector(count, marks.part_y, row_bytes * top, row_bytes * shape.block_m)
        for warp in range(warps):
            add_atomically(count, marks.arrived, INDEX * (index * warps + warp), INDEX)
            load_vector(count, marks.part_log_sums, FLOAT * (top + warp * WARP_ROWS), FLOAT * WARP_ROWS)
        for row in range(live):
            if min(end[row], parts[split, 1]) > max(start[row], parts[split, 0]):
                load_vector(count, marks.part_y, row_bytes * (top + row), row_bytes)
    if data.q.size > 0:
        for row in range(live):
            largest, total = log_sums[:, row].max(), np.float32(0)
            mean = np.zeros(shape.dim, np.float32)
            for split in range(shape.splits):
                if log_sums[split, row] > -np.inf:
                    weight = np.exp(log_sums[split, row] - largest)
                    total += weight
                    mean += weight * y[split, row]
            y[0, row] = mean / total if total > 0 else mean
            log_sums[0, row] = largest + np.log(total) if total > 0 else np.float32(-np.inf)


@njit(cache=True)
def _store(count, marks, data, shape, work, splits, y, log_sums):
    """Rows of y and their lse, a warp's sixteen after another's; merged ones, and zeros, row by row."""
    live = work.tokens * shape.group
    request = LSE_ROWS if splits == 1 and work.last > work.first else max(LANES * LANE_ELEMENTS // shape.dim, 1)
    at = np.empty(shape.block_m, np.int64)
    for row in range(live):
        token, head = work.query + row // shape.group, work.head * shape.group + row % shape.group
        at[row] = token * shape.kv_heads * shape.group + head
        store_vector(count, marks.y, SIZE * shape.dim * at[row], SIZE * shape.dim)
        if data.q.size > 0:
            data.y[at[row]] = y[row]
            if shape.lse:
                data.lse[at[row]] = log_sums[row]
    if shape.lse:
        for row in range(0, live, request):
            store_scattered(count, marks.lse, INDEX * at[row : min(row + request, live)], INDEX)
