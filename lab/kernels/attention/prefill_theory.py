"""What the prefill kernels move and compute, in closed form, and how long that takes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lab.cards import fits
from lab.kernel import Bills
from lab.kernels.attention.prefill import (
    FLOAT,
    INDEX,
    LANE_ELEMENTS,
    LANES,
    LOG_SUM_READS,
    SIZE,
    WARP_ROWS,
    Tiles,
    box_rows,
    part_of,
    tile_count,
    tiles,
    tokens_of,
)
from lab.problems import Attention
from lab.problems.attention import Sequence
from sim.counts import SECTOR, Counts, sectors
from sim.machine import Machine


class Merges(NamedTuple):
    """What splits add: sectors that they store and that merges load, atomic operations, exponentials."""

    stores: int
    loads: int
    arrivals: int
    exps: int


def theory(problem: Attention, schedule: Any) -> Counts:
    """Each split of a tile loads its queries and the blocks that it sees; each query is stored once.

    A row makes an exponential of every key of a block, and each of the four threads that share it one of the decay. The
    tables are read once a tile, and for paged keys once a block, two blocks ahead.
    """
    p, s, dim = problem, schedule, problem.head_dim
    blocks = loaded = rows_of_q = index = there = 0
    for b, sequence in enumerate(p.sequences):
        of = tiles(p, sequence, s)
        blocks += int((of.last - of.first).sum())
        loaded += _rows_loaded(p, sequence, of, s.block_n)
        there += of.tokens.size
        rows_of_q += _queries_loaded(p, sequence, of, tokens_of(p, s.block_m))
        for split in range(s.splits):
            index += _table_sectors(p, b, sequence.kv_len, part_of(of, split, s.splits), s)
    blocks, loaded, there, rows_of_q = (p.kv_heads * n for n in (blocks, loaded, there, rows_of_q))
    # Where a sequence starts and ends, how many keys it has and where, for every tile that there is room for.
    merges = _merges(p, s)
    loads = lengths_read(p) * s.splits * tile_count(p, s) + p.kv_heads * index + merges.loads
    y = p.rows * p.q_heads * dim * SIZE // SECTOR
    stores = y + (sum(_lse_sectors(p, s)) if p.lse else 0) + merges.stores
    per_block = s.block_m * s.block_n
    return Counts(
        flops=p.flops,
        mma_flops=4 * blocks * per_block * dim,
        exp_count=blocks * (per_block + 4 * s.block_m) + merges.exps,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=SIZE * dim * (s.splits * there * tokens_of(p, s.block_m) * p.group + 2 * blocks * s.block_n),
        l2_to_sm_bytes=SIZE * dim * (s.splits * rows_of_q * p.group + 2 * loaded) + SECTOR * loads,
        sm_to_l2_bytes=SECTOR * (stores + merges.arrivals),
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def lengths_read(problem: Attention) -> int:
    """Numbers that are read for a tile: where its sequence starts and ends, how many keys it has, where they start."""
    return 3 if problem.page else 4


def _merges(problem: Attention, schedule: Any) -> Merges:
    """Splits store whole tiles in float32; a merge loads rows of queries, of the splits that see a key of theirs."""
    p, s, row = problem, schedule, FLOAT * problem.head_dim // SECTOR
    if s.splits == 1:
        return Merges(0, 0, 0, 0)
    there = stored = requests = seen = 0
    for sequence in p.sequences:
        of = tiles(p, sequence, s)
        start, end = p.visible(sequence)
        tile = np.arange(sequence.q_len) // tokens_of(p, s.block_m)
        there += of.tokens.size
        requests += int((-(-of.tokens * p.group * p.head_dim // (LANES * LANE_ELEMENTS))).sum())
        for split in range(s.splits):
            _, first, last = part_of(of, split, s.splits)
            stored += int((last > first).sum())
            seen += int((np.minimum(end, s.block_n * last[tile]) > np.maximum(start, s.block_n * first[tile])).sum())
    there, stored, requests, seen = (
        p.kv_heads * n for n in (s.splits * there, stored, s.splits * requests, seen * p.group)
    )
    return Merges(
        stores=there * s.block_m * FLOAT // SECTOR + stored * s.block_m * row,
        loads=LOG_SUM_READS * requests + seen * row,
        arrivals=there * s.block_m // WARP_ROWS,
        exps=seen * p.head_dim // LANE_ELEMENTS,
    )


def _queries_loaded(problem: Attention, sequence: Sequence, of: Tiles, tokens: int) -> int:
    """Tokens of q that the tiles of a sequence load: whole boxes, as far as q goes."""
    token = sequence.q_start + np.arange(of.tokens.size) * tokens
    return int(np.clip(problem.tokens - token, 0, tokens).sum())


def _rows_loaded(problem: Attention, sequence: Sequence, of: Tiles, block_n: int) -> int:
    """Keys that the tiles load: whole blocks, as far as the cache goes."""
    if problem.page:
        return block_n * int((of.last - of.first).sum())
    blocks = np.arange(-(-sequence.kv_len // block_n))
    inside = np.clip(problem.kv_rows - sequence.kv_start - blocks * block_n, 0, block_n)
    before = np.concatenate(([0], np.cumsum(inside)))
    return int((before[of.last] - before[of.first]).sum())


def _table_sectors(problem: Attention, b: int, keys: int, of: Tiles, schedule: Any) -> int:
    """Sectors of a sequence's row of the block table that the tiles ask for."""
    some = of.last > of.first
    if not problem.page:
        return 0
    rows, block_n = box_rows(problem, schedule), schedule.block_n
    final = max(keys - 1, 0) // rows * rows
    block = np.arange(-(-keys // block_n)) * block_n
    ends = (np.minimum(at, final) // problem.page for at in (block, block + (LANES - 1) * rows))
    row = b * problem.pages_per_sequence
    asked = np.array([sectors(INDEX * (row + a), INDEX * (z - a + 1)) for a, z in zip(*ends, strict=True)], np.int64)
    before = np.concatenate(([0], np.cumsum(asked)))
    # Of every block, and of the first one twice more in place of the two before it.
    return int((before[of.last] - before[of.first])[some].sum() + 2 * asked[of.first[some]].sum())


def _lse_sectors(problem: Attention, schedule: Any) -> Iterator[int]:
    """Sectors of each request for lse: eight rows of a tile's, or as many as a warp clears or merges."""
    p, of_tile = problem, tokens_of(problem, schedule.block_m)
    cleared = LANES * LANE_ELEMENTS // p.head_dim
    for sequence in p.sequences:
        of = tiles(p, sequence, schedule)
        row = np.arange(of_tile * p.group)
        for tile, (tokens, first, last) in enumerate(zip(*of, strict=True)):
            here = row[: tokens * p.group]
            token = sequence.q_start + tile * of_tile + here // p.group
            for head in range(p.kv_heads):
                at = INDEX * ((token * p.kv_heads + head) * p.group + here % p.group) // SECTOR
                request = here // (8 if schedule.splits == 1 and last > first else cleared)
                yield len(np.unique(np.stack((request, at)), axis=1).T)


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate of a kernel's time is made of."""

    start_us: float  # of a launch, to its first products and from its last ones on
    tensor_share: float  # of the data sheet's rate of the tensor cores, while consumers multiply
    merge_us: float  # until the parts of splits are stored and merged


def bills(kernel: str, problem: Attention, schedule: Any, machine: Machine, clock: str) -> Bills:
    """A start, and the longest of HBM, the products of all tiles, and those of the longest tile on its SM."""
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, kernel, machine, clock)
    found = [part_of(tiles(p, sequence, s), split, s.splits) for sequence in p.sequences for split in range(s.splits)]
    most = max((int((of.last - of.first).max(initial=0)) for of in found), default=0)
    of_block = 2 * s.block_m * s.block_n * (p.head_dim + p.value_dim)
    rate = model.tensor_share * machine.peak(p.unit)
    stream = {
        "HBM": 1e6 * (p.read_bytes + p.write_bytes) / fits.read_rate(machine),
        "tensor cores": 1e6 * (theory(p, s).mma_flops or 0) / rate,
        "longest tile": 1e6 * most * of_block * machine.sms / rate,
    }
    start = model.start_us + (model.merge_us if s.splits > 1 else 0)
    return Bills(start + max(stream.values()), {"launch": start, **stream})
