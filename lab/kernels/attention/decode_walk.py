"""The tile schedule of attention_split_kv in compiled code: a CTA plans, walks its units, leaves or joins sums.

What the functions take is in decode_simulation.py and decode_plan.py.
"""

from typing import NamedTuple

import numpy as np

from sim.jit import linked_jit as jit
from sim.tiles import (
    FP8,
    add_atomically,
    load_lanes,
    load_scattered,
    load_vector,
    log_sum_exp,
    mma_useful,
    normalise,
    power_of_two,
    rescale,
    seen_pairs,
    store_vector,
    take_scores_by_powers,
)

LANES = 32
INDEX = FLOAT = 4  # bytes
PAIR = 2 * FLOAT  # of a partial result: its exponent and the sum of its weights
SIZE = 2  # bytes of an element of q and y
AT_ONCE = 16  # partial results whose sums are loaded together


class Part(NamedTuple):
    """What a stretch has of a sequence: units `lo` to `hi`."""

    sequence: int
    stretch: int
    lo: int
    hi: int
    whole: bool


@jit(entry=True)
def grid(count, marks, data, shape, plan, tiles, ctas):
    """CTA after CTA, each counted by its SM; then what whoever comes last to a sequence adds up."""
    for cta in range(ctas):
        _cta(count[cta % count.shape[0]], marks, data, shape, plan, cta, tiles)
    for sequence in range(shape.batch):
        _combine(count[0], marks, data, shape, plan, sequence, tiles.y[0], tiles.exponent[0], tiles.total[0])


@jit
def _cta(count, marks, data, shape, plan, cta, tiles):
    """The parts of a stretch, for some KV heads; planning first, each warp by itself."""
    ctas = shape.kv_heads // shape.heads
    stretch, first_head = cta // ctas, cta % ctas * shape.heads
    if shape.cluster > 1:
        stretch, first_head = cta % shape.cluster, cta // shape.cluster
    start, end = stretch * plan.length, (stretch + 1) * plan.length
    index = 0
    while index < shape.batch and plan.upto[index] <= start:
        index += 1
    for warp in range(shape.warps):
        if shape.page == 0 and not shape.uniform:
            load_vector(count, marks.where, 0, INDEX * min(LANES, shape.batch))
        _load_lengths(count, marks, shape, 0, shape.batch - 1)
        _load_lengths(count, marks, shape, shape.planned_at_once, min(index, shape.batch - 1))
        if shape.element == FP8:
            load_vector(count, marks.k_scale, FLOAT * (first_head + warp // shape.row_groups % shape.heads), FLOAT)
    while index < shape.batch and plan.begin[index] < end:
        for _ in range(0 if shape.uniform else 2 * shape.warps):  # to copy its keys, and to multiply them
            load_vector(count, marks.q_starts, INDEX * index, INDEX)
            load_vector(count, marks.q_starts, INDEX * (index + 1), INDEX)
            load_vector(count, marks.kv_lens, INDEX * index, INDEX)
        units, begin = plan.units[index], plan.begin[index]
        lo, hi = max(start - begin - plan.overhead, 0), min(end - begin - plan.overhead, units)
        if lo < hi or (units == 0 and plan.q_len[index] > 0 and begin >= start):
            first, whole = plan.first_unit[index], units == max(hi - lo, 0)
            part = Part(index, stretch, first + lo, first + max(hi, lo), whole)
            for head in range(first_head, first_head + shape.heads):
                _part(count, marks, data, shape, plan, part, head, tiles)
            if not whole and shape.cluster == 1:
                place = stretch - (begin + plan.overhead) // plan.length
                for _ in range(1 + (shape.spread and place < shape.group * plan.q_len[index])):
                    add_atomically(count, marks.arrivals, INDEX * (index * ctas + first_head // shape.heads), INDEX)
        index += 1


@jit
def _load_lengths(count, marks, shape, start, last):
    """A warp loads the lengths of 32 sequences after another, from `start` up to those of sequence `last`."""
    if shape.uniform:
        return
    for first in range(start, last + 1, LANES):
        nbytes = INDEX * min(LANES, shape.batch - first)
        load_vector(count, marks.q_starts, INDEX * first, nbytes)
        load_vector(count, marks.q_starts, INDEX * (first + 1), nbytes)
        load_vector(count, marks.kv_lens, INDEX * first, nbytes)


@jit
def _part(count, marks, data, shape, plan, part, head, tiles):
    """A part of a sequence for one KV head: its teams take units in turn, then their sums meet."""
    numerics = data.q.size > 0
    y, exponent, total = tiles.y, tiles.exponent, tiles.total
    y[:] = 0
    exponent[:] = -np.inf
    total[:] = 0
    for slot in range(shape.slots):
        _load_queries(count, marks, data, shape, plan, part, head, tiles.q)
        _units(count, marks, data, shape, plan, part, head, slot, tiles)
    if numerics:
        for slot in range(1, shape.slots):
            _join(y[0], exponent[0], total[0], y[slot], exponent[slot], total[slot])
    queries = shape.group * plan.q_len[part.sequence]
    if part.whole:
        _store(count, marks, data, shape, plan, part.sequence, head, y[0], exponent[0], total[0])
        return
    for row in range(queries):
        at = _partial_row(shape, part.stretch, part.sequence, head) + row
        if shape.cluster == 1:
            store_vector(count, marks.partial, FLOAT * shape.dim * at, FLOAT * shape.dim)
            store_vector(count, marks.partial_sums, PAIR * at, PAIR)
        if numerics:
            _copy(data.partial[at], y[0, row], np.float32(1))
            data.partial_sums[at, 0], data.partial_sums[at, 1] = exponent[0, row], total[0, row]


@jit
def _units(count, marks, data, shape, plan, part, head, slot, tiles):
    """Every unit of one team of a KV head."""
    numerics, at_once = data.q.size > 0, _units_at_once(shape)
    live = shape.group * plan.q_len[part.sequence]
    y, exponent, total, scores = tiles.y[slot], tiles.exponent[slot], tiles.total[slot], tiles.scores
    start, end, decay = tiles.start, tiles.end, tiles.decay
    for unit in range(part.lo + slot, part.hi, shape.slots):
        if (unit - part.lo) // shape.slots % at_once == 0:
            for _ in range(shape.row_groups):
                _load_where(count, marks, shape, plan, part, unit, tiles.at)
        _copy_unit(count, marks, data, shape, plan, part.sequence, head, unit, tiles.k, tiles.v)
        _visible(shape, plan, part.sequence, unit, start, end)
        useful = shape.dim * seen_pairs(start[:live], end[:live], shape.unit)
        scores[:] = 0
        mma_useful(count, scores, tiles.q, tiles.k, useful, numerics)
        take_scores_by_powers(
            count, scores, start, end, _scale(data, shape, head), shape.headroom, shape.slack, exponent, total, decay,
            shape.operand, numerics,
        )  # fmt: skip
        if numerics:
            rescale(y, decay)
        mma_useful(count, y, scores, tiles.v, useful, numerics)


@jit
def _scale(data, shape, head):
    return shape.scale * data.k_scale[head] if data.k_scale.size > 0 else shape.scale


@jit
def _load_queries(count, marks, data, shape, plan, part, head, q):
    """All that share the KV head, each row for itself: four lanes load two elements each, or four of fp8's."""
    start = data.q_starts[part.sequence]
    q[:] = 0
    for row in range(shape.group * plan.q_len[part.sequence]):
        at, width = _query_row(shape, start, head, row), 8 if shape.element == FP8 else 4
        load_lanes(count, marks.q, SIZE * shape.dim * at, width, width, 4, 4 * width, SIZE * shape.dim // (4 * width))
        if data.q.size > 0:
            _copy(q[row], data.q[at], np.float32(1))


@jit
def _query_row(shape, start, head, row):
    """Of q and y: the row of a query that shares a KV head."""
    return ((start + row // shape.group) * shape.kv_heads + head) * shape.group + row % shape.group


@jit
def _units_at_once(shape):
    """Units whose pages a warp asks for together, one lane a page; all of them where the cache is contiguous."""
    return LANES // max(shape.unit // shape.page, 1) if shape.page > 0 else shape.kv_len


@jit
def _load_where(count, marks, shape, plan, part, unit, at):
    """The pages of the team's next units, or where the sequence starts, which is known of the first ones."""
    if shape.page == 0:
        if part.sequence >= LANES and not shape.uniform:
            load_vector(count, marks.where, INDEX * part.sequence, INDEX)
        return
    keys, row, lanes = plan.kv_len[part.sequence], part.sequence * shape.table_width, 0
    for own in range(unit, min(part.hi, unit + _units_at_once(shape) * shape.slots), shape.slots):
        for token in range(own * shape.unit, min((own + 1) * shape.unit, keys), min(shape.page, shape.unit)):
            at[lanes] = INDEX * (row + token // shape.page)
            lanes += 1
    load_scattered(count, marks.where, at[:lanes], INDEX)


@jit
def _copy_unit(count, marks, data, shape, plan, sequence, head, unit, k, v):
    """Keys, transposed as the product wants them, and values; zeros for tokens that are not there."""
    numerics = data.q.size > 0
    for i in range(shape.unit):
        token = unit * shape.unit + i
        if token < plan.kv_len[sequence]:
            row = _cache_row(data, shape, sequence, head, token)
            value = row + shape.value_offset
            load_vector(count, marks.k, shape.row_bytes * row, shape.row_bytes)
            load_vector(count, marks.v, shape.row_bytes * value, shape.row_bytes)
            if numerics:
                _copy(k[:, i], data.k[row], np.float32(1))
                _copy(v[i], data.v[value], np.float32(1))
        else:
            k[:, i] = 0
            v[i] = 0


@jit
def _cache_row(data, shape, sequence, head, token):
    """Where the key of a token lies; page ids out of range are not followed."""
    if shape.page == 0:
        return (data.where[sequence] + token) * shape.token_stride + head * shape.head_stride
    page = data.where[sequence * shape.table_width + token // shape.page]
    page = page if 0 <= page < shape.pages else shape.pages - 1
    return page * shape.page_stride + head * shape.head_stride + token % shape.page * shape.token_stride


@jit
def _visible(shape, plan, sequence, unit, start, end):
    """Which columns of a unit each row sees."""
    keys = plan.kv_len[sequence]
    first = keys - plan.q_len[sequence] + 1
    for row in range(shape.rows):
        limit = first + row // shape.group if shape.causal else keys
        start[row] = (limit - shape.window if shape.window > 0 else 0) - unit * shape.unit
        end[row] = min(limit, keys) - unit * shape.unit


@jit
def _copy(to, values, factor):
    for i in range(to.size):
        to[i] = values[i] * factor


@jit
def _join(y, exponent, total, more_y, more_exponent, more_total):
    """Rows of sums relative to powers of two, added to others."""
    for row in range(exponent.size):
        now = max(exponent[row], more_exponent[row])
        own, other = power_of_two(exponent[row], now), power_of_two(more_exponent[row], now)
        for i in range(y.shape[1]):
            y[row, i] = y[row, i] * own + more_y[row, i] * other
        total[row] = total[row] * own + more_total[row] * other
        exponent[row] = now


@jit
def _partial_row(shape, stretch, sequence, head):
    return ((stretch + sequence) * shape.kv_heads + head) * shape.rows


@jit
def _store(count, marks, data, shape, plan, sequence, head, y, exponent, total):
    """The result of all queries of a sequence that share a KV head."""
    start = data.q_starts[sequence]
    if data.q.size > 0:
        normalise(y, total)
    for row in range(shape.group * plan.q_len[sequence]):
        at = _query_row(shape, start, head, row)
        store_vector(count, marks.y, SIZE * shape.dim * at, SIZE * shape.dim)
        if shape.element == FP8:
            load_vector(count, marks.v_scale, FLOAT * head, FLOAT)
        if shape.lse:
            store_vector(count, marks.lse, FLOAT * at, FLOAT)
        if data.q.size > 0:
            _copy(data.y[at], y[row], data.v_scale[head] if data.v_scale.size > 0 else np.float32(1))
            data.lse[at] = log_sum_exp(exponent[row], total[row], np.float32(1))


@jit
def _combine(count, marks, data, shape, plan, sequence, y, exponent, total):
    """The partial results of a sequence that several stretches share, in their order."""
    begin = plan.begin[sequence] + plan.overhead
    first, last = begin // plan.length, (begin + plan.units[sequence] - 1) // plan.length
    if plan.units[sequence] == 0 or first == last:
        return
    queries = shape.group * plan.q_len[sequence]
    for head in range(shape.kv_heads):
        y[:] = 0
        exponent[:] = -np.inf
        total[:] = 0
        for row in range(queries if shape.cluster == 1 else 0):
            _load_partial(count, marks, shape, _partial_row(shape, first, sequence, head) + row, last - first + 1)
        if data.q.size > 0:
            for stretch in range(first, last + 1):
                at = _partial_row(shape, stretch, sequence, head)
                more, sums = data.partial[at : at + queries], data.partial_sums[at : at + queries]
                _join(y[:queries], exponent[:queries], total[:queries], more, sums[:, 0], sums[:, 1])
        _store(count, marks, data, shape, plan, sequence, head, y, exponent, total)


@jit
def _load_partial(count, marks, shape, at, parts):
    """One row of all: sixteen exponents and sums together, a lane each, beside the rows."""
    step = shape.kv_heads * shape.rows
    for done in range(0, parts, AT_ONCE):
        lanes = min(AT_ONCE, parts - done)
        load_lanes(count, marks.partial_sums, PAIR * (at + done * step), PAIR * step, PAIR, lanes, 0, 1)
    for part in range(parts):
        load_vector(count, marks.partial, FLOAT * shape.dim * (at + part * step), FLOAT * shape.dim)
