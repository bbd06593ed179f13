"""What attention_mla moves and computes, from the parts of all workers."""

from typing import Any

import numpy as np

from lab.kernels.attention.mla_plan import (
    BLOCK_M,
    BLOCK_N,
    FLOAT,
    INDEX,
    SIZE,
    WARP,
    ClusterPartition,
    Part,
    partition_of,
)
from lab.problems import Attention
from sim.counts import SECTOR, Counts, sectors

LENGTHS = 3  # loads that say what a sequence is: its first query, the next one's, its keys


def theory(problem: Attention, schedule: Any, workers: int) -> Counts:
    """Queries of every part, and each block once for every CTA of a cluster; partial results of what is shared.

    The lengths are read by every CTA, where sequences are not uniform.
    """
    p, cluster = problem, schedule.cluster
    plan = partition_of(p, schedule, workers)
    stretches = [plan.stretch(worker) for worker in range(workers)]
    parts = [part for stretch in stretches for part in stretch.parts]
    blocks = sum(part.hi - part.lo for part in parts)
    row, result = SIZE * p.head_dim // SECTOR, SIZE * p.value_dim // SECTOR  # sectors of rows of q and k, and of y

    scan, at_once = scanned(p.batch, p.batch), schedule.planned_at_once
    loads = 0
    for stretch in [] if p.uniform else stretches:  # where a worker begins a segment is asked for once more
        upto = (stretch.found // at_once + 1) * at_once
        loads += scan + scanned(p.batch, upto) + LENGTHS * (len(stretch.visited) + (stretch.visited != []))
    loads = cluster * (loads + sum(_places(p, plan, part) for part in parts))
    stores = 0
    delivered = cluster * sum(_tokens(p, part) for part in parts)
    for part in parts:
        shared = part.slot >= 0
        for rank in range(cluster):
            first, live = part.row + rank * BLOCK_M, part.live(rank)
            delivered += min(max(p.tokens * p.q_heads - first, 0), BLOCK_M)
            stores += live * (2 * result if shared else result)
            if shared:
                stores += -(-live // 8)
            elif p.lse:
                stores += lse_sectors(first, live)
    joined = _joined(p, plan)
    loads, stores = loads + joined[0], stores + joined[1]
    arrivals = cluster * sum(part.slot >= 0 for part in parts)
    per_block = BLOCK_M * BLOCK_N * cluster
    return Counts(
        flops=p.flops,
        mma_flops=2 * blocks * per_block * (p.head_dim + p.value_dim),
        exp_count=blocks * per_block + joined[2],
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=cluster * (len(parts) + blocks) * BLOCK_N * SIZE * p.head_dim,
        l2_to_sm_bytes=SECTOR * (loads + delivered * row),
        sm_to_l2_bytes=SECTOR * (stores + arrivals),
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def scanned(batch: int, upto: int) -> int:
    """Sectors of the lengths of the first `upto` sequences that a warp loads, 32 after another."""
    total = 0
    for first in range(0, min(upto, batch), WARP):
        nbytes = INDEX * min(WARP, batch - first)
        total += 2 * sectors(INDEX * first, nbytes) + sectors(INDEX * (first + 1), nbytes)
    return total


def lse_sectors(first: int, rows: int) -> int:
    """Sectors of so many rows' log-sum-exp, eight rows a request."""
    return sum(sectors(FLOAT * (first + row), FLOAT * min(8, rows - row)) for row in range(0, rows, 8))


def _places(problem: Attention, plan: ClusterPartition, part: Part) -> int:
    """Sectors of the block table that a CTA asks for, or of where the sequence starts: once a block."""
    p = problem
    if not p.page or p.page >= BLOCK_N:
        return part.hi - part.lo
    final = max(int(plan.kv_lens[part.sequence]) - 1, 0) // p.page
    first = np.minimum(np.arange(part.lo, part.hi) * (BLOCK_N // p.page), final)
    last = np.minimum(first + BLOCK_N // p.page - 1, final)
    row = part.sequence * p.pages_per_sequence
    return int((INDEX * (row + last) // SECTOR - INDEX * (row + first) // SECTOR + 1).sum())


def _tokens(problem: Attention, part: Part) -> int:
    """Rows that a part's boxes load: whole blocks, as far as the cache goes."""
    if problem.page:
        return BLOCK_N * (part.hi - part.lo)
    start = problem.sequences[part.sequence].kv_start + np.arange(part.lo, part.hi) * BLOCK_N
    return int(np.clip(problem.kv_rows - start, 0, BLOCK_N).sum())


def _joined(problem: Attention, plan: ClusterPartition) -> tuple[int, int, int]:
    """Sectors loaded and stored, exponentials, of the rows that are joined from partial results."""
    p = problem
    loads = stores = exponentials = 0
    for sequence in range(p.batch):
        rows = int(plan.q_starts[sequence + 1] - plan.q_starts[sequence]) * p.group
        for tile in range(int(plan.tiles[sequence])):
            partials = plan.partials(sequence, tile)
            if partials:
                own = min(plan.rows, rows - tile * plan.rows)
                loads += own * partials.workers * (2 + FLOAT * p.value_dim // SECTOR)
                stores += own * (SIZE * p.value_dim // SECTOR + p.lse)
                exponentials += own * partials.workers
    return loads, stores, exponentials
