"""What attention_split_kv moves and computes, in closed form over the parts of all sequences."""

from typing import Any

import numpy as np

from lab.kernels.attention.decode_plan import CtaPartition, Parts, enumerated, partition_of, parts_of
from lab.problems import Attention
from sim.counts import SECTOR, Counts, sectors
from sim.formats import FORMATS

LANES = 32
INDEX = FLOAT = 4  # bytes
LENGTHS = 3  # loads that say what a sequence is: its first query, the next one's, its keys


def theory(problem: Attention, schedule: Any, stretches: int) -> Counts:
    """K and V of the tokens seen, once; queries for every team; the lengths, for every warp that plans with them.

    A part of a sequence that other stretches share is stored, and loaded by whoever comes last. Rows are whole sectors.
    """
    p, s = problem, schedule
    plan = partition_of(p, s, stretches)
    parts = parts_of(plan)
    cache_row, q_row, float_row = (
        n // SECTOR for n in (FORMATS[p.kv].nbytes(1, p.head_dim), 2 * p.head_dim, 4 * p.head_dim)
    )
    queries = plan.q_len[parts.sequence] * p.group  # of each part and KV head
    units = int((parts.hi - parts.lo).sum())
    rows = p.rows * p.q_heads
    joined = parts.shared & (s.cluster <= 1)  # through global memory
    shared = int(queries[joined].sum()) * p.kv_heads  # rows of partial results

    tokens = np.maximum(np.minimum(parts.hi * s.unit, plan.kv_len[parts.sequence]) - parts.lo * s.unit, 0)
    # Two elements a lane fill half a sector, four of an fp8 cache's queries a whole one.
    loads = 2 * p.kv_heads * int(tokens.sum()) * cache_row
    loads += int(queries.sum()) * p.kv_heads * s.slots * (q_row if p.kv == "fp8" else 2 * q_row)
    loads += shared * (1 + float_row)
    loads += p.kv_heads * s.row_groups * _where(p, s, plan, parts)
    warps = s.warps * p.kv_heads // s.heads
    if not p.page and not p.uniform:
        loads += warps * stretches * sectors(0, INDEX * min(LANES, p.batch))
    loads += warps * _lengths(p, s, plan, stretches)
    if p.kv == "fp8":
        loads += warps * stretches + rows
    stores = rows * (q_row + p.lse) + shared * (float_row + 1)
    arrivals = int(joined.sum())
    if s.spread:  # who adds up rows of the only sequence comes once more
        arrivals += int(min(arrivals, queries.max(initial=0)))
    arrivals *= p.kv_heads // s.heads
    return Counts(
        flops=p.flops,
        mma_flops=4 * units * p.kv_heads * s.unit * s.rows * p.head_dim,
        exp_count=units * p.kv_heads * s.unit * s.rows,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * (stores + arrivals),
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def _lengths(problem: Attention, schedule: Any, plan: CtaPartition, stretches: int) -> int:
    """Sectors of lengths that a warp of each stretch loads, 32 sequences after another, or one of them.

    First all of them, then those up to its first sequence again, where that is not among those that it has kept; then
    those of its own sequences, each of them twice.
    """
    p, kept = problem, schedule.planned_at_once
    if p.uniform:
        return 0
    chunk = np.array(
        [
            sum(sectors(INDEX * at, INDEX * min(LANES, p.batch - first)) for at in (first, first + 1, first))
            for first in range(0, p.batch, LANES)
        ]
    )
    upto = np.cumsum([0, *chunk])
    starts = np.arange(stretches) * plan.length
    first = np.searchsorted(plan.upto, starts, side="right")
    last = np.searchsorted(plan.begin, starts + plan.length, side="left")
    found = np.minimum(first[first >= kept], p.batch - 1) // LANES + 1
    again = upto[found] - upto[min(kept, p.batch) // LANES] if p.batch > kept else np.zeros(1)
    own = np.maximum(last - first, 0)
    return int(stretches * upto[-1] + again.sum() + 2 * LENGTHS * own.sum())


def _where(problem: Attention, schedule: Any, plan: CtaPartition, parts: Parts) -> int:
    """Sectors of the block table, or of where sequences beyond the first 32 start, that teams of one KV head load."""
    p, s = problem, schedule
    slot = np.arange(s.slots)
    unit, end = (parts.lo[:, None] + slot).ravel(), np.repeat(parts.hi, s.slots)
    sequence = np.repeat(parts.sequence, s.slots)
    if not p.page:
        return 0 if p.uniform else int(((unit < end) & (sequence >= LANES)).sum())
    pages = max(s.unit // p.page, 1)  # of a unit
    width = LANES // pages  # units whose pages a warp asks for at once
    blocks = np.maximum(-(-(end - unit) // (width * s.slots)), 0)
    of, block = enumerated(blocks)
    lane = np.arange(LANES)
    own = (unit[of] + block * width * s.slots)[:, None] + lane // pages * s.slots
    token = own * s.unit + lane % pages * p.page
    there = (own < end[of][:, None]) & (token < plan.kv_len[sequence[of]][:, None])
    at = INDEX * (sequence[of][:, None] * p.pages_per_sequence + token // p.page) // SECTOR
    new = np.diff(at, axis=1, prepend=-1) != 0  # lanes ascend
    return int((there & new).sum())
